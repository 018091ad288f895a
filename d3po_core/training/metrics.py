"""The names of what is measured of training, as histories, runs on disk, plots and reports have them."""

LOSS = "loss"
MARGIN = "margin"
ACCURACY = "implicit accuracy"
WINNER = "winner log-ratio"
LOSER = "loser log-ratio"
KL = "KL to reference"
SHIFT = "shift of predictions"  # half their mean square distance to the reference's
MOVED = "pictures moved"  # from the reference's, in what candidates of a prompt differ by (taste/movement.py)
SCORE = "score"  # of the pictures that an update sampled, by the scorer that is trained by
# what pictures that are only looked at gained over the reference's, in standard deviations among these
GAIN = "score gain"
FIDELITY = "second score gain"  # by a scorer that is not trained by
FIDELITY_ERROR = "second score gain, standard error"
CLIP_FRACTION = "clip fraction"
GRADIENT_NORM = "gradient norm"

_HELD_OUT = "held-out "
HELD_OUT_ACCURACY = _HELD_OUT + "accuracy"
HELD_OUT_MARGIN = _HELD_OUT + "margin"
HELD_OUT_KL = _HELD_OUT + KL
HELD_OUT_PAIRS = _HELD_OUT + "pairs"

# what a picture of a run shows first
SHOWN = (LOSS, MARGIN, ACCURACY, WINNER, LOSER, KL)
BY_QUARTER = (MARGIN, ACCURACY, WINNER, KL)  # what is also measured by quarter of the noise schedule
QUARTERS = (1, 2, 3, 4)  # of the noise schedule, the least noise first

QUARTER = ", noise quarter "


def of_quarter(name: str, quarter: int) -> str:
    """The name of a metric's mean over one quarter of the noise schedule."""
    return f"{name}{QUARTER}{quarter}"


def parted(name: str) -> tuple[str, int | None]:
    """(metric, quarter) of a name. The quarter is None where the name is of no one quarter."""
    metric, separator, quarter = name.rpartition(QUARTER)
    return (metric, int(quarter)) if separator and quarter in map(str, QUARTERS) else (name, None)


def held_out(name: str) -> str | None:
    """What a held-out metric's name says after that word; None for a metric of training."""
    return name.removeprefix(_HELD_OUT) if name.startswith(_HELD_OUT) else None
