"""Pick-a-Pic's files, made here as its description has them."""

import io
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from d3po_core.exchange.formats import (
    ExchangeError,
    Record,
    read,
    read_pickapic,
    recognise,
    write_hps,
    write_pickapic,
)
from tests.core.samples import encoded, outcomes, parquet, save


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
