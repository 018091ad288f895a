"""Settings by name, and the settings that a mapping of some of them comes to.

docs/learning.md tells what comes of the recommended ones.
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from .methods import METHODS, NOISED, RECORDED
from .setting import Value
from .settings import AS_METHOD, TABLE, Settings
from .step_settings import StepSettings

RECOMMENDED, PAPER = "recommended", "paper"
UPDATES = 10  # of a round that is trained as recommended, if it has no more sets than fit into them
SETS = 12  # an update
# by name, what differs from the defaults, which are the papers'
PRESETS: dict[str, dict[str, Value]] = {
    RECOMMENDED: {
        "method": "Diffusion-DPO",
        "learn_from": NOISED,
        "learning_rate": 3e-3,
        "dpo_beta": 2000.0,
        "caption_dropout": 0.0,
        "targets": "all linear",
        "beta": 100.0,
        "clip": 0.0,
        "weighting": "standardised",
        "leash": 0.85,
        "nft_beta": 0.1,  # a round's few updates by 1 hardly move
    },
    PAPER: {},
}
# of RECOMMENDED what is otherwise for flow models: what a prediction of theirs changes by moves an image by
# that times sigma, of at most 1, where other models' sigma is up to 15. The errors of their predictions, a
# velocity's, are larger for that
FLOW: dict[str, Value] = {"learning_rate": 9e-3, "dpo_beta": 300.0}


def sized(strength: str, sets: int, flow: bool = False) -> dict[str, Value]:
    """What differs from the defaults under a preset's name where so many sets are learned from, by a flow
    model or another.

    As recommended, an update sees SETS of them, or fewer under as many more noises, and a round has about
    UPDATES: so a round of few takes as long as one of many, until there are hundreds.
    """
    preset = PRESETS[strength]
    if strength != RECOMMENDED:
        return preset
    together = max(1, min(SETS, sets))
    return (
        preset
        | (FLOW if flow else {})
        | {
            "sets_per_update": together,
            "draws_per_set": -(-SETS // together),
            "epochs": -(-UPDATES * together // max(1, sets)),
        }
    )


def resolved(given: Mapping[str, Value]) -> tuple[Settings, StepSettings]:
    """(Settings, StepSettings) of values by name; what is not given has its method's default.

    A method's own setting keeps its default with any other method, whatever is given for it. Names that are
    no settings are passed over. Raises ValueError for a value that its setting cannot have.
    """
    method = str(given.get("method", Settings().method))
    values: dict[str, Any] = {
        name: about.defaults.get(method, about.default) for name, about in TABLE.items()
    }
    for name, about in TABLE.items():
        is_own = about.own_of is None or method in about.own_of
        if name in given and is_own and not (about.defaults and given[name] == AS_METHOD):
            values[name] = about.taken(name, given[name])
    if METHODS[method].terms == NOISED and values["learn_from"] == RECORDED:
        values["learn_from"] = NOISED
    own, step = [{f.name: values[f.name] for f in fields(kind)} for kind in (Settings, StepSettings)]
    return Settings(**own), StepSettings(**step)
