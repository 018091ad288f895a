"""A run's metrics over its updates: as a list of {metric: float}, as one table, as curves.

The table is float64 [updates, metrics]. Not every metric is measured at every update, and one that is may be
infinite or NaN: what was not measured is a NaN of its own, told by its bits, as R tells NA (its payload is
R's, 1954).
"""

import numpy as np

NOT_MEASURED = np.uint64(0x7FF8_0000_0000_07A2).view(np.float64)


def to_table(history):
    """(names of the metrics in the order they first appear, table) of a list of {metric: float}."""
    names = list(dict.fromkeys(name for metrics in history for name in metrics))
    table = np.empty((len(history), len(names)))
    for update, metrics in enumerate(history):
        table[update] = [metrics.get(name, NOT_MEASURED) for name in names]
    return names, table


def from_table(names, table):
    """The list that `to_table` was given. Raises ValueError where the table has not one column for each
    name."""
    rows, measured = table.tolist(), is_measured(table)
    history = [dict(zip(names, row, strict=True)) for row in rows]
    for update, column in zip(*np.nonzero(~measured)):
        del history[update][names[column]]
    return history


def curves(names, table):
    """{metric: float64 [updates]}, NaN where it was not measured."""
    return dict(zip(names, table.T, strict=True))


def is_measured(table):
    return table.view(np.uint64) != NOT_MEASURED.view(np.uint64)
