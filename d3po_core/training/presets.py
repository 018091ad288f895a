"""Settings by name, and the settings that a mapping of some of them comes to."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from .methods import METHODS, NOISED, RECORDED
from .setting import Value
from .settings import AS_METHOD, TABLE, Settings, StepSettings

# by name, what differs from the defaults, which are the papers'
PRESETS: dict[str, dict[str, Value]] = {"paper": {}}


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
