"""Files that a graph loads count by their content in the names of its sets."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from tests.host.graphs import found, node, picked, probe, recording, stage, unique


def test_files_count_by_their_content(host):
    look = found(host.run(stage() | {"files": probe("Files", "loader")}), "files")
    first, again = look.pop("seconds")
    assert first < 1 and again < 0.1
    assert "custom_nodes" not in look["listed"], "a folder that takes minutes to list"
    assert all(look.values()), look


def paint(file, colour):
    pixels = np.full((64, 64, 3), colour, np.uint8)
    pixels[::2] //= 2
    Image.fromarray(pixels).save(file)


def from_picture(name, picks=""):
    """Candidates that are made from a picture, which a person judges."""
    graph = picked(picks, latent_image=["encode", 0], denoise=0.6, steps=4, seed=91)
    graph["picture"] = node("LoadImage", image=name)
    graph["encode"] = node("VAEEncode", pixels=["picture", 0], vae=["loader", 2])
    return graph | {"look": probe("Trajectory", "sampler"), "preferences": probe("Preferences", "judge")}


@pytest.fixture
def pictures(base):
    names = [f"{unique('picture')}.png" for _ in range(2)]
    yield [base / "input" / name for name in names]
    for name in names:
        (base / "input" / name).unlink(missing_ok=True)


def test_a_picture_that_is_written_over_makes_other_sets_and_its_picks_stay_behind(host, pictures):
    one, other = pictures
    paint(one, (200, 40, 40))
    before = found(host.run(from_picture(one.name)), "look")
    picks = json.dumps({"sets": {before["set_id"]: {"pairs": [[0, 1]]}}})
    assert found(host.run(from_picture(one.name, picks)), "preferences")["pairs"] == [[0, 1]]
    paint(one, (40, 40, 200))
    entry = host.run(from_picture(one.name, picks))
    after = found(entry, "look")
    assert after["set_id"] != before["set_id"] and after["sha"] != before["sha"]
    assert "preferences" not in entry["outputs"] or not found(entry, "preferences")["pairs"]
    paint(other, (200, 40, 40))
    entry = host.run(from_picture(other.name, picks))
    assert found(entry, "look")["sha"] == before["sha"] and found(entry, "look")["set_id"] == before["set_id"]
    assert found(entry, "preferences")["pairs"] == [[0, 1]], "the same picture under another name"


LAYER = "diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_v"


@pytest.fixture
def lora(base):
    """The name of a LoRA file, and a function that writes it over."""
    path = base / "models" / "loras" / f"{unique('over')}.safetensors"

    def write(seed):
        draw = torch.Generator().manual_seed(seed)
        up, down = (torch.randn(shape, generator=draw) / 9 for shape in ((320, 2), (2, 768)))
        save_file({f"{LAYER}.lora_up.weight": up, f"{LAYER}.lora_down.weight": down}, path)

    yield path.name, write
    path.unlink()


@pytest.mark.usefixtures("emoji_model")
def test_a_lora_that_is_written_over_while_it_is_loaded_makes_other_sets_than_the_new_file(host, lora):
    """A loader keeps what it has read, until another prompt or another start of ComfyUI forgets it."""
    name, write = lora

    def set_of(seed):
        graph = recording(model=("lora", 0), seed=seed, steps=2) | {"look": probe("Trajectory", "sampler")}
        graph["lora"] = node("LoraLoaderModelOnly", model=["loader", 0], lora_name=name, strength_model=1.0)
        look = found(host.run(graph), "look")
        return look["set_id"], look["sha"]

    def forget():
        host.run({"text": node("PrimitiveString", value=""), "show": node("PreviewAny", source=["text", 0])})

    write(1)
    before = set_of(1)
    write(2)
    kept = set_of(2)
    forget()
    new = set_of(2)
    assert kept[0] != new[0] and kept[1] != new[1]
    write(1)
    forget()
    assert set_of(1) == before
