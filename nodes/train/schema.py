"""Inputs made of the table of settings: what an artist decides is on the train step, all else on D3PO Train
Settings."""

from comfy_api.latest import io

from ...d3po_core.training.methods import METHODS, RECORDED_NOISE  # noqa: F401 (for the training)
from ...d3po_core.training.settings import AS_METHOD, TABLE

SettingsType = io.Custom("D3PO_SETTINGS")
ON_TRAIN_STEP = ("method", "epochs", "rank", "targets")
# what is changed most often comes first; then all others in the table's order
FIRST = ("learning_rate", "beta", "clip", "weighting", "sets_per_update", "stop_kl", "seed")
ON_SETTINGS = (*FIRST, *(name for name in TABLE if name not in FIRST + ON_TRAIN_STEP))


def widget(name, default=None):
    """A setting's input, with its default or another. With it go the methods for which the page hides it."""
    about = TABLE[name]
    needless = [method for method in METHODS if not about.is_used_by(method)]
    shared = dict(
        optional=True,
        advanced=about.advanced or None,
        tooltip=about.tooltip,
        extra_dict={"unused_by": needless} if needless else {},
    )
    if about.options:
        return io.Combo.Input(name, options=list(about.options), default=default or about.default, **shared)
    low, usual = (AS_METHOD, AS_METHOD) if about.defaults else (about.low, about.default)
    default = usual if default is None else default
    if isinstance(default, int):
        return io.Int.Input(
            name, default=default, min=low, max=about.high, control_after_generate=False, **shared
        )
    return io.Float.Input(
        name, default=default, min=low, max=about.high, step=about.step, round=False, **shared
    )
