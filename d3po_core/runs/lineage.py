"""Which state of a run goes on from which, told from their records alone.

A round's key (progress.py) hashes the state that it started from, its settings and its data, so that the keys of a state's
rounds are its whole past. Records of earlier versions have rounds without keys, or none.
"""

import re

from .files import name_of

# what a run may not change half way, because its LoRA would no longer fit
SHAPE = ("rank", "alpha", "targets", "adapter")
NOT_PAST = "it is not what this LoRA goes on from"
LONGEST = 100  # characters of a run's name


def identity(record):
    """A name of a state: two that are equal, whenever they were saved, have the same."""
    last = (record.get("history") or [])[-1:]
    return name_of(
        {name: value for name, value in record.items() if name not in ("saved", "format")} | {"history": last}
    )


def why_not(there, record, head=None):
    """Why a state may not take the place of the one that is there, as a clause about that one; "" where it may.

    It may where its rounds begin with all that are there, or where what is there is still what was there when it was loaded
    (its identity: head), though it was loaded from an earlier checkpoint.
    """
    if there is None or not (there["step"] or there["rounds"]):
        return ""
    if there.get("model") != record.get("model"):
        return "it is a run on another base model"
    old, new = there["settings"], record["settings"]
    differ = [name for name in SHAPE if there["step"] and old.get(name) != new.get(name)]
    if differ:
        return (
            f"it was started with {' and '.join(f'{name} {old.get(name)}' for name in differ)}, and this LoRA has "
            f"{' and '.join(f'{name} {new.get(name)}' for name in differ)}"
        )
    if identity(there) in (head, identity(record)) or is_past(there, record):
        return ""
    return NOT_PAST


def is_past(earlier, later):
    """Whether a state's rounds are those that another one's begin with."""
    ours, theirs = ([round_.get("key") for round_ in record["rounds"]] for record in (earlier, later))
    return bool(ours) and None not in ours and theirs[: len(ours)] == ours


def branch_names(name):
    """Names for what is kept beside a run, in the order to try them."""
    name, _, number = re.fullmatch(r"(.+?)( branch (\d+))?", name).groups()
    for following in range(int(number or 1) + 1, 10**6):
        ending = f" branch {following}"
        yield name[: LONGEST - len(ending)].rstrip(" .") + ending
