"""Files that a graph loads count by their content in the names of its sets."""

import json

import numpy as np
import pytest
from PIL import Image

from tests.host.graphs import found, node, picked, probe, stage, unique


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
