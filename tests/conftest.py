"""One real ComfyUI for all tests, on a base folder of its own, with the pack and the test probes in it."""

import math
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tools.host import CHECKPOINT, FLOW_CHECKPOINT, Host, link, make_base
from tools.launch_host import mend_torchaudio, mend_torchvision, torch_is_cpu_build

HERE = Path(__file__).resolve().parent
# Whether to run what a usual run leaves out because much like it is run: more kills, every method's learning.
EVERY = bool(os.environ.get("D3PO_EVERY"))
UNET, VAE = "model.diffusion_model.", "first_stage_model."

# Where torch is a CPU build, torchvision and torchaudio may not import. PEFT imports them by transformers.
if torch_is_cpu_build():
    mend_torchvision()
    mend_torchaudio()


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    assert CHECKPOINT.is_file() and FLOW_CHECKPOINT.is_file(), (
        "an emoji checkpoint is missing: run these tests by `python dev.py test tests/host`"
    )
    base = make_base(tmp_path_factory.mktemp("host"))
    link(HERE / "host" / "probe", base / "custom_nodes" / "d3po-test-probe")
    write_other_models(base / "models")
    return base


def write_other_models(models):
    """Three files. diffusion_models/other.safetensors: the emoji UNet with slightly other weights.

    diffusion_models/flow.safetensors: a flow model with 16 latent channels (SD3's family) and random weights,
    which reads the emoji checkpoint's CLIP. vae/flow.safetensors: the emoji VAE for it, with every channel
    four times."""
    for folder in ("diffusion_models", "vae"):
        (models / folder).mkdir(parents=True)
    with safe_open(CHECKPOINT, framework="pt") as file:
        unet, vae = (
            {name.removeprefix(part): file.get_tensor(name) for name in file.keys() if name.startswith(part)}
            for part in (UNET, VAE)
        )
    save_file(
        {name: tensor * 1.01 for name, tensor in unet.items()},
        models / "diffusion_models" / "other.safetensors",
    )
    save_file(flow_model(), models / "diffusion_models" / "flow.safetensors")
    vae |= {name: torch.cat([vae[name]] * 4) for name in ("taesd_encoder.14.weight", "taesd_encoder.14.bias")}
    vae["taesd_decoder.1.weight"] = torch.cat([vae["taesd_decoder.1.weight"] / 4] * 4, 1)
    save_file(vae, models / "vae" / "flow.safetensors")


def flow_model(depth=2, channels=16, patch=2, text=768):
    """SD3's MMDiT, whose width the host takes to be 64 for each block."""
    width, generator = 64 * depth, torch.Generator().manual_seed(0)
    shapes = {
        "x_embedder.proj": (width, channels, patch, patch),
        "context_embedder": (width, text),
        "t_embedder.mlp.0": (width, 256),
        "t_embedder.mlp.2": (width, width),
        "y_embedder.mlp.0": (width, text),
        "y_embedder.mlp.2": (width, width),
        "final_layer.linear": (patch * patch * channels, width),
        "final_layer.adaLN_modulation.1": (2 * width, width),
    }
    for i in range(depth):
        for side in ("context_block", "x_block"):
            block, last = f"joint_blocks.{i}.{side}", side == "context_block" and i == depth - 1
            shapes[f"{block}.attn.qkv"] = (3 * width, width)
            shapes[f"{block}.adaLN_modulation.1"] = ((2 if last else 6) * width, width)
            if not last:
                shapes |= {
                    f"{block}.attn.proj": (width, width),
                    f"{block}.mlp.fc1": (4 * width, width),
                    f"{block}.mlp.fc2": (width, 4 * width),
                }
    weights = {
        f"{name}.weight": torch.randn(shape, generator=generator) / math.prod(shape[1:]) ** 0.5
        for name, shape in shapes.items()
    }
    biases = {f"{name}.bias": torch.zeros(shape[0]) for name, shape in shapes.items()}
    return weights | biases | {"pos_embed": torch.randn(1, 64, width, generator=generator)}


@pytest.fixture(scope="session")
def host(base):
    with Host(base, ["--disable-api-nodes"]) as host:  # without which it starts sooner
        yield host


@pytest.fixture(scope="session")
def object_info(host):
    return host.object_info()
