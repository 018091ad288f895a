"""HPS's files, made here as its description has them."""

import json

import pytest

from d3po_core.exchange.formats import (
    ExchangeError,
    Record,
    read,
    read_hps,
    recognise,
    write_hps,
)
from tests.core.samples import encoded, outcomes, parquet, save, write


@pytest.fixture
def hps(tmp_path):
    save(tmp_path, *(f"test/{i:05}.jpg.png" for i in range(4)))
    for path in (tmp_path / "test").iterdir():
        path.rename(path.with_suffix(""))  # a PNG called .jpg: Pillow goes by the content, and so do we
    write(
        tmp_path / "test.json",
        [
            {
                "prompt": "cat",
                "image_path": ["00000.jpg", "00001.jpg", "00002.jpg"],
                "rank": [2, 1, 3],
                "raw_annotations": [
                    {"rank": [1, 2, 3], "user_hash": "x"},
                    {"rank": [3, 1, 2], "user_hash": "y"},
                ],
            },
            {
                "prompt": "dog",
                "image_path": ["00002.jpg", "00003.jpg"],
                "rank": [1, 1],
                "raw_annotations": [],
            },
        ],
    )
    return tmp_path


def test_hps_the_lowest_rank_is_the_best(hps):
    assert recognise(hps) == recognise(hps / "test.json") == "hps"
    cat, dog = read(hps)
    assert set(outcomes([cat])) == {("cat", 1, 0), ("cat", 1, 2), ("cat", 0, 2)} and dog.pairs == ()
    assert dog.source == "test.json, line 1, entry 2" and cat.annotator is None


def test_hps_each_judge_may_be_read_for_themselves(hps):
    x, y, dog = read_hps(hps, each_judge=True)
    assert (x.annotator, y.annotator, dog.annotator) == ("x", "y", None)
    assert set(outcomes([x])) == {("cat", 0, 1), ("cat", 0, 2), ("cat", 1, 2)}
    assert set(outcomes([y])) == {("cat", 1, 0), ("cat", 1, 2), ("cat", 2, 0)}


def test_hps_entries_with_no_average_are_read_judge_by_judge(hps):
    entries = json.loads((hps / "test.json").read_text())
    del entries[0]["rank"]
    write(hps / "test.json", entries)
    assert [record.annotator for record in read(hps)] == ["x", "y", None]


def test_hps_train_json_has_one_for_the_preferred_image(tmp_path):
    save(tmp_path, "train/a.png", "train/b.png")
    write(
        tmp_path / "train.json",
        [{"human_preference": [0, 1], "prompt": "p", "file_path": ["a.png", "b.png"]}],
    )
    assert outcomes(read(tmp_path)) == [("p", 1, 0)]


@pytest.mark.parametrize("folder", ["", "images/", "test/"])
def test_hps_images_are_found_beside_the_file_or_in_its_folders(tmp_path, folder):
    save(tmp_path, f"{folder}a.png", f"{folder}b.png")
    write(tmp_path / "test.json", [{"prompt": "p", "image_path": ["a.png", "b.png"], "rank": [1, 2]}])
    assert outcomes(read(tmp_path)) == [("p", 0, 1)]


def test_hps_parquet_with_image_bytes_is_read(tmp_path):
    parquet(
        tmp_path / "x.parquet",
        prompt=["p"],
        rank=[[2, 1]],
        raw_annotations=[[{"rank": [2, 1], "user_hash": "h"}]],
        images=[[{"bytes": encoded(0), "path": None}, {"bytes": encoded(1), "path": None}]],
    )
    assert recognise(tmp_path) == "hps"
    [record] = read(tmp_path)
    assert outcomes([record]) == [("p", 1, 0)] and record.annotator == "h"


@pytest.mark.parametrize(
    "entry, message",
    [
        ({"prompt": "p", "image_path": ["a.png", "b.png"], "rank": [1]}, "rank is not a list of 2 numbers"),
        ({"prompt": "p", "image_path": ["a.png", "b.png"], "rank": "12"}, "rank is not a list of 2 numbers"),
        (
            {"prompt": "p", "image_path": ["a.png", "b.png"], "rank": [1, None]},
            "rank is not a list of 2 numbers",
        ),
        ({"prompt": "p", "image_path": ["a.png", "b.png"]}, "nothing says which image is better"),
        ({"prompt": "p", "image_path": "a.png", "rank": [1]}, "no list of images"),
        ({"prompt": "p", "image_path": ["a.png", "/b.png"], "rank": [1, 2]}, "absolute path"),
        ({"prompt": ["p"], "image_path": ["a.png", "b.png"], "rank": [1, 2]}, "not a text"),
        ({"image_path": ["a.png"], "raw_annotations": [7]}, "not an object with rank"),
        (["a.png"], "expected an object"),
    ],
)
def test_hps_a_malformed_entry_is_named_by_file_line_and_number(tmp_path, entry, message):
    save(tmp_path, "a.png", "b.png")
    good = {"prompt": "p", "image_path": ["a.png", "b.png"], "rank": [1, 2]}
    write(tmp_path / "test.json", f"[{json.dumps(good)},\n{json.dumps(entry)}]")
    with pytest.raises(ExchangeError, match=f"test.json, line 2, entry 2: .*{message}"):
        list(read(tmp_path))


def test_hps_export_ranks_what_is_a_ranking_and_pairs_what_is_not(tmp_path):
    images = [encoded(i) for i in range(4)]
    write_hps(
        [
            Record.of("all", images, {"ranking": [3, [0, 1], 2]}, "me"),
            Record.of("some", images, {"pairs": [[3, 1]]}),
            Record.of("circle", images[:3], {"pairs": [[0, 1], [1, 2], [2, 0]]}),
        ],
        tmp_path / "out",
    )
    entries = json.loads((tmp_path / "out" / "test.json").read_text("utf-8"))
    assert [(entry["prompt"], entry["rank"]) for entry in entries] == [
        ("all", [2, 2, 3, 1]),
        ("some", [2, 1]),
        *[("circle", ranks) for ranks in ([1, 2], [1, 2], [2, 1])],
    ]
    assert entries[0]["image_path"] == ["000000.png", "000001.png", "000002.png", "000003.png"]
    assert entries[0]["raw_annotations"] == [{"rank": [2, 2, 3, 1], "user_hash": "me"}]


def test_hps_train_export_has_every_strict_pair(tmp_path):
    write_hps(
        [Record.of("p", [encoded(i) for i in range(3)], {"ranking": [1, [0, 2]]})],
        tmp_path / "out",
        split="train",
    )
    entries = json.loads((tmp_path / "out" / "train.json").read_text("utf-8"))
    assert entries == [
        {"prompt": "p", "file_path": ["000000.png", "000001.png"], "human_preference": [0, 1]},
        {"prompt": "p", "file_path": ["000001.png", "000002.png"], "human_preference": [1, 0]},
    ]
