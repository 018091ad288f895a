"""What the files of a run say besides their tensors: JSON records, by their fields."""

from typing import Any, TypeAlias, TypedDict

from torch import Tensor

Tensors: TypeAlias = dict[str, Tensor]
Metrics: TypeAlias = dict[str, float]


class JudgedSet(TypedDict, total=False):
    """A set that a round was trained on.

    set         its name
    said        a name of its pairs, scores and thumbs
    made        a name of how it was made
    candidates  how many it has, where what was said can be compared with the picks later
    labels      how many it has, where somebody looked at them
    taste       a name of the taste that it comes with, where there is one
    """

    set: str
    said: str
    made: str
    candidates: int
    labels: int
    taste: str


class LookFiles(TypedDict):
    """Names of a state's pictures by the base model and by its LoRA, and the pairs' prompts (looks.py)."""

    before: list[str]
    now: list[str]
    prompts: list[str]


class Round(TypedDict, total=False):
    """What a round of training was: its first step, its key (progress.py), its sets."""

    start: int
    key: str
    sets: list[JudgedSet]


class Record(TypedDict, total=False):
    """The JSON of a file. Every file has format and step, those of this version a checksum too.

    step      updates of the run so far
    history   the metrics of every update; in a file its columns' names are "metrics" (history.py)
    model     fingerprint of the base model's weights
    settings  what the run is trained with
    rounds    what it was trained on, oldest round first
    saved     counts the run's saves
    look      what pictures have become, where somebody looked
    key       of a train step's progress: which train step it belongs to
    update    of the best state of a train step: the update that led there
    """

    format: str
    checksum: str
    step: int
    history: list[Metrics]
    metrics: list[str]
    model: str
    settings: dict[str, Any]
    rounds: list[Round]
    saved: int
    look: LookFiles
    key: str
    update: int
