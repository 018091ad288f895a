"""Curves of runs in one picture: a panel for each metric, a colour for each run.

They are drawn with matplotlib's objects, without pyplot: these share nothing between threads, and do not
touch what other packs draw. Colours, lines and fonts are set here, so that a style that another pack has set
does not show.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, TypeAlias

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import ArrayLike, NDArray

from ..training import metrics as named

Runs: TypeAlias = Mapping[str, Mapping[str, ArrayLike]]  # run -> metric -> [updates]
Points: TypeAlias = NDArray[np.float64]
Places: TypeAlias = NDArray[np.int64]

QUARTERS = " by noise quarter"
# Okabe and Ito's colours for every kind of colour vision, without yellow, which is too pale for a line on
# white
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)))  # for the second and the third seven runs
PALENESS = (0.65, 0.45, 0.22, 0.0)  # of the quarters, the one of least noise first
FONT = "DejaVu Sans"  # it comes with matplotlib: the same letters on every machine
INK, SOFT, GRID, PAPER = "#222222", "#666666", "#e4e4e4", "#ffffff"
RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
DPI = 128  # a power of two: a size in pixels is exact in inches


def draw(
    runs: Runs,
    metrics: Sequence[str] = named.SHOWN,
    size: tuple[int, int] = (1200, 800),
    smoothing: float = 0.0,
) -> NDArray[np.uint8]:
    """A picture of {run: {metric: [updates]}}, uint8 [height, width, 3]. The same input gives the same bits.

    metrics    names, a panel for each, see `panels`
    size       (width, height) in pixels
    smoothing  weight of the past in the exponential moving average that is drawn over the faint curve, 0 to
               below 1

    Values that are NaN (not measured at that update) or infinite are left out, and the curve joins their
    neighbours. Held-out metrics are points at the updates after which they were measured, joined and not
    smoothed. Raises ValueError as `panels` does.
    """
    drawn = panels(runs, metrics)
    width, height = size
    columns = _columns(len(drawn), width / height)
    rows = -(-len(drawn) // columns)
    scale = min(max(math.sqrt(width * height / len(drawn)) / 420, 0.85), 1.3)
    layout = ConstrainedLayoutEngine(h_pad=0.06 * scale, w_pad=0.07 * scale, hspace=0.0, wspace=0.0)
    figure = Figure((width / DPI, height / DPI), DPI, facecolor=PAPER, layout=layout)
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for place, (axis, (title, names)) in enumerate(zip(axes, drawn.items())):
        _panel(axis, title, names, runs, width // columns, smoothing, scale)
        if place + columns >= len(drawn):
            axis.set_xlabel("update", color=SOFT, size=6.5 * scale, family=FONT)
    for axis in axes[len(drawn) :]:
        axis.remove()
    _legend(figure, list(runs), width, scale)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels: NDArray[np.uint8] = np.asarray(canvas.buffer_rgba())[..., :3].copy()
    return pixels


def panels(runs: Runs, metrics: Sequence[str] = named.SHOWN) -> dict[str, list[str]]:
    """{title: [metrics whose curves it has]} of the panels that are asked for.

    "X by noise quarter" are the metrics "X, noise quarter 1" to 4. Case does not matter. Those that
    are shown by default are left out where no run has them, as long as one panel is left. Raises
    ValueError, naming the metrics there are, if no run has one of the others.
    """
    there = {
        name.casefold(): name
        for curves in runs.values()
        for name in curves
        if np.isfinite(curves[name]).any()
    }
    drawn: dict[str, list[str]] = {}
    missing: list[str] = []
    for metric in metrics:
        whole, quarters, _ = metric.casefold().partition(QUARTERS)
        wanted = [named.of_quarter(whole, k) for k in named.QUARTERS] if quarters else [whole]
        names = [there[name] for name in wanted if name in there]
        if names:
            drawn[_of_all_quarters(names[0]) if quarters else names[0]] = names
        else:
            missing.append(metric)
    unknown = [metric for metric in missing if metric not in named.SHOWN] or ([] if drawn else missing)
    if unknown or not drawn:
        wrong = (
            f"{', '.join(unknown)} cannot be drawn, as it was not measured"
            if unknown
            else "name at least one"
        )
        measured = ", ".join(dict.fromkeys(map(_of_all_quarters, there.values()))) or "none"
        raise ValueError(f"metrics: {wrong}. There are: {measured}")
    return drawn


def smooth(values: Points, weight: float) -> Points:
    """Exponential moving average without the bias of its start, [n] -> [n] (arXiv 1412.6980, section 3)."""
    sums = accumulate(values, lambda past, value: weight * past + (1 - weight) * value, initial=0.0)
    return np.array([total / (1 - weight**n) for n, total in enumerate(sums) if n])


def thin(x: Places, y: Points, most: int) -> tuple[Places, Points]:
    """About `most` points of a curve that look like all of them: the extremes of every stretch."""
    if len(x) <= most:
        return x, y
    stretches = np.array_split(np.arange(len(x)), most // 2)
    kept = np.unique(
        [i for part in stretches for i in (part[0] + y[part].argmin(), part[0] + y[part].argmax())]
    )
    return x[kept], y[kept]


# --- the parts of the picture ---


def _panel(
    axis: Axes,
    title: str,
    names: Sequence[str],
    runs: Runs,
    width: int,
    smoothing: float,
    scale: float,
) -> None:
    """Draw the curves that these metrics have in all runs, with title and key. width is in pixels."""
    lacking = []
    for number, (run, curves) in enumerate(runs.items()):
        drawn = [
            _curve(
                axis,
                curves[name],
                _style(number, _paleness(title, name)),
                named.held_out(name) is not None,
                2 * width,
                smoothing,
                scale,
            )
            for name in names
            if name in curves
        ]
        if not any(drawn):
            lacking.append(run)
    power = _frame(axis)
    heading = f"{title}, in 10{str(power).translate(RAISED)}" if power else title
    font: dict[str, Any] = dict(family=FONT, parse_math=False)
    axis.set_title(heading, loc="left", size=7.5 * scale, color=INK, weight="bold", **font)
    if lacking:
        room = _letters(0.9 * width, 6 * scale) - int(1.4 * len(heading)) - 2
        axis.set_title(
            _short(f"not in {', '.join(lacking)}", max(room, 12)),
            loc="right",
            size=6 * scale,
            color=SOFT,
            **font,
        )
    if title.endswith(QUARTERS):
        key = [
            Line2D([], [], color=_paler(INK, _paleness(title, name)), linewidth=1.3 * scale) for name in names
        ]
        words = [
            f"{name[-1]}{dict(zip('14', (' least noise', ' most noise'))).get(name[-1], '')}"
            for name in names
        ]
        axis.legend(key, words, loc="best", **_legend_look(6 * scale))
    _paint(axis, power, scale)


def _paint(axis: Axes, power: int, scale: float) -> None:
    """Give a panel its grid, its ticks, and labels in units of 10 ** power."""
    axis.set_facecolor(PAPER)
    axis.grid(True, color=GRID, linewidth=0.6, linestyle="-")
    axis.set_axisbelow(True)
    for side in axis.spines:
        axis.spines[side].set(visible=side in ("left", "bottom"), color=SOFT, linewidth=0.6)
    axis.tick_params(
        labelsize=6.5 * scale,
        labelcolor=SOFT,
        labelfontfamily=FONT,
        color=SOFT,
        width=0.6,
        length=2.5,
        direction="out",
        which="both",
    )
    axis.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10], integer=True))
    axis.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10], min_n_ticks=3))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda update, _: f"{update:.0f}"))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / 10.0**power:.6g}"))


def _curve(
    axis: Axes,
    values: ArrayLike,
    style: dict[str, Any],
    as_points: bool,
    most: int,
    smoothing: float,
    scale: float,
) -> bool:
    """Draw one curve with no more than `most` points. Returns whether there was anything to draw."""
    y = np.asarray(values, dtype=np.float64)
    x = np.flatnonzero(np.isfinite(y)) + 1
    y = y[x - 1]
    if as_points or len(x) == 1:
        axis.plot(*thin(x, y, most), marker="o", markersize=2.6 * scale, linewidth=0.7 * scale, **style)
    elif smoothing and len(x):
        axis.plot(
            *thin(x, y, most), linewidth=0.7 * scale, **style | {"alpha": 0.28, "zorder": 2, "linestyle": "-"}
        )
        axis.plot(*thin(x, smooth(y, smoothing), most), linewidth=1.5 * scale, **style)
    else:
        axis.plot(*thin(x, y, most), linewidth=1.1 * scale, **style)
    return len(x) > 0


def _style(number: int, paleness: float = 0.0) -> dict[str, Any]:
    return dict(
        color=_paler(COLOURS[number % len(COLOURS)], paleness),
        zorder=3,
        solid_capstyle="round",
        linestyle=DASHES[number // len(COLOURS) % len(DASHES)],
        solid_joinstyle="round",
    )


def _paleness(title: str, name: str) -> float:
    return PALENESS[int(name[-1]) - 1] if title.endswith(QUARTERS) else 0.0


def _frame(axis: Axes) -> int:
    """Set the limits with a margin, and return the power of ten that the title takes from the labels.

    Values that differ by no more than rounding become a level line in the middle.
    """
    low, high = axis.dataLim.intervaly
    if not low <= high:  # nothing was drawn
        low, high = 0.0, 1.0
    most = max(abs(low), abs(high))
    air = 0.06 * (high - low) if high - low > 1e-5 * most else 0.05 * (most or 1.0)
    axis.set_ylim(low - air, high + air)
    last = max(axis.dataLim.x1, 2.0)
    axis.set_xlim(1 - 0.02 * last, last * 1.02)
    power = math.floor(math.log10(most or 1.0))
    return power if power < -2 or power > 4 else 0


def _legend(figure: Figure, runs: Sequence[str], width: int, scale: float) -> None:
    size = 7 * scale
    letters = _letters(width, size)
    words = [_short(run, letters - 8) for run in runs]
    columns = min(len(runs), max(1, letters // (max(map(len, words)) + 7)))
    lines = [Line2D([], [], linewidth=1.8 * scale, **_style(number)) for number in range(len(runs))]
    figure.legend(lines, words, loc="outside upper left", ncols=columns, **_legend_look(size))


def _legend_look(size: float) -> dict[str, Any]:
    return dict(
        prop={"family": FONT, "size": size},
        labelcolor=INK,
        facecolor=PAPER,
        framealpha=0.8,
        edgecolor="none",
        handlelength=1.8,
        borderpad=0.2,
        labelspacing=0.3,
        columnspacing=1.6,
        handletextpad=0.6,
        numpoints=1,
        fancybox=False,
    )


def _columns(count: int, aspect: float) -> int:
    """How many panels to put side by side, so that each is nearest to three by two."""

    def off(columns: int) -> float:
        return abs(math.log(aspect / columns * -(-count // columns) / 1.5))

    return min(range(1, count + 1), key=off)


def _of_all_quarters(metric: str) -> str:
    """ "X, noise quarter 1" -> "X by noise quarter". Any other name is unchanged."""
    whole, quarter = named.parted(metric)
    return whole + QUARTERS if quarter else metric


def _paler(colour: str, by: float) -> str:
    return "#" + "".join(f"{round(int(colour[i : i + 2], 16) * (1 - by) + 255 * by):02x}" for i in (1, 3, 5))


def _letters(width: float, size: float) -> int:
    """About how many letters of a size in points fit into a width in pixels."""
    return int(width / (0.62 * size * DPI / 72))


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - most // 2 - 1]}…{text[-(most // 2) :]}"
