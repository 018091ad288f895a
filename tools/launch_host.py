"""Run ComfyUI's own main.py: python tools/launch_host.py <ComfyUI folder> [ComfyUI arguments]

A torch without CUDA often stands beside a torchvision and a torchaudio built for CUDA, whose native
halves then do not load. Only in that case this puts the least in their place that ComfyUI needs to
start. Where there is nothing to compute on but the processor, it adds --cpu.
"""

import importlib.machinery
import importlib.util
import os
import runpy
import subprocess
import sys

VISION_OPS = {
    "nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
AUDIO_MODULES = ("torchaudio", "torchaudio.functional", "torchaudio.transforms")


def torch_is_cpu_build() -> bool:
    """Read torch's version file: ComfyUI wants to set up CUDA before torch is imported."""
    folder = importlib.util.find_spec("torch").submodule_search_locations[0]
    spec = importlib.util.spec_from_file_location("torch_version", os.path.join(folder, "version.py"))
    version = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(version)
    return not (version.cuda or version.hip or getattr(version, "xpu", None))


def has_accelerator() -> bool:
    """Ask in another process, so that this one stays free of torch."""
    question = "import torch; raise SystemExit(not torch.accelerator.is_available())"
    return subprocess.run([sys.executable, "-c", question], stderr=subprocess.DEVNULL).returncode == 0


def mend_torchvision():
    """Declare the operators that torchvision's Python half refers to when it is imported."""
    import torch

    try:
        import torchvision  # noqa: F401
    except (OSError, RuntimeError):
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        for name, schema in VISION_OPS.items():
            torch.library.define(f"torchvision::{name}", schema)


def mend_torchaudio():
    """Put empty modules in torchaudio's place; no node that handles images asks for more."""
    try:
        import torchaudio  # noqa: F401
    except (ImportError, OSError):
        for name in [name for name in sys.modules if name.split(".")[0] == "torchaudio"]:
            del sys.modules[name]
        for name in AUDIO_MODULES:
            parent, _, child = name.rpartition(".")
            module = importlib.util.module_from_spec(
                importlib.machinery.ModuleSpec(name, None, is_package=not parent)
            )
            sys.modules[name] = module
            if parent:
                setattr(sys.modules[parent], child, module)


def main(comfyui: str, arguments: list):
    comfyui = os.path.abspath(comfyui)
    script = os.path.join(comfyui, "main.py")
    if not os.path.isfile(script):
        raise SystemExit(f"{comfyui} is not a ComfyUI folder: it has no main.py")
    sys.path[0] = comfyui
    on_cpu = torch_is_cpu_build()
    if on_cpu:
        mend_torchvision()
        mend_torchaudio()
    apple = sys.platform == "darwin"  # its accelerator is in builds without CUDA too
    if "--cpu" not in arguments and (on_cpu and not apple or not has_accelerator()):
        arguments = [*arguments, "--cpu"]
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    main(sys.argv[1], sys.argv[2:])
