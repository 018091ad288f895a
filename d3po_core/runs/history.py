"""A run's metrics over its updates: as a list of {metric: float}, as one table, as curves.

The table is float64 [updates, metrics]. Not every metric is measured at every update, and a measured one may
be infinite or NaN. What was not measured is a NaN with bits of its own, as R marks NA (the payload, 1954, is
R's).
"""

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from .record import Metrics

Table: TypeAlias = NDArray[np.float64]
Curves: TypeAlias = dict[str, Table]

NOT_MEASURED = np.uint64(0x7FF8_0000_0000_07A2).view(np.float64)


def to_table(history: Sequence[Mapping[str, float]]) -> tuple[list[str], Table]:
    """(names of the metrics in the order they first appear, table) of a list of {metric: float}."""
    names = list(dict.fromkeys(name for metrics in history for name in metrics))
    table = np.empty((len(history), len(names)))
    for update, metrics in enumerate(history):
        table[update] = [metrics.get(name, NOT_MEASURED) for name in names]
    return names, table


def from_table(names: Sequence[str], table: Table) -> list[Metrics]:
    """The list that `to_table` was given. Raises ValueError where the table does not fit the names."""
    rows, measured = table.tolist(), is_measured(table)
    history = [dict(zip(names, row, strict=True)) for row in rows]
    for update, column in zip(*np.nonzero(~measured)):
        del history[update][names[column]]
    return history


def curves(names: Sequence[str], table: Table) -> Curves:
    """{metric: float64 [updates]}, NaN where it was not measured."""
    return dict(zip(names, table.T, strict=True))


def is_measured(table: Table) -> NDArray[np.bool_]:
    measured: NDArray[np.bool_] = table.view(np.uint64) != NOT_MEASURED.view(np.uint64)
    return measured
