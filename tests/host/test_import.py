"""What an import brings in beside what is broken, odd or too large."""

import json
import os
import shutil
import time
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from d3po_core.dataset.store import Dataset
from tests.host.graphs import CHECKPOINT, TEXT, emoji, node, stage, stock_image, unique


@pytest.fixture
def folder(base):
    """A new folder in ComfyUI's input folder, with an image a.png and a darker one, b.png."""
    root = base / "input" / unique("import")
    root.mkdir(parents=True)
    for name, shade in {"a.png": 200, "b.png": 20}.items():
        Image.fromarray(np.full((16, 12, 3), shade, np.uint8)).save(root / name)
    return root


def brought_in(folder, dataset, problems):
    return {
        "import": node(
            "D3POImportPreferences",
            source=folder.name,
            dataset=dataset,
            annotator="import",
            problems=problems,
        )
    }


def chunk(kind, data):
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def white(width, height):
    """A small file of a large white PNG."""
    packer = zlib.compressobj()
    rows = b"".join(
        [packer.compress((b"\0" + b"\xff" * (3 * width)) * 10) for _ in range(height // 10)]
        + [packer.flush()]
    )
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x02\0\0\0"
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def peak(process):
    """The most memory that a process ever held, in bytes."""
    with open(f"/proc/{process.pid}/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))


def test_a_small_file_of_a_huge_picture_takes_no_memory_and_is_told(host, base, folder):
    (folder / "large.png").write_bytes(white(9400, 9500))
    assert (folder / "large.png").stat().st_size < 300_000
    entries = [
        {"prompt": "p", "image_path": ["large.png"] * 4, "rank": [1, 2, 3, 4]},
        {"prompt": "q", "image_path": ["a.png", "b.png"], "rank": [1, 2]},
    ]
    (folder / "test.json").write_text(json.dumps(entries))
    before, dataset = peak(host.process), unique("dataset")
    text = host.run(brought_in(folder, dataset, "leave out"))["outputs"]["import"]["text"][0]
    assert (
        f"{dataset}: 1 new of 1 sets" in text
        and "entry 1: its images have 357,200,000 pixels together" in text
    )
    assert peak(host.process) - before < 200e6


def test_what_cannot_be_read_stops_the_import_by_name_or_is_left_out(host, failure, base, folder):
    rows = [{"prompt": prompt, "chosen": "a.png", "rejected": "b.png"} for prompt in ("one", "\ud800", "two")]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "old.csv").write_bytes(b"chosen,rejected\n\xff,\xff\n")
    dataset = unique("dataset")
    message = failure(brought_in(folder, dataset, "stop")).message
    assert message.startswith("source: old.csv is not UTF-8") and 'set problems to "leave out"' in message
    text = host.run(brought_in(folder, dataset, "leave out"))["outputs"]["import"]["text"][0]
    assert (
        "2 new of 2 sets" in text and "left out: old.csv" in text and "left out: pairs.jsonl, line 2" in text
    )
    with Dataset(base / "output" / "d3po" / "datasets" / dataset) as store:
        assert sorted(row.prompt for row in store.sets()) == ["one", "two"]
        assert all(len(store.images(row.id)) == 2 for row in store.sets())


def test_images_of_two_sizes_come_in_as_eight_bits_of_one_size(host, base, folder):
    Image.fromarray(np.full((32, 32, 3), 200, np.uint8)).save(folder / "c.png")
    (folder / "pairs.csv").write_text("chosen,rejected\nc.png,b.png\n")
    dataset = unique("dataset")
    host.run(brought_in(folder, dataset, "stop"))
    with Dataset(base / "output" / "d3po" / "datasets" / dataset) as store:
        images = store.images(store.sets()[0].id)
    assert images.shape == (2, 16, 12, 3) and (images * 255).round().flatten(1).unique(
        dim=1
    ).flatten().tolist() == [200, 20]


def test_what_a_writer_that_was_killed_left_is_gone_when_the_next_one_opens_the_dataset(host, base, folder):
    (folder / "pairs.csv").write_text("chosen,rejected\na.png,b.png\n")
    dataset = unique("dataset")
    with Dataset(base / "output" / "d3po" / "datasets" / dataset) as store:
        store.add_set("s", images=torch.rand(2, 8, 8, 3))
        kept = store.image_files("s")
    left = [
        kept[0].with_name(".tmpXyZ123"),
        kept[0].with_name("abc-0123.png"),
        kept[0].with_name("abc-4567.png.1.partial"),
    ]
    for path in left:
        path.write_bytes(b"x")
        os.utime(path, (time.time() - 200_000,) * 2)
    host.run(brought_in(folder, dataset, "stop"))
    assert all(path.exists() for path in kept) and not any(path.exists() for path in left)


def test_pictures_that_the_host_saved_tell_how_they_were_made(host, base, dataset):
    graph = stage() | stock_image(seed=11) | {"loader": emoji()}
    images = ["stock_decode", 0]
    graph["png"] = node("SaveImage", images=images, filename_prefix="told")
    graph["webp"] = node(
        "SaveAnimatedWEBP", images=images, filename_prefix="told", fps=1.0, lossless=True, quality=80,
        method="fastest",
    )  # fmt: skip
    outputs = host.run(graph)["outputs"]
    root = base / "input" / unique("told")
    for side, (name, suffix) in {"w": ("png", "png"), "l": ("webp", "webp")}.items():
        (root / side).mkdir(parents=True)
        (file,) = outputs[name]["images"]
        shutil.copyfile(base / "output" / file["filename"], root / side / f"a.{suffix}")
    host.run(brought_in(root, dataset, "stop"))
    with dataset.open() as store:
        (row,) = store.sets()
        told = {"prompt": TEXT, "seed": 11, "model": CHECKPOINT}  # the negative prompt is empty
        assert row.prompt == TEXT and store.settings(row.id)["pictures"] == [told, told]
