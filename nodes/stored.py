"""Datasets as nodes reach them: by name in the output folder, with what their inputs share."""

from dataclasses import dataclass, replace
from datetime import datetime
from itertools import islice
from pathlib import Path

import folder_paths
from comfy_api.latest import io
from comfy_execution.graph import ExecutionBlocker

from ..d3po_core.candidates.judgement import Judgement
from ..d3po_core.candidates.preferences import Preferences
from ..d3po_core.dataset.annotators import JOININGS
from ..d3po_core.dataset.index import DatasetError
from ..d3po_core.dataset.sets import INDEX
from ..d3po_core.dataset.store import Dataset
from ..d3po_core.runs.store import run_folder
from . import host

DatasetType = io.Custom("D3PO_DATASET")
NOT_YET = "{}: there is no dataset of this name yet"
SPLITS = {"all": None, "train": "train", "held out": "held_out"}
NAME = dict(default="my dataset", tooltip="Name of the dataset: a folder in output/d3po/datasets.")
HELD_OUT = dict(
    default=0.1,
    min=0.0,
    max=1.0,
    step=0.01,
    round=False,
    tooltip=(
        "Share of the sets that is held out of training. Which these are depends on the sets alone, so it "
        "stays as it is when others are added."
    ),
)
SPLIT = dict(
    options=list(SPLITS),
    default="train",
    tooltip="train: all but the sets that are held out. held out: only those, to measure on.",
)
ANNOTATORS = dict(
    default="", tooltip="Only judgements by these people, names separated by commas. Empty: everybody's."
)
JOINING = dict(
    options=list(JOININGS),
    default=JOININGS[0],
    tooltip=(
        "Where people disagree about two candidates. all: everybody's preferences as they are. majority: "
        "what more people said. unanimous: only what nobody contradicts. Of thumbs, all means majority."
    ),
)
LIMIT = dict(min=0, max=1_000_000, tooltip="The most sets to load, oldest first. 0: all.")
SINCE = dict(default="", tooltip="Only sets recorded on this day or later, as 2026-01-31. Empty: all.")
UNTIL = dict(default="", tooltip="Only sets recorded before this day, as 2026-01-31. Empty: all.")


@dataclass(frozen=True)
class DatasetHandle:
    """A dataset on a wire, and who judges its sets."""

    name: str
    annotator: str

    def open(self, create=False):
        return open_dataset(self.name, create)


@dataclass(frozen=True)
class ImageSet:
    """A set of which there are only images: nothing to train D3PO on, but something to judge."""

    set_id: str
    count: int


def datasets_root():
    return Path(folder_paths.get_output_directory()) / "d3po" / "datasets"


def dataset_folder(name):
    return run_folder(datasets_root(), name, "dataset")


def open_dataset(name, create=False):
    try:
        store = Dataset(dataset_folder(name), create)
        if create:
            store.tidy_daily()
        return store
    except DatasetError as error:
        raise type(error)(f"dataset: {error}") from error


def version(name):
    """Changes whenever the dataset does, or a file of it is taken away or put back; 0 while there is none.
    Without a name, when it comes over a wire, which the host does not say, whenever any does."""
    folders = datasets_root().glob("*") if name is None else [dataset_folder(name)]
    there = [folder for folder in folders if (folder / INDEX).exists()]
    parts = (part for folder in there for part in (folder / INDEX, *folder.glob("*/??")))
    return max((part.stat().st_mtime_ns for part in parts), default=0)


def require_sets(store, name, set_ids):
    for set_id in set_ids:
        if store.find(set_id) is None:
            raise ValueError(
                f"dataset: {name!r} does not hold the set {set_id}; wire D3PO Save to Dataset before this "
                "node"
            )


def record_judgement(handle, set_id, judgement, tool):
    """Keep a Judgement in a dataset, unless its annotator's last one says the same."""
    record_judgements(handle, {set_id: judgement}, tool)


def record_pairs(handle, preferences, tool):
    """Keep the pairs of Preferences as the judgement of their source, where there is a dataset."""
    if handle:
        candidates = preferences.candidates
        said = Judgement.of_pairs(preferences.pairs, candidates.count)
        record_judgement(replace(handle, annotator=preferences.source), candidates.set_id, said, tool)


def record_judgements(handle, judgements, tool):
    """As record_judgement, {set: Judgement}; all are on disk when this returns."""
    with handle.open() as dataset:
        require_sets(dataset, handle.name, judgements)
        for set_id, judgement in judgements.items():
            dataset.judge(set_id, judgement, handle.annotator, tool, again=False)


def alike(one, other):
    """Whether two recordings end in the same candidates, as far as that can be told over devices."""
    one, other = one.finished, other.finished
    return one.shape == other.shape and bool((one - other).norm() <= 0.1 * other.norm())


SHARED = (
    "positive",
    "negative",
    "latent_image",
)  # of a Conditioning; the rest is in the settings, as each set has its own


@dataclass(frozen=True)
class StoredConditioning:
    """A set's conditioning, read from its dataset where it is called."""

    dataset: str
    set_id: str

    def __call__(self):
        with open_dataset(self.dataset) as store:
            tree, settings = store.conditioning(self.set_id), store.settings(self.set_id)
        if tree is None:
            raise ValueError(
                f"dataset: set {self.set_id} was kept without its conditioning; record it again to train on "
                "it"
            )
        try:
            return host.Conditioning(**tree, cfg=settings["cfg"], seed=settings["seed"])
        except (TypeError, KeyError) as error:
            raise ValueError(
                f"dataset: set {self.set_id}: its conditioning is none that this pack kept ({error}); record "
                "it again to train on it"
            ) from error


def loaded(name, store, row):
    """What a set can be trained on, tensors still on disk: its Trajectory, or an ImageSet that is only to
    look at."""
    trajectory = store.trajectory(row.id)
    if trajectory is None:
        return ImageSet(row.id, row.candidates)
    store.require_conditioning(row.id)
    return replace(trajectory, conditioning=StoredConditioning(name, row.id))


def nothing(node, text, **given):
    """Block what is behind a node without an error, all but the `given` outputs, and say why on the node."""
    blocked = ExecutionBlocker(None)
    return io.NodeOutput(
        *[
            given.get(output.display_name, [blocked] if output.is_output_list else blocked)
            for output in node.define_schema().outputs
        ],
        ui={"text": [text]},
    )


def each_whole(items, read, left_out):
    """(item, read(item)) of each; a set that is damaged is left out, and what is wrong with it goes into
    `left_out`."""
    for item in items:
        try:
            yield item, read(item)
        except DatasetError as error:
            left_out.append(error)


def told(text, left_out):
    return "\n".join([text, *(f"left out: {error}" for error in left_out)])


def with_judgements(store, rows, names, joining, limit, left_out):
    """(row, {"pairs", "scores", "liked"} for Preferences) of each set that has a strict pair or a thumb, by
    the annotators that `names` lists in words (none: everybody); at most `limit` of them, 0: all. `left_out`
    as each_whole has it."""
    annotators = [name.strip() for name in names.split(",") if name.strip()] or None

    def judged(row):
        return {
            "pairs": tuple(store.pairs(row.id, annotators, joining)),
            "scores": store.scores(row.id, annotators),
            "liked": store.liked(row.id, annotators, joining),
        }

    answers = each_whole(rows, judged, left_out)
    return islice(
        ((row, answer) for row, answer in answers if answer["pairs"] or {*answer["liked"]} - {None}),
        limit or None,
    )


def preferences_in(name, store, rows, annotators, joining, limit, left_out):
    """Preferences of the rows' sets, tensors still on disk; what is given as with_judgements has it."""
    judged = with_judgements(store, rows, annotators, joining, limit, left_out)
    return [
        Preferences(trajectory, source=name, **answer)
        for (_, answer), trajectory in each_whole(judged, lambda item: loaded(name, store, item[0]), left_out)
    ]


def counted(dataset, preferences):
    """How much there is to learn from, in words."""
    pairs = sum(len(p.pairs) for p in preferences)
    thumbs = sum(liked is not None for p in preferences for liked in p.liked)
    return f"{dataset}: {pairs} pairs{f' and {thumbs} thumbs' if thumbs else ''} in {len(preferences)} sets"


def day(text, name):
    if not text.strip():
        return None
    try:
        return datetime.fromisoformat(text.strip())
    except ValueError as error:
        raise ValueError(f"{name}: {text!r} is no date; write it as 2026-01-31, or leave it empty") from error
