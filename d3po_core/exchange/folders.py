"""Image pairs whose names say which won.

Two layouts: sibling folders of equal stems, w/001.png over l/001.png, and one folder of 001_w.png over
001_l.png. For w and l may stand any of NAMES, in capitals too. The prompt is in a .txt or .caption file of
the same stem: beside either image, in the folder above, or without the ending (001.txt).
"""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import NoReturn

from .files import Export, Folder, Summary
from .record import ExchangeError, OnProblem, Record, made, prompt_or_none

NAMES = (
    ("w", "l"),
    ("win", "lose"),
    ("winner", "loser"),
    ("winners", "losers"),
    ("chosen", "rejected"),
    ("preferred", "rejected"),
    ("good", "bad"),
)
CAPTIONS = {".txt", ".caption"}


def read_folders(path: str | Path, on_problem: OnProblem = "raise") -> Iterator[Record]:
    """Records of two images each, in the order of their names."""
    folder = Folder(path)
    siblings = sibling_folders(folder)
    if siblings:
        images = [{Path(name).stem: name for name in folder.names(sub)} for sub in siblings]
        doubles = [
            name
            for sub, side in zip(siblings, images)
            for name in folder.names(sub)
            if name not in side.values()
        ]
    else:
        images, doubles = _by_ending(folder)
    if not any(images):
        raise ExchangeError(f"{folder.root} has no image pairs: {LOOKED_FOR}")
    captions = {name for sub in ("", *(siblings or ())) for name in folder.names(sub, CAPTIONS)}
    yield from made(_entries(folder, images, doubles, captions), on_problem)


def write_folders(records: Iterable[Record], folder: str | Path, on_problem: OnProblem = "raise") -> Summary:
    """Every strict pair as w/000000.png and l/000000.png, each with the prompt in a .txt beside it."""
    with Export(folder) as out:
        for record, images in out.judged(records, on_problem):
            for pair in record.pairs:
                number = out.images // 2
                for side, i in zip(("w", "l"), pair):
                    out.image(f"{side}/{number:06}.png", images[i])
                    if record.prompt:
                        out.write(f"{side}/{number:06}.txt", record.prompt.encode())
    return out.summary


LOOKED_FOR = (
    "two folders of equal image names ("
    + ", ".join("/".join(pair) for pair in NAMES)
    + "), or images that end in these (001_w.png, 001_l.png)"
)


def sibling_folders(folder: Folder) -> tuple[str, str] | None:
    """The names of the winners' and the losers' folder; None where there are no such two."""
    by_name = {name.lower(): name for name in folder.folders()}
    return next(((by_name[w], by_name[l]) for w, l in NAMES if w in by_name and l in by_name), None)


def has_endings(folder: Folder) -> bool:
    """Whether there are winners and losers by the endings of their names."""
    return all(_by_ending(folder)[0])


def _by_ending(folder: Folder) -> tuple[list[dict[str, str]], list[str]]:
    """[{stem: winner}, {stem: loser}] and the images that are there twice."""
    images: list[dict[str, str]] = [{}, {}]
    doubles: list[str] = []
    for name in folder.names():
        stem, _, ending = Path(name).stem.rpartition("_")
        for side, endings in zip(images, zip(*NAMES)):
            if stem and ending.lower() in endings:
                doubles += [name] if stem in side else []
                side.setdefault(stem, name)
    return images, doubles


def _entries(
    folder: Folder, images: list[dict[str, str]], doubles: list[str], captions: set[str]
) -> Iterator[tuple[str, Callable[[], Record]]]:
    winners, losers = images
    for name in doubles:
        yield name, partial(_fail, "the same name with another ending is there too: remove one of them")
    for stem in sorted(winners.keys() | losers.keys()):
        name = winners.get(stem) or losers[stem]
        if stem in winners and stem in losers:
            yield name, partial(_record, folder, stem, winners[stem], losers[stem], captions)
        else:
            yield (
                name,
                partial(_fail, f"there is no {'loser' if stem in winners else 'winner'} of the same name"),
            )


def _record(folder: Folder, stem: str, winner: str, loser: str, captions: set[str]) -> Record:
    beside = [Path(name).with_suffix("").as_posix() for name in (winner, loser)]
    name = next(
        (
            name + suffix
            for name in (*beside, stem)
            for suffix in sorted(CAPTIONS)
            if name + suffix in captions
        ),
        None,
    )
    return Record.of(
        _caption(folder, name) if name else None,
        (folder.image(winner), folder.image(loser)),
        {"pairs": [[0, 1]]},
        source=winner,
    )


def _caption(folder: Folder, name: str) -> str | None:
    try:
        return prompt_or_none(folder.file(name).read_bytes().decode("utf-8-sig").rstrip("\r\n"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is not UTF-8 text: save it again as UTF-8") from error


def _fail(message: str) -> NoReturn:
    raise ValueError(message)
