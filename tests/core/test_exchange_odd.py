"""What is huge, odd or broken in others' data: it is refused in words, and what is beside it comes in."""

import io
import json
import pickle
import random
import shutil

import numpy as np
import pytest
from PIL import Image

from d3po_core.exchange import record as exchange_record
from d3po_core.exchange.formats import WRITERS, ExchangeError, Record, read
from tests.core.samples import encoded, save, seeds, write


def listed(folder, on_problem="raise"):
    return list(read(folder, on_problem))


@pytest.fixture
def pairs(tmp_path):
    """Two pairs by name."""
    return save(tmp_path, "w/0.png", "l/0.png", "w/1.png", "l/1.png")


# --- sizes ---


def test_the_images_of_a_record_may_not_be_huge_together(tmp_path, monkeypatch):
    monkeypatch.setattr(exchange_record, "LARGEST_RECORD", 30)
    save(tmp_path, "a.png", "b.png", "c.png")  # 12 pixels each
    write(
        tmp_path / "test.json",
        [
            {"prompt": "p", "image_path": ["a.png", "b.png", "c.png"], "rank": [1, 2, 3]},
            {"prompt": "q", "image_path": ["a.png", "b.png"], "rank": [1, 2]},
        ],
    )
    large, small = listed(tmp_path)
    with pytest.raises(ExchangeError, match="test.json, line 1, entry 1: .*36 pixels together.*30.*smaller"):
        large.check_size()
    small.check_size()


def test_the_size_of_a_record_is_known_without_decoding_it():
    record = Record.of(None, [encoded(0)[:60]] * 2, {"pairs": [[0, 1]]})
    record.check_size()
    with pytest.raises(ExchangeError, match="image 1 is damaged"):
        record.pixels(0)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", ["hps", "d3po"])
def test_a_record_of_very_many_candidates_is_refused_before_its_pairs_are_counted(tmp_path, kind):
    count = 20_000
    if kind == "hps":
        save(tmp_path, "a.png")
        write(
            tmp_path / "test.json",
            [{"prompt": "p", "image_path": ["a.png"] * count, "rank": [*range(count)]}],
        )
    else:
        save(tmp_path, "images/00000.png")
        write(tmp_path / "data.json", [[*range(count)]])
    problems = []
    assert listed(tmp_path, problems.append) == []
    assert f"{count} images in one set, and 256 are the most" in str(problems[0])


def test_images_are_decoded_to_eight_bits(tmp_path):
    save(tmp_path, "a.png")
    record = Record.of(None, [tmp_path / "a.png"] * 2, {"pairs": [[0, 1]]})
    assert record.pixels(0).dtype == np.uint8 and np.array_equal(
        record.pixels(0) / np.float32(255), record.load(0)
    )


# --- kinds of pixels ---


def tiff(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "TIFF")
    return buffer.getvalue()


def of(*values):
    return np.array([values])


@pytest.mark.parametrize(
    "array, expected",
    [
        (of(0.0, 0.5, 1.0).astype(np.float32), [0, 128, 255]),
        (of(-0.04, 0.2, 1.05).astype(np.float32), [0, 51, 255]),  # what scaling leaves behind
        (of(0, 2**30, 2**31 - 1).astype(np.int32), [0, 128, 255]),
        (of(0, 2**15, 2**16 - 1).astype(np.uint16), [0, 128, 255]),
    ],
    ids=["float", "float a little outside", "32 bits signed", "16 bits"],
)
def test_grey_levels_of_other_than_eight_bits_are_scaled_by_their_range(array, expected):
    pixels = Record.of(None, [tiff(array)], {"ties": []}).pixels(0)
    assert pixels.shape == (1, 3, 3) and pixels[0, :, 0].tolist() == expected == pixels[0, :, 2].tolist()


def test_unsigned_levels_of_32_bits_are_not_taken_for_negative_ones():
    format_of_samples = (
        b"\x53\x01\x03\x00\x01\x00\x00\x00%c\x00"  # tag 339, one number: 2 is signed, 1 unsigned
    )
    data = tiff(of(0, 2**30, -1).astype(np.int32)).replace(format_of_samples % 2, format_of_samples % 1)
    with Image.open(io.BytesIO(data)) as image:
        assert image.tag_v2[339] == (1,)
    assert Record.of(None, [data], {"ties": []}).pixels(0)[0, :, 0].tolist() == [0, 64, 255]


@pytest.mark.parametrize(
    "array", [of(0.0, 255.0), of(-3.0, 0.5), of(0.0, np.nan), of(0.0, np.inf)], ids=range(4)
)
def test_levels_whose_meaning_is_not_known_are_refused(array):
    with pytest.raises(ExchangeError, match="x.csv, line 2, image 1 has .*levels.*0 to 1.*save it as PNG"):
        Record.of(None, [tiff(array.astype(np.float32))], {"ties": []}, source="x.csv, line 2").load(0)


def test_negative_integer_levels_are_refused():
    with pytest.raises(ExchangeError, match="has levels from -5 to 7"):
        Record.of(None, [tiff(of(-5, 7).astype(np.int32))], {"ties": []}).load(0)


# --- text ---


@pytest.mark.parametrize("column", ["prompt", "annotator"])
def test_half_a_character_spoils_its_record_only(tmp_path, column):
    save(tmp_path, "a.png", "b.png")
    rows = [{"prompt": "p", "annotator": "ann", "chosen": "a.png", "rejected": "b.png"} for _ in range(2)]
    rows[0][column] = "\ud800"
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(ExchangeError, match="pairs.jsonl, line 1: .*half a character"):
        listed(tmp_path)
    problems = []
    assert len(listed(tmp_path, problems.append)) == 1 and "line 1" in str(problems[0])


@pytest.mark.parametrize(
    "header", ['chosen,rejected,"' + "x" * 200_000 + '"', 'chosen,rejected,"prompt', '"a"b,c']
)
def test_a_first_line_that_is_no_csv_is_an_error_that_names_the_file(tmp_path, header):
    (tmp_path / "pairs.csv").write_text(header + "\n")
    with pytest.raises(ExchangeError, match="pairs.csv, line 1: "):
        listed(tmp_path / "pairs.csv")


# --- strays ---

STRAYS = {
    "bin.json": pickle.dumps([1]),
    "latin.csv": b"prompt,chosen,rejected\n\xe9,a,b\n",
    "pairs.jsonl": b"\xff\xff",
    "old.parquet": b"this is none",
    "prompt.json": b"\xff\xfe",
    "book.csv": b"PK\x03\x04 and so on",
}


@pytest.mark.parametrize("name", STRAYS)
def test_a_stray_broken_file_does_not_hold_up_a_folder_of_pairs(pairs, name):
    (pairs / name).write_bytes(STRAYS[name])
    with pytest.raises(ExchangeError, match=name):
        listed(pairs)
    problems = []
    assert [seeds(record) for record in read(pairs, problems.append)] == [[0, 1], [2, 3]]
    assert len(problems) == 1 and name in str(problems[0])


@pytest.mark.parametrize(
    "name", ["Thumbs.db", ".DS_Store", "desktop.ini", "._0.png", "notes.docx", "readme.txt"]
)
@pytest.mark.parametrize("where", ["", "w", "l"])
def test_what_is_no_image_is_ignored(pairs, where, name):
    (pairs / where / name).write_bytes(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1")
    assert [seeds(record) for record in read(pairs)] == [[0, 1], [2, 3]]


@pytest.mark.parametrize("content", [b"", b"nothing", encoded(0)[:40]])
def test_a_broken_image_beside_good_ones_is_left_out_by_name(pairs, content):
    (pairs / "w" / "0.png").write_bytes(content)
    problems, loaded = [], []
    for record in read(pairs, problems.append):
        try:
            loaded.append(seeds(record))
        except ExchangeError as error:
            problems.append(error)
    assert loaded == [[2, 3]] and len(problems) == 1 and "0.png" in str(problems[0])


def test_one_broken_table_among_good_ones_is_left_out(tmp_path):
    save(tmp_path, "a.png", "b.png")
    write(tmp_path / "good.csv", "chosen,rejected\na.png,b.png\n")
    write(tmp_path / "bad.csv", "chosen,rejected\nä.png,b.png\n", "latin-1")
    problems = []
    assert len(listed(tmp_path, problems.append)) == 1 and ["bad.csv" in str(each) for each in problems] == [
        True
    ]


def test_one_broken_parquet_file_among_good_ones_is_left_out(tmp_path):
    record = Record.of("p", [encoded(0), encoded(1)], {"pairs": [[0, 1]]})
    WRITERS["pickapic"]([record], tmp_path / "out")
    (tmp_path / "out" / "data" / "a.parquet").write_bytes(b"cut off")
    problems = []
    assert [seeds(record) for record in read(tmp_path / "out", problems.append)] == [[0, 1]]
    assert ["a.parquet" in str(each) for each in problems] == [True]


# --- nonsense ---

NONSENSE = [
    b"null",
    b"1e999",
    b"-1",
    b"[]",
    b"{}",
    b'""',
    b'"\\ud800"',
    b"9" * 400,
    b"[" * 900 + b"]" * 900,
    b"\xff",
    b"\0",
    b'"',
    b"\n",
    b",",
    b"NaN",
    b"true",
    b'{"bytes": 1}',
    b'"../../x"',
    b"0.5",
    b"[[0, 1]]",
    b"{",
]


@pytest.mark.parametrize("kind", WRITERS)
def test_whatever_is_written_into_a_file_only_exchange_errors_come_of_it(tmp_path, kind):
    records = [
        Record.of("a cat", [encoded(i) for i in range(3)], {"ranking": [0, 1, 2]}, annotator="ann"),
        Record.of("a dog", [encoded(i) for i in range(3, 6)], {"ranking": [1, 0, 2]}),
    ]
    WRITERS[kind](records, tmp_path / "whole")
    chance, refused = random.Random(0), 0
    for number in range(100):
        folder = shutil.copytree(tmp_path / "whole", tmp_path / str(number))
        path = chance.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
        content = path.read_bytes()
        places = [at for at, byte in enumerate(content) if byte in b' ",:[]{}\n'] or [0]
        start, end = sorted(chance.sample(places, 2)) if len(places) > 1 else (0, 1)
        path.write_bytes(content[:start] + chance.choice(NONSENSE) + content[chance.choice([start, end]) :])
        problems = []
        try:
            for record in read(folder, problems.append):
                for i in range(len(record.images)):
                    record.load(i)
        except ExchangeError as error:
            problems.append(error)
        refused += bool(problems)
        shutil.rmtree(folder)
    assert refused > 20
