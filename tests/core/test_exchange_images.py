"""Records of preferences from elsewhere, and their images."""

import io
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from d3po_core.candidates.judgement import Judgement
from d3po_core.exchange.formats import (
    ExchangeError,
    Record,
    read,
)
from tests.core.pictures import picture, png, save, table


def chunk(kind, data):
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def png_that_claims(width, height):
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x02\0\0\0"
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0"))
        + chunk(b"IEND", b"")
    )


def test_a_record_gives_its_pairs_and_its_pixels_from_files_and_from_bytes(tmp_path):
    record = Record.of("a cat", [save(tmp_path / "a.png", 1), png(2)], {"scores": [0, 1]})
    assert record.pairs == ((1, 0),)
    for i, seed in enumerate((1, 2)):
        pixels = record.load(i)
        assert pixels.dtype == np.float32 and np.array_equal(pixels, picture(seed).astype(np.float32) / 255)


def test_a_record_refuses_a_judgement_of_other_candidates():
    with pytest.raises(ValueError, match="no candidate 2: this set has 2"):
        Record.of(None, [png(1), png(2)], {"pairs": [[0, 2]]})
    with pytest.raises(ValueError, match="3 candidates were judged, and 2 are there"):
        Record(None, [png(1), png(2)], Judgement.of_pairs([(0, 1)], 3))


def test_transparent_pixels_are_flattened_on_white():
    pixels = np.array([[[255, 0, 0, 255], [255, 0, 0, 0], [0, 0, 0, 51]]], np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    loaded = Record.of(None, [buffer.getvalue()], {"ties": []}).load(0)
    assert np.allclose(loaded, [[[1, 0, 0], [1, 1, 1], [0.8, 0.8, 0.8]]], atol=1e-6)


def test_a_colour_named_transparent_in_an_rgb_png_is_flattened_on_white():
    buffer = io.BytesIO()
    Image.fromarray(np.array([[[0, 0, 0], [9, 9, 9]]], np.uint8)).save(buffer, "PNG", transparency=(0, 0, 0))
    loaded = Record.of(None, [buffer.getvalue()], {"ties": []}).load(0)
    assert np.allclose(loaded[0, 0], 1) and np.allclose(loaded[0, 1], 9 / 255)


def test_an_image_is_turned_upright_by_its_exif(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # must be turned a quarter clockwise
    path = save(tmp_path / "a.png", 3, exif=exif)
    assert np.array_equal(Record.of(None, [path], {"ties": []}).load(0) * 255, np.rot90(picture(3), -1))


@pytest.mark.parametrize(
    "mode, value, expected", [("L", 51, 0.2), ("I;16", 65535, 1.0), ("1", 1, 1.0), ("P", 0, 0)]
)
def test_grey_and_palette_images_become_rgb(mode, value, expected):
    buffer = io.BytesIO()
    Image.new(mode, (3, 2), value).save(buffer, "PNG")
    assert np.allclose(
        Record.of(None, [buffer.getvalue()], {"ties": []}).load(0), np.full((2, 3, 3), expected)
    )


@pytest.mark.parametrize("kept", [0.5, 0.9])
@pytest.mark.parametrize("name", ["cut.png", "cut.jpg"])
def test_an_image_that_is_cut_off_is_an_error_that_names_it(tmp_path, name, kept):
    path = tmp_path / name
    Image.fromarray(picture(1, (64, 64))).save(path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
    with pytest.raises(ExchangeError, match=r"cut\.(png|jpg) is damaged or cut off"):
        Record.of(None, [path], {"ties": []}).load(0)


def test_bytes_that_are_no_image_are_named_by_where_they_were_read():
    with pytest.raises(ExchangeError, match="x.parquet, row 3, image 1 is not an image"):
        Record.of(None, [b"hello"], {"ties": []}, source="x.parquet, row 3").load(0)


@pytest.mark.parametrize("size", [(100_000, 100_000), (10_000, 9_000)])
def test_an_absurdly_large_image_is_refused_before_it_is_decoded(tmp_path, size):
    folder = table(tmp_path, "a cat,a.png,b.png")
    (folder / "b.png").write_bytes(png_that_claims(*size))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with pytest.raises(ExchangeError, match=r"pairs.csv, line 2: 'b.png' is too large"):
            list(read(folder))
        with pytest.raises(ExchangeError, match=r"b\.png is too large"):
            Record.of(None, [folder / "b.png"], {"ties": []}).load(0)


def test_postscript_is_not_read_because_pillow_runs_another_program_on_it(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n")
    with pytest.raises(ExchangeError, match="is not an image"):
        Record.of(None, [path], {"ties": []}).load(0)
