"""ComfyUI-D3PO: train LoRAs from your own picks, inside the graph."""

import re

WEB_DIRECTORY = "./web"
OLDEST_COMFYUI = "0.24.1"


async def comfy_entrypoint():
    from comfyui_version import __version__

    require_host(__version__)
    from .nodes import D3POExtension

    return D3POExtension()


def require_host(version):
    """Raises RuntimeError for a ComfyUI that is too old."""
    if numbers(version) < numbers(OLDEST_COMFYUI):
        raise RuntimeError(
            f"this is ComfyUI {version}, and D3PO needs {OLDEST_COMFYUI} or newer: update ComfyUI"
        )


def numbers(version):
    """(0, 24, 1) of "0.24.1", also of "0.24.1rc2"."""
    return tuple(map(int, re.findall(r"\d+", version)[:3]))
