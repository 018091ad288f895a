"""Networks of full size, with random weights, in the real host: gigabytes and minutes, so only with
D3PO_FULL_SIZE=1."""

import math
import os

import pytest
import torch
from safetensors.torch import save_file

from tests.conftest import HERE
from tests.host.graphs import found, node, probe, train_nodes, unique
from tests.host.test_families import PARTS, judged
from tools.bench_memory import network_of
from tools.host import Host, link, make_base

pytestmark = [
    pytest.mark.skipif(not os.environ.get("D3PO_FULL_SIZE"), reason="D3PO_FULL_SIZE=1 runs it"),
    pytest.mark.timeout(3600),
]
NAMES = {"SD1.5": "SD1.5, 512 px", "SDXL": "SDXL, 1024 px"}
TEXTS = {"SD1.5": dict(width=768, pooled=0), "SDXL": dict(width=2048, pooled=1280)}
LATENT = 128  # pixels, 16x16 latents


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    """A host that keeps weights in bfloat16, as on a graphics card, and has the networks' files."""
    base = make_base(tmp_path_factory.mktemp("full"))
    link(HERE / "host" / "probe", base / "custom_nodes" / "d3po-test-probe")
    for family, name in NAMES.items():
        weights, generator = {}, torch.Generator().manual_seed(0)
        for path, weight in network_of(name, torch.bfloat16).state_dict().items():
            drawn, shape = torch.empty(weight.shape, dtype=torch.bfloat16), weight.shape
            scale = 1 / math.sqrt(shape[1:].numel())
            if len(shape) > 1:
                drawn.uniform_(-scale, scale, generator=generator)
            else:
                drawn.fill_(float(path.endswith("weight")))
            weights[path] = drawn
        (base / "models" / "diffusion_models").mkdir(parents=True, exist_ok=True)
        save_file(weights, base / "models" / "diffusion_models" / f"{family}.safetensors")
    with Host(base, ["--bf16-unet"]) as host:
        yield host


@pytest.mark.parametrize(
    "family, weights", [("SD1.5", "default"), ("SD1.5", "fp8_e4m3fn"), ("SDXL", "default")]
)
def test_it_is_recorded_trained_saved_and_loaded(machine, family, weights):
    run, began = unique("full"), len(machine.log())
    nodes = {
        "loader": node("UNETLoader", unet_name=f"{family}.safetensors", weight_dtype=weights),
        "texts": node("TestTexts", **TEXTS[family]),
        "empty": node("EmptyLatentImage", width=LATENT, height=LATENT, batch_size=1),
    }
    links = dict(zip(PARTS, (["loader", 0], ["texts", 0], ["texts", 1], ["empty", 0])))
    graph = judged(nodes, links, steps=2) | train_nodes(rank=4, targets="attention", learning_rate=1e-3)
    graph["train"]["inputs"]["lora"] = ["new", 1]
    graph |= {
        "new": node("D3POLoadRun", model=links["model"], run=run),
        "losses": probe("LossMap", "train", 2),
        "save": node("D3POSaveRun", lora=["train", 1], run=run),
    }
    losses = found(machine.run(graph, timeout=3000), "losses")
    assert losses["winner_log-ratio"] == losses["loser_log-ratio"] == losses["KL_to_reference"] == [0.0]
    assert losses["gradient_norm"][0] > 0
    pictures = nodes | {
        "lora": node("LoraLoaderModelOnly", model=links["model"], lora_name=f"d3po/{run}.safetensors",
                     strength_model=1.0),
        "run": node("D3POLoadRun", model=links["model"], run=run),
    }  # fmt: skip
    for of in ("loader", "lora", "run"):
        pictures[f"{of}_sample"] = node(
            "KSampler", **(links | dict(model=[of, 0])), seed=5, steps=1, cfg=1.0, sampler_name="euler",
            scheduler="simple", denoise=1.0)  # fmt: skip
        pictures[f"{of}_latent"] = probe("Latent", f"{of}_sample")
    seen = machine.run(pictures, timeout=3000)
    plain, tuned, again = (found(seen, f"{of}_latent")["sha"] for of in ("loader", "lora", "run"))
    assert plain != tuned == again
    assert "lora key not loaded" not in machine.log()[began:] and "NOT LOADED" not in machine.log()[began:]
