"""ComfyUI-D3PO: train LoRAs from your own picks, inside the graph."""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    from .nodes import D3POExtension

    return D3POExtension()
