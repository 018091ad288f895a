"""Pick-a-Pic, HPS and round trips. Sample files are made here as the formats' own descriptions have them."""

import io
import json
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from d3po_core.candidates.judgement import Judgement
from d3po_core.exchange import json_text
from d3po_core.exchange.formats import (
    WRITERS,
    ExchangeError,
    Record,
    read,
    read_hps,
    read_pickapic,
    recognise,
    write_d3po,
    write_hps,
    write_pickapic,
)
from tests.core.samples import encoded, outcomes, save, write

# --- Pick-a-Pic ---


def parquet(path, **cells):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(cells), path)
    return path


@pytest.fixture
def pickapic(tmp_path):
    """The columns of yuvalkirstain/pickapic_v1's card, in its order and types."""
    parquet(
        tmp_path / "data" / "train-00000-of-00001.parquet",
        are_different=[True] * 4,
        best_image_uid=["u1", "u0", "tie", ""],
        caption=["cat", "dog", "cow", "hen"],
        created_at=pa.array([None] * 4, pa.timestamp("ns")),
        has_label=[True, True, True, False],
        image_0_uid=["u0"] * 4,
        image_0_url=["https://example.org/0"] * 4,
        image_1_uid=["u1"] * 4,
        image_1_url=["https://example.org/1"] * 4,
        jpg_0=[encoded(0), encoded(2), encoded(4), b""],
        jpg_1=[encoded(1), encoded(3), encoded(5), b""],
        label_0=[0.0, 1.0, 0.5, 0.0],
        label_1=[1.0, 0.0, 0.5, 0.0],
        model_0=["m"] * 4,
        model_1=["m"] * 4,
        ranking_id=[1, 2, 3, 4],
        user_id=[5, 6, 7, 8],
        num_example_per_prompt=[1] * 4,
        __index_level_0__=[0, 1, 2, 3],
    )
    return tmp_path


def test_pickapic_rows_are_read_with_ties_and_without_what_nobody_judged(pickapic):
    assert recognise(pickapic) == "pickapic"
    cat, dog, cow = read(pickapic)
    assert outcomes([cat, dog, cow]) == [("cat", 1, 0), ("dog", 2, 3)]
    assert cow.judgement.as_json == {"ties": [[0, 1]]} and cow.annotator == "7"
    assert dog.source == "data/train-00000-of-00001.parquet, row 2"


def test_pickapic_jpegs_are_read_as_pillow_decodes_them(tmp_path):
    data = encoded(0, "JPEG", quality=95)
    parquet(tmp_path / "x.parquet", caption=["p"], jpg_0=[data], jpg_1=[encoded(1)], label_0=[1.0])
    [record] = read(tmp_path)
    assert np.array_equal((record.load(0) * 255).round(), np.asarray(Image.open(io.BytesIO(data))))


def test_pickapic_images_may_be_bytes_and_path_as_the_datasets_library_writes_them(tmp_path):
    save(tmp_path, "a.png", "b.png")
    parquet(
        tmp_path / "x.parquet",
        caption=["p"],
        label_0=[0.0],
        jpg_0=[{"bytes": encoded(7), "path": "a.png"}],
        jpg_1=[{"bytes": None, "path": "b.png"}],
    )
    assert outcomes(read(tmp_path)) == [("p", 1, 7)]
    parquet(
        tmp_path / "x.parquet",
        caption=["p"],
        label_0=[0.0],
        jpg_0=[{"bytes": encoded(7), "path": "a.png"}],
        jpg_1=[{"bytes": None, "path": "../b.png"}],
    )
    with pytest.raises(ExchangeError, match="x.parquet, row 1: '../b.png' leads out"):
        list(read(tmp_path))


def test_pickapic_more_rows_than_are_held_at_once_are_numbered_through(tmp_path):
    cells = [encoded(i % 30) for i in range(50)]
    cells[40] = b"no image"
    parquet(
        tmp_path / "x.parquet",
        caption=[str(i) for i in range(50)],
        jpg_0=cells,
        jpg_1=[encoded(0)] * 50,
        label_0=[1.0] * 50,
    )
    problems = []
    records = list(read(tmp_path, problems.append))
    assert [record.prompt for record in records] == [str(i) for i in range(50) if i != 40]
    assert len(problems) == 1 and "x.parquet, row 41: an image of the pair is not an image" in str(
        problems[0]
    )


@pytest.mark.parametrize(
    "cells, message",
    [
        ({"caption": ["p"], "label_0": [1.0]}, "in no format known|do not say which"),
        (
            {"jpg_0": [None], "jpg_1": [None], "label_0": [1.0]},
            "x.parquet, row 1: an image of the pair is missing",
        ),
        (
            {"jpg_0": [encoded(0)], "jpg_1": [encoded(1)], "label_0": [None]},
            "row 1: label_0 and label_1 are empty",
        ),
    ],
)
def test_pickapic_rows_that_do_not_make_a_pair_are_an_error(tmp_path, cells, message):
    path = parquet(tmp_path / "x.parquet", **cells)
    for function in (read, read_pickapic):
        with pytest.raises(ExchangeError, match=message):
            list(function(path))


@pytest.mark.parametrize("kept", [0, 10, 300, -30])
def test_a_parquet_file_that_is_cut_off_is_an_error_that_names_it(pickapic, kept):
    path = pickapic / "data" / "train-00000-of-00001.parquet"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(
        ExchangeError, match="train-00000-of-00001.parquet is not a parquet file, or is cut off"
    ):
        list(read(pickapic))


def test_a_parquet_file_that_is_damaged_inside_is_an_error_that_names_it(pickapic):
    path = pickapic / "data" / "train-00000-of-00001.parquet"
    data = bytearray(path.read_bytes())
    data[4 : len(data) // 2] = b"\xff" * (len(data) // 2 - 4)
    path.write_bytes(data)
    with pytest.raises(ExchangeError, match="train-00000-of-00001.parquet"):
        list(read(pickapic))


def test_without_pyarrow_a_parquet_file_says_what_to_install_and_the_rest_works(tmp_path, monkeypatch):
    parquet(tmp_path / "x.parquet", caption=["p"])
    for name in [name for name in sys.modules if name.split(".")[0] == "pyarrow"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    record = Record.of("p", [encoded(0), encoded(1)], {"pairs": [[0, 1]]})
    with pytest.raises(ExchangeError, match="pip install pyarrow"):
        read(tmp_path)
    with pytest.raises(ExchangeError, match="pip install pyarrow"):
        write_pickapic([record], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    write_hps([record], tmp_path / "hps")
    assert outcomes(read(tmp_path / "hps")) == [("p", 0, 1)]


def test_a_pyarrow_that_runs_code_out_of_files_is_refused(tmp_path, monkeypatch):
    path = parquet(tmp_path / "x.parquet", caption=["p"])
    monkeypatch.setattr(pa, "__version__", "14.0.0")
    with pytest.raises(ExchangeError, match="too old to open files safely"):
        read(path)


def test_pickapic_export_has_the_columns_that_trainers_read(tmp_path):
    summary = write_pickapic(
        [Record.of("p", [encoded(i) for i in range(3)], {"ranking": [2, 0, 1]}, "me")], tmp_path / "out"
    )
    table = pq.read_table(tmp_path / "out" / "data")
    assert table["caption"].to_pylist() == ["p"] * 3 and table["has_label"].to_pylist() == [True] * 3
    # In the order of the picks (2, 0), (2, 1), (0, 1), each with the smaller candidate first.
    assert table["label_0"].to_pylist() == [0, 0, 1] and table["label_1"].to_pylist() == [1, 1, 0]
    assert table["jpg_0"].to_pylist() == [encoded(0), encoded(1), encoded(0)]
    assert (
        table.schema.field("jpg_0").type == pa.binary() and table.schema.field("label_0").type == pa.float64()
    )
    assert (summary.records, summary.pairs, summary.images) == (1, 3, 6)


# --- HPS ---


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


# --- streaming JSON ---


value = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(value, max_size=6), st.sampled_from([None, 0, 3]), st.booleans(), st.integers(1, 9))
@example([0.5, 12, 1e30, -1], None, True, 1)
def test_a_json_list_read_in_small_pieces_is_what_the_json_module_reads(
    tmp_path, monkeypatch, given, indent, ascii, n
):
    monkeypatch.setattr(json_text, "CHUNK", n)
    text = json.dumps(given, indent=indent, ensure_ascii=ascii)
    path = write(tmp_path / "x.json", text)
    assert [item for _, item in json_text.items(path, "x.json")] == json.loads(text)


# --- round trips ---


def test_prompts_and_annotators_survive_every_format_that_has_them(tmp_path):
    prompts = ["plain", 'Hüte, "rot"; 猫\t🎩', "two\nlines", "=1+1", None]
    records = [Record.of(prompt, [encoded(0), encoded(1)], {"pairs": [[1, 0]]}, "me") for prompt in prompts]
    for name, export in WRITERS.items():
        export(records, tmp_path / name)
        back = list(read(tmp_path / name))
        assert [record.prompt for record in back] == prompts
        if name in ("csv", "jsonl", "pickapic", "hps"):
            assert {record.annotator for record in back} == {"me"}


candidates = 4
index = st.integers(0, candidates - 1)
two = st.lists(index, min_size=2, max_size=2, unique=True)
judgements = st.one_of(
    st.lists(two, min_size=1, max_size=5, unique_by=frozenset).map(lambda pairs: {"pairs": pairs}),
    st.lists(st.integers(-2, 2) | st.none(), min_size=candidates, max_size=candidates).map(
        lambda scores: {"scores": scores}
    ),
    st.permutations(range(candidates)).flatmap(
        lambda order: st.integers(0, candidates).map(lambda n: {"ranking": [list(order[:n]), *order[n:]]})
    ),
    st.tuples(two, st.permutations(range(candidates))).map(
        lambda both: {"ties": [both[0]], "ranking": list(both[1])}
    ),
    st.lists(
        st.lists(st.integers(0, 2), min_size=2, max_size=2), min_size=candidates, max_size=candidates
    ).map(lambda scores: {"scores": scores}),
)
EXPORTS = {**WRITERS, "d3po": lambda records, folder: write_d3po(records, folder, pairwise=True)}


@pytest.mark.parametrize("name", EXPORTS)
@settings(max_examples=15, deadline=None)
@given(st.lists(judgements, min_size=1, max_size=3))
def test_an_export_and_an_import_give_the_same_prompts_pairs_and_pixels(name, tmp_path_factory, given):
    given = [judgement for judgement in given if Judgement.parse(judgement, candidates).pairs]
    records = [
        Record.of(f"prompt {n}", [encoded(4 * n + i) for i in range(candidates)], judgement)
        for n, judgement in enumerate(given)
    ]
    folder = tmp_path_factory.mktemp("round") / "trip"
    if records:
        summary = EXPORTS[name](records, folder)
        expected = outcomes(records)
        assert sorted(outcomes(read(folder))) == sorted(expected)
        assert summary.pairs == len(expected) and summary.records == len(records)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.integers(-2, 2), min_size=3, max_size=3), min_size=1, max_size=4))
def test_d3po_scores_survive_as_they_are(tmp_path_factory, given):
    given = [scores for scores in given if len(set(scores)) > 1]
    if given:
        folder = tmp_path_factory.mktemp("round") / "trip"
        write_d3po(
            [Record.of("p", [encoded(i) for i in range(3)], {"scores": scores}) for scores in given], folder
        )
        assert [record.judgement.as_json["scores"] for record in read(folder)] == given
