"""The files of the official D3PO code (github.com/yk7333/d3po, arXiv 2311.13231).

Its sampling script writes a folder

    images/00000.png, 00001.png, ...   K images a prompt, numbered through: prompt n has n*K ... n*K + K - 1
    prompt.json                        ["prompt 0", "prompt 1", ...]
    sample.pkl                         the latents, as a pickle

and its training script reads a folder of scores, made by hand from the judge's answers:

    *.json                             [[score, ... K of them], ... one list a prompt], higher is better

K is 7 in their scripts. Several score files are several judges: they are cut to the shortest and averaged.
Their published data set (huggingface.co/datasets/yangkaiSIGS/d3po_datasets) calls the folders all_img/ and
json/ and has copies of the bad images in deformed_img/, which say no more than the scores.

sample.pkl is not opened, because a pickle can run code, and not written: without its latents an image set
serves Diffusion-DPO, and their own train.py wants latents that only their own sampling can make.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ..candidates.judgement import pairs_from_scores
from . import json_text
from .files import Export, Folder, Summary
from .record import (
    ExchangeError,
    OnProblem,
    Record,
    made,
    prompt_or_none,
    readable,
    refuse_pickle_file,
    require_few,
    weak_order,
)

IMAGE_FOLDERS = ("images", "all_img")


def read_d3po(
    path: str | Path, on_problem: OnProblem = "raise", scores: str | Path | None = None
) -> Iterator[Record]:
    """Records of a folder that the official code sampled, or of the score file in it.

    scores  a folder of score files, or one, where they lie elsewhere
    """
    path = Path(path)
    if path.is_file():
        scores, path = scores or path, path.parent.parent if path.parent.name == "json" else path.parent
        refuse_pickle_file(Path(scores))
    folder = Folder(path)
    files = (
        _given(Path(scores))
        if scores
        else [(name, folder.file(name)) for name in score_names(folder, on_problem)]
    )
    if not files:
        raise ExchangeError(
            f"{folder.root} has no scores: put the JSON file, [[0, 1, ...], ...] with a list of scores "
            "for each prompt, next to prompt.json or into a folder json"
        )
    yield from made(_entries(folder, files), on_problem)


def write_d3po(
    records: Iterable[Record],
    folder: str | Path,
    on_problem: OnProblem = "raise",
    pairwise: bool = False,
) -> Summary:
    """Images, prompt.json and json/data.json with the scores. All sets must be of one size and wholly ranked,
    which scores can say; with `pairwise` each strict pair becomes a set of two, which always works."""
    width = 2 if pairwise else None

    def check(record: Record) -> None:
        if not pairwise and len(record.images) != (width or len(record.images)):
            raise ValueError(
                f"has {len(record.images)} images where the first set has {width}; scores need sets of "
                "one size: export as pairs"
            )
        if not pairwise and _scores(record) is None:
            raise ValueError("the picks do not rank all images, which scores would: export as pairs")

    with Export(folder) as out:
        with (
            out.open("prompt.json") as prompts,
            out.open("json/data.json") as scores,
            json_text.writing(prompts) as add_prompt,
            json_text.writing(scores) as add_scores,
        ):
            for record, images in out.judged(records, on_problem, check, whole=not pairwise):
                width = width or len(record.images)
                for row in record.pairs if pairwise else [range(width)]:
                    for i in row:
                        out.image(f"images/{out.images:05}.png", images[i])
                    add_prompt(record.prompt or "")
                    add_scores([1, 0] if pairwise else _scores(record))
    return out.summary


def score_names(folder: Folder, on_problem: OnProblem = "raise") -> list[str]:
    """Files of scores in the folder, or in its folder json: lists of lists of numbers."""
    names = [name for sub in ("json", "") for name in folder.names(sub, {".json"})]
    return [*readable(names, lambda name: _is_scores(_first(folder, name)), on_problem)]


def _first(folder: Folder, name: str) -> Any:
    return None if Path(name).name.startswith("prompt") else json_text.first(folder.file(name), name)


def _is_scores(item: object) -> bool:
    return isinstance(item, list) and bool(item) and all(_is_number(value) for value in item)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _given(path: Path) -> list[tuple[str, Path]]:
    paths = sorted(path.glob("*.json")) if path.is_dir() else [path]
    return [(path.name, path) for path in paths]


def _entries(folder: Folder, files: Sequence[tuple[str, Path]]) -> Iterator[tuple[str, Callable[[], Record]]]:
    numbered = {
        int(Path(name).stem): name
        for sub in IMAGE_FOLDERS
        for name in folder.names(sub)
        if Path(name).stem.isdecimal()
    }
    prompts = (
        [prompt for _, prompt in json_text.items(folder.file("prompt.json"), "prompt.json")]
        if "prompt.json" in folder.names("", {".json"})
        else None
    )
    judges = ", ".join(Path(name).stem for name, _ in files if Path(name).stem != "data") or None
    width = 0
    for number, items in enumerate(zip(*(json_text.items(path, name) for name, path in files))):
        place = f"{files[0][0]}, line {items[0][0]}, list {number + 1}"
        rows = [row for _, row in items]
        width = width or (len(rows[0]) if isinstance(rows[0], list) else 0)
        yield place, partial(_record, folder, numbered, prompts, number, width, rows, judges, place)


def _record(
    folder: Folder,
    numbered: Mapping[int, str],
    prompts: Sequence[object] | None,
    number: int,
    width: int,
    rows: list[Any],
    judges: str | None,
    place: str,
) -> Record:
    for row in rows:
        if not _is_scores(row):
            raise ValueError(
                f"expected a list of scores for each prompt, [[0, 1, ...], ...], got {row!r:.60}"
            )
        if len(row) != width:
            raise ValueError(f"{len(row)} scores where the first prompt has {width}")
    require_few(width)
    if prompts is not None and number >= len(prompts):
        raise ValueError(f"scores for prompt {number + 1}, but prompt.json has {len(prompts)}")
    wanted = range(number * width, (number + 1) * width)
    missing = [i for i in wanted if i not in numbered]
    if missing:
        raise ValueError(f"the image {missing[0]:05}.png is not in {' or '.join(IMAGE_FOLDERS)}")
    # fsum rounds once, so that the same scores in another order still tie.
    scores = rows[0] if len(rows) == 1 else [math.fsum(values) / len(rows) for values in zip(*rows)]
    return Record.of(
        prompt_or_none(prompts[number]) if prompts else None,
        tuple(folder.image(numbered[i]) for i in wanted),
        {"scores": list(scores)},
        judges,
        place,
    )


def _scores(record: Record) -> list[float] | None:
    """One number for each image that gives just the record's pairs; None where there are none such."""
    scores = record.judgement.scores
    given = [score for score in scores if score is not None]
    if scores and len(given) == len(scores) and set(pairs_from_scores(given)) == set(record.pairs):
        return given
    levels = weak_order(record.pairs)
    if levels is None or sum(map(len, levels)) != len(record.images):
        return None
    return [len(levels) - 1 - n for _, n in sorted((i, n) for n, level in enumerate(levels) for i in level)]
