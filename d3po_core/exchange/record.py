"""What the formats of other trainers share: a neutral record and its images."""

import io
import re
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from ..candidates.judgement import Judgement, Pair, is_text, pairs_from_ranking

# Not all that Pillow can open: its EPS reader, for one, runs another program on the file.
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
LARGEST_IMAGE = 89_478_485  # pixels; where Pillow begins to warn of a decompression bomb
LARGEST_RECORD = 2**26  # pixels of all its images; training holds them all at once, with 12 bytes for each
MOST_CANDIDATES = 256  # in a record; their pairs are half the square of that
OVERSHOOT = 0.1  # outside 0...1, that scaling leaves in floating-point levels

PICKLE_SUFFIXES = {".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".bin", ".npy", ".npz", ".joblib", ".dill"}
PICKLE_STARTS = re.compile(
    rb"\x80[\x01-\x08]|\([dl]p\d+\n|[\]})]q\x00|c[A-Za-z_][\w.]*\n[A-Za-z_][\w.]*\n|\x93NUMPY"
)
ZIP_START = b"PK\x03\x04"


class ExchangeError(ValueError):
    """Preference data that cannot be read or written. The message names the file and, where there is one, the
    line."""


Source: TypeAlias = Path | bytes  # an image file, or its bytes
OnProblem: TypeAlias = Literal["raise"] | Callable[[ExchangeError], object]


@dataclass(frozen=True)
class Record:
    """Images of one prompt and a judgement over them, from or for another trainer.

    prompt     None where the format knows none; an empty prompt is read as None
    images     each a Path to an image file, or the bytes of one
    judgement  what was said of them; `of` reads it from JSON
    annotator  who judged, where the format knows it
    source     where it was read: file and line, row or entry
    """

    prompt: str | None
    images: tuple[Source, ...]
    judgement: Judgement
    annotator: str | None = None
    source: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "images", tuple(self.images))
        require_few(len(self.images))
        if not all(map(is_text, filter(None, (self.prompt, self.annotator)))):
            raise ValueError("its text has half a character in it, as \\ud800 is: write it again")
        if self.judgement.candidates != len(self.images):
            raise ValueError(
                f"{self.judgement.candidates} candidates were judged, and {len(self.images)} are there"
            )

    @classmethod
    def of(
        cls,
        prompt: str | None,
        images: Sequence[Source],
        said: dict[str, Any],
        annotator: str | None = None,
        source: str = "",
    ) -> "Record":
        """The record of a judgement that is given as a mapping. Raises ValueError as Judgement.parse does."""
        return cls(prompt, tuple(images), Judgement.parse(said, len(images)), annotator, source)

    @property
    def pairs(self) -> tuple[Pair, ...]:
        """The strict pairs of the judgement, (winner, loser)."""
        return self.judgement.pairs

    def check_size(self) -> None:
        """Raises ExchangeError where the images are too large together to be held at once. Looks at how each
        begins."""
        total = 0
        for i in range(len(self.images)):
            with self._named(i), open_image(self.images[i]) as image:
                total += image.width * image.height
        if total > LARGEST_RECORD:
            raise ExchangeError(
                f"{self.source or 'a record'}: its images have {total:,} pixels together, and "
                f"{LARGEST_RECORD:,} are the most for one set: make them smaller"
            )

    def pixels(self, i: int) -> NDArray[np.uint8]:
        """Image i, uint8 [H, W, 3]: upright by its EXIF, on white where it is transparent. Its numbers are
        taken as sRGB; a colour profile is not applied. Raises ExchangeError, naming the file, for a damaged
        one."""
        with self._named(i):
            return pixels(self.images[i])

    def load(self, i: int) -> NDArray[np.float32]:
        """As `pixels`, float32 in 0...1."""
        levels: NDArray[np.float32] = self.pixels(i) / np.float32(255)
        return levels

    @contextmanager
    def _named(self, i: int) -> Iterator[None]:
        image = self.images[i]
        try:
            yield
        except ValueError as error:
            name = f"{self.source or 'a record'}, image {i + 1}" if isinstance(image, bytes) else image
            raise ExchangeError(f"{name} {error}") from error


def require_few(candidates: int) -> None:
    """Raises ValueError for more than MOST_CANDIDATES."""
    if candidates > MOST_CANDIDATES:
        raise ValueError(
            f"there are {candidates} images in one set, and {MOST_CANDIDATES} are the most: split it up"
        )


def made(
    entries: Iterable[tuple[str, Callable[[], Record | None]]], on_problem: OnProblem
) -> Iterator[Record]:
    """Records out of (place, function) entries; a function raises ValueError, or returns None where nobody
    judged.

    on_problem is "raise", or is called with each ExchangeError; its record is then left out. What the entries
    themselves raise, because a file is damaged as a whole, always stops the import.
    """
    for place, make in entries:
        try:
            record = make()
        except (
            ValueError,
            OverflowError,
            RecursionError,
        ) as error:  # JSON has numbers of any length, lists of any depth
            report(ExchangeError(f"{place}: {error}"), on_problem, error)
        else:
            if record is not None:
                yield record


def report(problem: ExchangeError, on_problem: OnProblem, cause: BaseException) -> None:
    """Raise a problem that is caused by another error, or by itself, or tell it."""
    if not callable(on_problem):
        raise problem from (cause if cause is not problem else cause.__cause__)
    on_problem(problem)


def readable(names: Iterable[str], look: Callable[[str], object], on_problem: OnProblem) -> Iterator[str]:
    """Those of the names for which look(name) says yes. One that cannot be looked at is reported, and no
    hindrance."""
    for name in names:
        try:
            if look(name):
                yield name
        except ExchangeError as error:
            report(error, on_problem, error)


def prompt_or_none(value: object) -> str | None:
    """A prompt, None for an empty one. Raises ValueError for what is no text."""
    if value is not None and not isinstance(value, str):
        raise ValueError(f"the prompt is {value!r:.80}, not a text")
    return value or None


def weak_order(pairs: Sequence[Pair]) -> list[list[int]] | None:
    """The judged candidates as a ranking, lists of ties, best first; None where no ranking means just these
    pairs."""
    judged = {i for pair in pairs for i in pair}
    wins = {i: sum(winner == i for winner, _ in pairs) for i in judged}
    levels = [[i for i in sorted(judged) if wins[i] == n] for n in sorted(set(wins.values()), reverse=True)]
    return levels if set(pairs_from_ranking(levels)) == set(pairs) else None


# --- pickles -------------------------------------------------------------------------------------


def refuse_pickle(path: Path) -> None:
    """ValueError for a file that is a pickle or a torch file, by its name or by how it begins."""
    if Path(path).suffix.lower() in PICKLE_SUFFIXES:
        raise ValueError(PICKLE.format(what=f"is a {Path(path).suffix.lower()} file, which holds a pickle"))
    try:
        with open(path, "rb") as file:
            start = file.read(256)
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror})") from error
    refuse_pickle_bytes(start)


def refuse_pickle_file(path: Path) -> None:
    """As refuse_pickle, but the error names the file."""
    try:
        refuse_pickle(path)
    except ValueError as error:
        raise ExchangeError(f"{path} {error}") from error


def refuse_pickle_bytes(start: bytes) -> None:
    """ValueError for a file that begins like a pickle or a torch file."""
    if PICKLE_STARTS.match(start):
        raise ValueError(PICKLE.format(what="begins like a pickle"))
    if start.startswith(ZIP_START):
        raise ValueError(
            PICKLE.format(what="is a zip, as torch files are")
            + ". Unpack a zip of images first; save an Excel table as CSV UTF-8"
        )


PICKLE = (
    "{what}, and opening one can run whatever code its maker put in. It is not opened. "
    "Import the folder with the images and the JSON or CSV file of picks instead"
)


# --- images --------------------------------------------------------------------------------------


def pixels(source: Source) -> NDArray[np.uint8]:
    """uint8 [H, W, 3] of an image file or its bytes. ValueError says what is wrong, without the name."""
    with open_image(source) as image:
        try:
            top, unsigned = top_level(image)
            image = ImageOps.exif_transpose(image)
            if image.mode[0] not in "IF":
                if "A" in image.getbands() or "transparency" in image.info:
                    white = Image.new("RGBA", image.size, "white")
                    white.alpha_composite(image.convert("RGBA"))
                    image = white
                return np.array(image.convert("RGB"))
            levels = np.array(image)
        except (
            OSError,
            SyntaxError,
            ValueError,
            TypeError,
            IndexError,
            OverflowError,
            MemoryError,
            struct.error,
        ) as error:
            raise ValueError(f"is damaged or cut off ({error})") from error
    levels = (levels.view(unsigned) if unsigned else levels).astype(np.float32)
    low, high = levels.min(), levels.max()
    if not (low >= -OVERSHOOT * top and high <= (1 + OVERSHOOT) * top) or (low < 0 and top > 1):
        raise ValueError(
            f"has levels from {low:g} to {high:g}, where 0 to {top} are black to white: save it as PNG"
        )
    return np.repeat((levels.clip(0, top) * (255 / top)).round().astype(np.uint8)[..., None], 3, axis=-1)


def top_level(image: Image.Image) -> tuple[int, type[np.uint32] | None]:
    """What is white in a grey image of other than 8 bits, and the type that its numbers are to be read as, or
    None."""
    if image.mode == "F":
        return 1, None
    tags = getattr(image, "tag_v2", {})  # of a TIFF; where there are none it is a PNG of 16 bits
    bits, signed = tags.get(258, (16,))[0], tags.get(339, (1,))[0] == 2
    return 2 ** (bits - signed) - 1, np.uint32 if bits == 32 and not signed else None


def png(array: NDArray[np.uint8]) -> bytes:
    """The bytes of a PNG with these pixels, uint8, and nothing else."""
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def check_image_bytes(data: object) -> bytes:
    """The bytes of an image. Raises ValueError for anything else."""
    if not isinstance(data, bytes):
        raise ValueError("an image of the pair is missing: the column has no data in this row")
    try:
        open_image(data).close()
    except ValueError as error:
        raise ValueError(f"an image of the pair {error}") from error
    return data


def open_image(source: Source) -> Image.Image:
    """Pillow's image of a file or its bytes, not decoded yet. ValueError as in `pixels`."""
    if isinstance(source, bytes):
        refuse_pickle_bytes(source[:256])
    else:
        refuse_pickle(source)
    try:
        image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=IMAGE_FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"is too large ({error})") from error
    except UnidentifiedImageError as error:
        raise ValueError(f"is not an image: {', '.join(IMAGE_FORMATS)} are read") from error
    except (OSError, SyntaxError, ValueError, struct.error) as error:
        raise ValueError(f"is damaged or cut off ({error})") from error
    if image.width * image.height > LARGEST_IMAGE:
        image.close()
        raise ValueError(f"is too large: {image.width} x {image.height} pixels")
    return image
