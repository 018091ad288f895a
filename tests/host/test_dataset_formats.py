"""Pairs brought into a dataset from the input folder, and out of it in every format."""

import numpy as np
import pytest
from PIL import Image

from tests.core.datasets import judge
from tests.host.graphs import found, node, probe, recording, unique
from tests.host.test_datasets import load


def picture(shade):
    return Image.fromarray(np.full((16, 12, 3), shade, np.uint8))


@pytest.fixture
def folder(base):
    """Two pairs by name in ComfyUI's input folder."""
    root = base / "input" / unique("pairs")
    for side, shades in {"w": (200, 210), "l": (20, 30)}.items():
        (root / side).mkdir(parents=True)
        for i, shade in enumerate(shades):
            picture(shade).save(root / side / f"{i}.png")
            (root / side / f"{i}.txt").write_text(f"prompt {i}")
    return root


def brought_in(source, dataset, problems="stop"):
    return {
        "import": node(
            "D3POImportPreferences", source=source, dataset=dataset, annotator="import", problems=problems
        )
    }


def test_what_is_added_to_a_folder_is_brought_in_and_the_rest_is_not_twice(host, dataset, folder):
    first = host.run(brought_in(folder.name, dataset))["outputs"]["import"]["text"]
    for side, shade in {"w": 250, "l": 5}.items():
        picture(shade).save(folder / side / "2.png")
    second = host.run(brought_in(folder.name, dataset))["outputs"]["import"]["text"]
    assert (first, second) == (
        [f"{dataset}: 2 new of 2 sets from {folder.name}"],
        [f"{dataset}: 1 new of 3 sets from {folder.name}"],
    )
    with dataset.open() as store:
        assert store.statistics()["judgements"] == 3


def test_a_folder_of_pairs_goes_out_in_every_format_and_comes_back_the_same(host, base, dataset, folder):
    host.run(brought_in(folder.name, dataset))
    with dataset.open() as store:
        assert store.statistics()["sets"] == 2 and store.statistics()["pairs"] == 2
    for kind in ("folders", "csv", "jsonl", "d3po", "pickapic", "hps", "hps train"):
        name = unique("export")
        report = host.run(
            {"out": node("D3POExportPreferences", dataset=dataset, format=kind, name=name, annotator="")}
        )
        assert "2 pairs in 2 sets, 4 images" in report["outputs"]["out"]["text"][0]
        exported = base / "output" / "d3po" / "exports" / name
        back = base / "input" / name
        exported.rename(back)
        again = type(dataset)(unique("again"))
        host.run(brought_in(name, again))
        with again.open() as store, dataset.open() as first:
            assert sorted(row.prompt for row in store.sets()) == ["prompt 0", "prompt 1"]
            assert {row.id: store.pairs(row.id) for row in store.sets()} == {
                row.id: first.pairs(row.id) for row in first.sets()
            }


@pytest.mark.parametrize("source", ["../output", "/etc", "", ".", "nowhere", "a/../../user"])
def test_only_what_lies_in_the_input_folder_is_read(failure, dataset, source):
    assert failure(brought_in(source, dataset)).message.startswith("source: ")


def test_a_link_that_leads_out_of_the_input_folder_is_refused(failure, base, dataset, tmp_path):
    name = unique("link")
    (base / "input" / name).symlink_to(tmp_path, target_is_directory=True)
    assert "does not lie in ComfyUI's input folder" in failure(brought_in(name, dataset)).message


def test_a_bad_image_stops_the_import_or_is_left_out(host, failure, dataset, folder):
    whole = (folder / "w" / "0.png").read_bytes()
    (folder / "w" / "0.png").write_bytes(whole[: len(whole) // 2])
    message = failure(brought_in(folder.name, dataset)).message
    assert "0.png" in message and "leave out" in message
    entry = host.run(brought_in(folder.name, dataset, "leave out"))
    assert (
        "1 new of 1 sets" in entry["outputs"]["import"]["text"][0]
        and "0.png" in entry["outputs"]["import"]["text"][0]
    )


def test_encoded_images_carry_thumbs_also_where_they_make_no_pair(host, dataset, folder):
    host.run(brought_in(folder.name, dataset))
    with dataset.open() as store:
        one, other = (row.id for row in store.sets())
        judge(store, one, {"bad": [0, 1]}, "ann")
        judge(store, other, {"ties": [[0, 1]]}, "ann")
    graph = {
        "loader": recording()["loader"],
        "load": load(dataset, sets="all"),
        "look": probe("Preferences", "encode"),
        "encode": node(
            "D3POEncodePairs",
            model=["loader", 0],
            clip=["loader", 1],
            vae=["loader", 2],
            limit=0,
            dataset=["load", 0],
            split="all",
            held_out=0.1,
            annotators="ann",
            joining="all",
        ),
    }
    look = found(host.run(graph), "look")
    assert (look["set_id"], look["pairs"], look["liked"]) == (one, [], [False, False])


def test_an_export_knows_thumbs_and_passes_over_a_set_that_is_all_bad(host, base, dataset, folder):
    host.run(brought_in(folder.name, dataset))
    with dataset.open() as store:
        one, other = store.sets()
        judge(store, one.id, {"good": [1], "bad": [0], "log": {"thumbs": [[0, "-"], [1, "+"]]}}, "ann")
        judge(store, other.id, {"bad": [0, 1]}, "ann")
    name = unique("export")
    out = node("D3POExportPreferences", dataset=dataset, format="csv", name=name, annotator="ann")
    assert "1 pairs in 1 sets, 2 images" in host.run({"out": out})["outputs"]["out"]["text"][0]
    rows = (base / "output" / "d3po" / "exports" / name / "pairs.csv").read_text().splitlines()
    assert len(rows) == 2 and rows[1].startswith(one.prompt)


def test_an_export_never_writes_over_what_is_there(host, failure, base, dataset, folder):
    host.run(brought_in(folder.name, dataset))
    name = unique("export")
    graph = {"out": node("D3POExportPreferences", dataset=dataset, format="csv", name=name, annotator="")}
    host.run(graph)
    graph["out"]["inputs"]["annotator"] = "import"
    assert name in failure(graph).message
