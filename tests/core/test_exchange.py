"""Imports from files of others and exports: what is refused, reported and recognised."""

import io
import json
import os
import pickle

import numpy as np
import pytest
from PIL import Image

from d3po_core.exchange.files import Folder
from d3po_core.exchange.formats import (
    WRITERS,
    ExchangeError,
    Record,
    read,
    read_folders,
    read_table,
    recognise,
)
from tests.core.pictures import picture, png, save, table

# --- pickles ---


def torch_zip():
    import zipfile

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", b"")
    return buffer.getvalue()


@pytest.mark.parametrize("suffix", [".pkl", ".PKL", ".pickle", ".pt", ".pth", ".ckpt", ".npy"])
def test_a_pickle_is_refused_by_its_name(tmp_path, suffix):
    path = tmp_path / f"sample{suffix}"
    path.write_bytes(b"harmless")
    with pytest.raises(
        ExchangeError, match=rf"sample{suffix} .*holds a pickle.*not opened.*Import the folder"
    ):
        read(path)


PICKLES = [pickle.dumps({"a": [1]}, protocol) for protocol in range(6)] + [
    pickle.dumps(os.getcwd, 0),
    torch_zip(),
]


@pytest.mark.parametrize(
    "content", PICKLES, ids=[f"protocol {n}" for n in range(6)] + ["a function", "torch zip"]
)
@pytest.mark.parametrize("name", ["data.json", "pairs.csv", "pairs.jsonl", "pairs.parquet", "a.dat"])
def test_a_pickle_under_another_name_is_refused_by_its_content(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ExchangeError, match=f"{name}.*(begins like a pickle|is a zip).*not opened"):
        list(read(tmp_path / name))


def test_a_pickle_under_the_name_of_an_image_is_refused_by_its_content(tmp_path):
    folder = table(tmp_path, "a cat,a.png,b.png")
    (folder / "b.png").write_bytes(pickle.dumps([1]))
    with pytest.raises(ExchangeError, match="pairs.csv, line 2: 'b.png' begins like a pickle"):
        list(read(folder))
    with pytest.raises(ExchangeError, match="begins like a pickle"):
        Record.of(None, [pickle.dumps([1])], {"ties": []}).load(0)


def test_a_folder_with_nothing_but_a_pickle_says_why_it_is_not_read(tmp_path):
    (tmp_path / "sample.pkl").write_bytes(pickle.dumps(1))
    with pytest.raises(ExchangeError, match="sample.pkl .*holds a pickle"):
        read(tmp_path)


# --- paths ---


@pytest.mark.parametrize(
    "name, message",
    [
        ("../secret.png", "leads out of the imported folder"),
        ("x/../../secret.png", "leads out"),
        ("..\\secret.png", "leads out"),
        ("/etc/secret.png", "absolute path"),
        ("\\secret.png", "absolute path"),
        ("C:\\secret.png", "absolute path"),
        ("C:secret.png", "absolute path"),
        ("c:/secret.png", "absolute path"),
        ("\\\\server\\share\\secret.png", "absolute path"),
        ("//server/share/secret.png", "absolute path"),
        ("\\\\?\\C:\\secret.png", "absolute path"),
        ("https://example.org/a.png", "web address"),
        ("a.png\0.txt", "not a file name on every system"),
        ("\ud800.png", "not a file name on every system"),
        ("con.png", "not a file name on every system"),
        ("x/NUL", "not a file name on every system"),
        ("", "not the name of a file"),
        (None, "not the name of a file"),
        (7, "not the name of a file"),
        ("missing.png", "is not there"),
        (".", "is not there"),
        ("n" * 5000 + ".png", "is not there|cannot be"),
    ],
)
def test_a_name_that_leads_out_of_the_folder_or_nowhere_is_refused_with_file_and_line(
    tmp_path, name, message
):
    folder = tmp_path / "import"
    save(folder / "a.png"), save(tmp_path / "secret.png")
    (folder / "pairs.jsonl").write_text(json.dumps({"chosen": "a.png", "rejected": name}), encoding="utf-8")
    with pytest.raises(ExchangeError, match=f"pairs.jsonl, line 1: .*({message})"):
        list(read(folder))


def test_backslashes_in_a_table_made_on_windows_are_read_on_every_system(tmp_path):
    save(tmp_path / "sub" / "a.png", 1), save(tmp_path / "sub" / "b.png", 2)
    (tmp_path / "pairs.csv").write_text("chosen,rejected\nsub\\a.png,.\\sub\\b.png\n", encoding="utf-8")
    [record] = read(tmp_path)
    assert np.array_equal(record.load(1) * 255, picture(2))


@pytest.fixture
def link(tmp_path):
    def make(at, to):
        at.parent.mkdir(parents=True, exist_ok=True)
        try:
            at.symlink_to(to, target_is_directory=to.is_dir())
        except OSError as error:
            pytest.skip(f"this system makes no links: {error}")

    return make


def test_a_link_to_an_image_outside_is_refused_and_one_inside_is_followed(tmp_path, link):
    folder = table(tmp_path / "import", "a cat,a.png,link.png")
    save(tmp_path / "secret.png")
    link(folder / "link.png", folder / "b.png")
    [record] = read(folder)
    assert np.array_equal(record.load(1) * 255, picture(2))
    (folder / "link.png").unlink()
    link(folder / "link.png", tmp_path / "secret.png")
    with pytest.raises(ExchangeError, match="pairs.csv, line 2: 'link.png' is a link that leads out"):
        list(read(folder))


def test_a_linked_subfolder_table_and_caption_outside_are_refused(tmp_path, link):
    secret = tmp_path / "secret"
    save(secret / "a.png")
    (secret / "a.txt").write_text("secret")
    save(tmp_path / "one" / "l" / "a.png")
    link(tmp_path / "one" / "w", secret)
    save(tmp_path / "two" / "w" / "a.png"), save(tmp_path / "two" / "l" / "a.png")
    link(tmp_path / "two" / "w" / "a.txt", secret / "a.txt")
    table(secret, "a cat,a.png,b.png")
    save(tmp_path / "three" / "a.png"), save(tmp_path / "three" / "b.png")
    link(tmp_path / "three" / "pairs.csv", secret / "pairs.csv")
    for name in ("one", "two", "three"):
        with pytest.raises(ExchangeError, match="is a link that leads out of the imported folder"):
            list(read(tmp_path / name))


def test_links_in_a_circle_are_an_error_and_no_endless_walk(tmp_path, link):
    folder = table(tmp_path / "import", "a cat,a.png,x/y.png")
    link(folder / "x", folder / "x2")
    link(folder / "x2", folder / "x")
    with pytest.raises(ExchangeError, match="pairs.csv, line 2: "):
        list(read(folder))


# --- problems ---


def test_a_bad_record_stops_the_import_or_is_reported_and_left_out(tmp_path):
    folder = table(tmp_path, "one,a.png,b.png", "two,a.png,gone.png", "three,a.png", "four,b.png,a.png")
    with pytest.raises(ExchangeError, match="pairs.csv, line 3: 'gone.png' is not there"):
        list(read(folder))
    problems = []
    assert [record.prompt for record in read(folder, problems.append)] == ["one", "four"]
    assert [str(problem) for problem in problems] == [
        "pairs.csv, line 3: 'gone.png' is not there",
        "pairs.csv, line 4: 2 fields where the first line names 3",
    ]


def test_records_before_the_bad_one_are_given_first(tmp_path):
    records = read(table(tmp_path, "one,a.png,b.png", "two,a.png,gone.png"))
    assert next(records).prompt == "one"
    with pytest.raises(ExchangeError):
        next(records)


def test_reading_a_hundred_thousand_rows_holds_none_of_them(tmp_path, monkeypatch):
    folder = table(tmp_path, *["a cat,a.png,b.png"] * 100_000)
    looked_at = []
    monkeypatch.setattr(
        Folder, "image", lambda self, name, *within: looked_at.append(name) or self.root / name
    )
    records = read(folder)
    next(records), next(records)
    assert looked_at == ["a.png", "b.png"] * 2


# --- recognising ---


def test_a_folder_in_no_known_format_says_what_was_looked_for(tmp_path):
    save(tmp_path / "holiday.png")
    (tmp_path / "notes.json").write_text('{"a": 1}')
    (tmp_path / "prices.csv").write_text("item,price\n")
    with pytest.raises(ExchangeError) as error:
        read(tmp_path)
    for word in ("D3PO", "HPS", "Pick-a-Pic", "chosen, rejected", "001_w.png", "unpacked"):
        assert word in str(error.value)


def test_a_path_that_is_not_there_is_an_error_at_once(tmp_path):
    with pytest.raises(ExchangeError, match="nowhere is not there"):
        read(tmp_path / "nowhere")


def test_each_export_is_recognised_as_what_it_is(tmp_path):
    records = [Record.of("a cat", [png(1), png(2)], {"pairs": [[1, 0]]})]
    expected = {"csv": "table", "jsonl": "table", "hps train": "hps"}
    for name, write in WRITERS.items():
        write(records, tmp_path / name)
        assert recognise(tmp_path / name) == expected.get(name, name)
        [record] = read(tmp_path / name)
        [(winner, loser)] = record.pairs
        assert record.prompt == "a cat"
        assert np.array_equal(record.load(winner) * 255, picture(2))
        assert np.array_equal(record.load(loser) * 255, picture(1))


# --- exports ---


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_an_export_never_writes_into_a_folder_that_has_something(tmp_path, write):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "work.txt").write_text("mine")
    with pytest.raises(ExchangeError, match="is there already: choose a new or an empty folder"):
        write([Record.of("", [png(1), png(2)], {"pairs": [[0, 1]]})], tmp_path / "mine")
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "work.txt"]


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_an_export_that_fails_leaves_nothing(tmp_path, write):
    good = Record.of("", [png(1), png(2)], {"pairs": [[0, 1]]})
    bad = Record.of("", [png(1), png(2)[:60]], {"pairs": [[0, 1]]}, source="elsewhere")
    with pytest.raises(ExchangeError, match="elsewhere, image 2 is damaged"):
        write([good, bad], tmp_path / "out")
    assert not list(tmp_path.iterdir())
    problems = []
    summary = write([good, bad, good], tmp_path / "out", problems.append)
    assert (summary.records, summary.pairs, summary.left_out, len(problems)) == (2, 2, 1, 1)
    assert len(list(read(tmp_path / "out"))) == 2


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_sets_without_a_strict_pair_are_left_out_and_counted(tmp_path, write):
    tie = Record.of("tie", [png(1), png(2)], {"ties": [[0, 1]]})
    summary = write([tie, Record.of("one", [png(1), png(2)], {"pairs": [[0, 1]]})], tmp_path / "out")
    assert (summary.records, summary.left_out) == (1, 1)
    assert [record.prompt for record in read(tmp_path / "out")] == ["one"]
    with pytest.raises(ExchangeError, match="nothing was written.*no set has an image that is better"):
        write([tie], tmp_path / "empty")
    assert not (tmp_path / "empty").exists()


def test_an_export_beside_the_remains_of_another_or_under_a_file_says_what_to_do(tmp_path):
    records = [Record.of("", [png(1), png(2)], {"pairs": [[0, 1]]})]
    (tmp_path / "out.part").mkdir()
    with pytest.raises(ExchangeError, match="out.part is left from an export that was cut off: remove it"):
        WRITERS["csv"](records, tmp_path / "out")
    (tmp_path / "file").write_text("")
    with pytest.raises(ExchangeError, match="out cannot be made .*choose another"):
        WRITERS["csv"](records, tmp_path / "file" / "out")


@pytest.mark.parametrize("name", ["con", "NUL.txt", "lpt1", "what?", "a.", "a:b", "COM¹"])
def test_an_export_folder_has_a_name_that_every_system_allows(tmp_path, name):
    with pytest.raises(ExchangeError, match="not a folder name on every system"):
        WRITERS["csv"]([Record.of("", [png(1), png(2)], {"pairs": [[0, 1]]})], tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_file_names_of_an_export_are_numbers_whatever_the_prompt_and_the_source_are_called(tmp_path, write):
    image = save(tmp_path / "in" / "secret name.png")
    prompt = "../../etc/passwd\0 con <|>"
    write([Record.of(prompt, [image, png(2)], {"pairs": [[0, 1]]})], tmp_path / "out")
    names = {path.stem for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert all(
        name.isdecimal() or name in {"prompt", "data", "pairs", "test", "train", "train-00000-of-00001"}
        for name in names
    )


def test_an_export_has_the_pixels_and_nothing_else_of_an_image(tmp_path):
    # ComfyUI writes the whole workflow into its PNGs, which is not for everybody who gets the pairs.
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("workflow", "my secret graph")
    image = save(tmp_path / "a.png", 1, pnginfo=info)
    WRITERS["folders"]([Record.of(None, [image, png(2)], {"pairs": [[0, 1]]})], tmp_path / "out")
    assert b"secret" not in (tmp_path / "out" / "w" / "000000.png").read_bytes()
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / "w" / "000000.png")), picture(1))


def test_an_export_rounds_what_eight_bits_cannot_hold(tmp_path):
    Image.new("I;16", (3, 2), 40_000).save(tmp_path / "a.png")
    WRITERS["folders"]([Record.of(None, [tmp_path / "a.png", png(2)], {"pairs": [[0, 1]]})], tmp_path / "out")
    assert np.asarray(Image.open(tmp_path / "out" / "w" / "000000.png"))[0, 0, 0] == 156  # 155.6


def test_a_folder_can_be_read_and_written_again_while_it_is_read(tmp_path):
    folder = table(tmp_path / "in", "one,a.png,b.png", "two,b.png,a.png")
    WRITERS["folders"](read_table(folder), tmp_path / "out")
    assert [record.prompt for record in read_folders(tmp_path / "out")] == ["one", "two"]
