"""Which state of a run goes on from which, told from their records alone.

A round's key (progress.py) hashes the state that it started from, its settings and its data. The keys of a
state's rounds are therefore its whole past. Records of earlier versions have rounds without keys, or no
rounds.
"""

import re
from collections.abc import Iterator

from .files import name_of
from .record import Record

# what a run may not change half way, because its LoRA would no longer fit
SHAPE = ("rank", "alpha", "targets", "adapter")
NOT_PAST = "it is not what this LoRA goes on from"
LONGEST = 100  # characters of a run's name


def identity(record: Record) -> str:
    """A name of a state. Equal states have the same name, whenever they were saved or looked at."""
    last = (record.get("history") or [])[-1:]
    described = {name: value for name, value in record.items() if name not in ("saved", "format", "look")}
    return name_of(described | {"history": last})


def why_not(there: Record | None, record: Record, head: str | None = None) -> str:
    """Why a state may not replace the one that is there, as a clause about that one; "" where it may.

    It may where its rounds begin with all rounds that are there. It also may where the state that is there is
    still the one from when it was loaded (`head` is that one's identity), though it was loaded from an
    earlier checkpoint.
    """
    if there is None or not (there["step"] or there["rounds"]):
        return ""
    if there.get("model") != record.get("model"):
        return "it is a run on another base model"
    old, new = there["settings"], record["settings"]
    differ = [name for name in SHAPE if there["step"] and old.get(name) != new.get(name)]
    if differ:
        return (
            f"it was started with {' and '.join(f'{name} {old.get(name)}' for name in differ)}, and this "
            f"LoRA has {' and '.join(f'{name} {new.get(name)}' for name in differ)}"
        )
    if identity(there) in (head, identity(record)) or is_past(there, record):
        return ""
    return NOT_PAST


def is_past(earlier: Record, later: Record) -> bool:
    """Whether a state's rounds are the first rounds of another."""
    ours, theirs = ([round_.get("key") for round_ in record["rounds"]] for record in (earlier, later))
    return bool(ours) and None not in ours and theirs[: len(ours)] == ours


def branch_names(name: str) -> Iterator[str]:
    """Names for what is kept beside a run, in the order to try them."""
    stem, _, number = re.findall(r"^(.+?)( branch (\d+))?$", name)[0]
    for following in range(int(number or 1) + 1, 10**6):
        ending = f" branch {following}"
        yield stem[: LONGEST - len(ending)].rstrip(" .") + ending
