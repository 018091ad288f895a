"""Pictures of curves: what is asked for, what is drawn where, and that they are the same every time."""

import math
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from d3po_core.runs import plots
from d3po_core.runs.plots import draw, panels, smooth, thin
from d3po_core.training.metrics import SHOWN

ROOT = Path(__file__).resolve().parents[2]
NAN = math.nan
BLUE, ORANGE, GREEN = ((0, 114, 178), (213, 94, 0), (0, 158, 115))
SMALL = (400, 300)


def curves(updates=40, **more):
    x = np.linspace(0, 1, updates)
    return {
        "loss": 0.69 - 0.1 * x,
        "margin": 3 * x + 0.1 * np.sin(40 * x),
        "implicit accuracy": 0.5 + 0.4 * x,
        "winner log-ratio": 1e-4 * x,
        "loser log-ratio": -2e-4 * x,
        "KL to reference": x**2,
        **more,
    }


def quarters(updates=40):
    return {f"margin, noise quarter {k}": k * np.linspace(0, 1, updates) for k in (1, 2, 3, 4)}


def where(picture, colour):
    """(x, y) of the pixels of exactly this colour."""
    y, x = np.nonzero((picture == colour).all(-1))
    return x, y


# --- which panels ---


def test_every_metric_asked_for_has_a_panel_in_that_order():
    runs = {"a": curves(), "b": curves(3)}
    assert panels(runs, ("margin", "loss")) == {"margin": ["margin"], "loss": ["loss"]}
    assert list(panels(runs)) == list(SHOWN)


def test_names_are_known_in_any_case_and_drawn_once():
    assert panels({"a": curves()}, ("kl to Reference", "KL to reference")) == {
        "KL to reference": ["KL to reference"]
    }


def test_quarters_share_a_panel():
    names = [f"margin, noise quarter {k}" for k in (1, 2, 3, 4)]
    assert panels({"a": quarters()}, ("Margin by noise quarter",)) == {"margin by noise quarter": names}
    assert panels({"a": quarters()}, (names[2],)) == {names[2]: [names[2]]}


def test_of_the_usual_metrics_those_that_no_run_has_are_left_out():
    assert list(panels({"other pack": {"loss": [1.0]}})) == ["loss"]


@pytest.mark.parametrize(
    "metrics, told",
    [
        (("loss", "los"), "los cannot be drawn"),
        (("margin",), "margin cannot be drawn"),
        ((), "name at least one"),
        (
            ("loss", "clip fraction", "x by noise quarter"),
            "clip fraction, x by noise quarter cannot be drawn",
        ),
        (("held-out accuracy",), "held-out accuracy cannot be drawn"),
        (("never",), "never cannot be drawn"),
    ],
)
def test_a_metric_that_there_is_not_is_an_error_that_lists_those_there_are(metrics, told):
    runs = {"a": {"loss": [1.0], "never": [NAN]}, "b": {"gradient norm": [1.0]} | quarters()}
    with pytest.raises(
        ValueError, match=f"metrics: {told}.*There are: loss, gradient norm, margin by noise quarter$"
    ):
        draw(runs, metrics, SMALL)


# --- the moving average and the thinning ---


@pytest.mark.parametrize("weight", [0.0, 0.5, 0.9, 0.99])
def test_the_moving_average_is_the_weighted_mean_of_all_before(weight):
    values = np.random.default_rng(0).normal(size=50)
    weights = [weight ** np.arange(n, -1, -1.0) for n in range(50)]
    expected = [float(w @ values[: n + 1] / w.sum()) for n, w in enumerate(weights)]
    np.testing.assert_allclose(smooth(values, weight), expected, rtol=1e-12)


@given(st.integers(1, 5000), st.integers(4, 600), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_a_thinned_curve_keeps_its_peaks_and_its_order(n, most, seed):
    x, y = np.arange(n), np.random.default_rng(seed).normal(size=n)
    short_x, short_y = thin(x, y, most)
    assert len(short_x) <= max(most, 4) and (np.diff(short_x) > 0).all() and (short_y == y[short_x]).all()
    assert short_y.min() == y.min() and short_y.max() == y.max()
    if n <= most:
        assert len(short_x) == n


# --- the picture ---


@pytest.mark.parametrize("size", [(840, 520), (1600, 1200), (321, 241), (829, 577)])
def test_the_picture_has_the_size_asked_for(size):
    picture = draw({"a": curves(), "b": curves(7)}, size=size)
    assert picture.shape == (size[1], size[0], 3) and picture.dtype == np.uint8
    assert (picture[:4] == 255).all() and (picture[:, -4:] == 255).all(), "something is cut off at the edge"


def test_a_curve_goes_where_its_values_are():
    """A straight line from (1, 0) to (101, 1): its pixels lie on a line, lowest left and highest right."""
    x, y = where(draw({"a": {"loss": np.linspace(0, 1, 101)}}, ("loss",), (800, 600)), BLUE)
    line = y > 80  # without the legend
    x, y = x[line], y[line]
    slope, offset = np.polyfit(x, y, 1)
    assert len(x) > 200 and np.abs(slope * x + offset - y).max() < 3 and slope < 0
    assert x.max() - x.min() > 600 and y.max() - y.min() > 350


def test_a_shorter_run_ends_earlier():
    picture = draw({"a": {"loss": np.zeros(100)}, "b": {"loss": np.ones(50)}}, ("loss",), (800, 600))
    ends = [max(x[y > 80]) - min(x[y > 80]) for x, y in (where(picture, BLUE), where(picture, ORANGE))]
    assert ends[1] / ends[0] == pytest.approx(49 / 99, abs=0.01)


def test_smoothing_draws_the_average_strongly_over_the_measured_curve_faintly():
    values = {"a": {"loss": np.resize([0.0, 1.0], 60)}}
    raw, averaged = (draw(values, ("loss",), (800, 600), smoothing) for smoothing in (0.0, 0.95))
    heights = [np.ptp(y[y > 80]) for _, y in (where(raw, BLUE), where(averaged[:, 200:], BLUE))]
    assert heights[1] < 0.15 * heights[0]
    faint = np.ptp(np.nonzero((averaged[80:, 200:790] < 245).any(-1) & (averaged[80:, 200:790, 2] > 220))[0])
    assert faint > 0.9 * heights[0]


def test_held_out_figures_are_points_at_their_updates_and_not_smoothed():
    sparse = np.full(100, NAN)
    sparse[[24, 49, 99]] = 0.5, 0.9, 0.6
    runs = {"a": {"loss": np.zeros(100), "held-out accuracy": sparse}}
    one, other = (draw(runs, ("held-out accuracy",), (800, 600), smoothing) for smoothing in (0.0, 0.9))
    assert (one == other).all()
    x, y = (each[where(one, BLUE)[1] > 80] for each in where(one, BLUE))
    low, high, last = x[y.argmax()], x[y.argmin()], x.max()
    assert (high - low) / (last - low) == pytest.approx(25 / 75, abs=0.02)


def test_a_curve_goes_on_over_what_was_not_measured():
    gaps = np.where(np.arange(60) % 7 == 3, np.linspace(0, 1, 60), NAN)
    picture = draw({"a": {"loss": gaps}}, ("loss",), (800, 600))
    x, y = where(picture, BLUE)
    assert set(range(x[y > 80].min(), x[y > 80].max())) == set(x[y > 80]) - {x[y > 80].max()}


def test_quarters_are_four_shades_of_the_runs_colour():
    picture = draw({"a": quarters()}, ("margin by noise quarter",), (800, 600))
    right = picture[:, 700:780].reshape(-1, 3)
    for paleness in plots.PALENESS:
        shade = tuple(round(c * (1 - paleness) + 255 * paleness) for c in BLUE)
        assert (right == shade).all(-1).sum() > 20


def test_a_run_without_the_metric_is_named_beside_the_title():
    runs = {"a": {"loss": [1.0, 2.0], "margin": [0.0, 1.0]}, "b": {"loss": [2.0, 1.0]}}
    told = draw(runs, ("margin",), (800, 600))
    assert (told == draw(runs | {"b": runs["b"] | {"margin": [NAN, NAN]}}, ("margin",), (800, 600))).all()
    without = draw(runs | {"b": {"margin": [0.0, 1.0]}}, ("margin",), (800, 600))
    for picture, named in ((told, True), (without, False)):
        assert (picture[40:75, 650:790] < 130).any() == named
    assert (told[40:75, 650:790] < 130).any(-1).sum() < (
        draw({"a": runs["a"], "bbb": {}}, ("margin",), (800, 600))[40:75, 650:790] < 130
    ).any(-1).sum()


@pytest.mark.parametrize(
    "values",
    [
        [0.5],
        [0.0],
        [0.0] * 30,
        [math.log(2)] * 30,
        [1e-300, 2e-300],
        [1e300, -1e300],
        [NAN, 1.0, NAN],
        [math.inf, 1.0, -math.inf, 2.0],
        [0.7, 0.7 + 1e-16],
        list(range(9)),
        [-1e-9] * 2,
    ],
    ids=str,
)
@pytest.mark.parametrize("smoothing", [0.0, 0.99])
def test_every_curve_can_be_drawn(values, smoothing, recwarn):
    x, y = where(
        draw(
            {"a": {"loss": values, "held-out accuracy": values}},
            ("loss", "held-out accuracy"),
            (800, 600),
            smoothing,
        ),
        BLUE,
    )
    for top in (70, 330):  # one panel above the other
        assert ((y > top) & (y < top + 200)).sum() >= 3, "nothing of it is to be seen"
    assert not recwarn.list


def test_a_level_line_is_in_the_middle_of_its_panel():
    x, y = where(
        draw({"a": {"loss": math.log(2) + 1e-8 * np.sin(np.arange(50))}}, ("loss",), (800, 600)), BLUE
    )
    assert np.ptp(y[y > 80]) < 5 and 250 < y[y > 80].mean() < 350


def test_many_long_names_and_many_metrics_fit(recwarn):
    runs = {f"run {i} " + "with a rather long name " * 3: curves() for i in range(22)}
    for size in ((840, 520), (1600, 1200)):
        picture = draw(runs, SHOWN[:2], size)
        assert (picture[:, -4:] == 255).all() and picture.shape == (size[1], size[0], 3)
    draw(
        {"$a_b$": {f"m{i} $x^2$": [1.0, 2.0] for i in range(13)}},
        [f"m{i} $x^2$" for i in range(13)],
        (840, 520),
    )
    assert not recwarn.list


def test_a_long_run_is_drawn_in_seconds():
    noise = np.random.default_rng(0).normal(size=300_000)
    x, y = where(draw({"a": {"loss": noise}}, ("loss",), (800, 600)), BLUE)
    assert len(x) > 10_000 and np.ptp(x[y > 80]) > 600


# --- the same every time ---

PRINT_HASH = """
import hashlib, numpy as np
from d3po_core.runs.plots import draw
x = np.linspace(0, 1, 40)
runs = {"a": {"loss": x, "held-out accuracy": x}, "b": {"loss": -x}}
picture = draw(runs, ("loss", "held-out accuracy"), (640, 400), 0.9)
print(hashlib.sha256(picture.tobytes()).hexdigest())
"""


def test_every_process_draws_the_same_bits():
    told = {
        subprocess.run(
            [sys.executable, "-c", PRINT_HASH], cwd=ROOT, text=True, capture_output=True, check=True
        ).stdout
        for _ in range(2)
    }
    assert len(told) == 1 and len(told.pop()) == 65


def test_threads_draw_the_same_bits():
    jobs = [({f"run {i}": curves(20 + i), "other": curves(9)}, SHOWN, (480, 320), 0.5) for i in range(4)]
    alone = [draw(*job) for job in jobs]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda job: draw(*job), jobs * 2))
    assert all((one == other).all() for one, other in zip(together, alone * 2))
    assert not (alone[0] == alone[1]).all()


@pytest.mark.parametrize("style", ["dark_background", "ggplot", "classic", "fivethirtyeight"])
def test_another_packs_style_neither_shows_nor_changes(style):
    runs = {"a": curves() | quarters(), "b": curves(9)}
    metrics = (*SHOWN, "margin by noise quarter")
    before = draw(runs, metrics, (840, 520), 0.5)
    from matplotlib import style as styles

    with styles.context(style):
        held = dict(matplotlib.rcParams)
        told = draw(runs, metrics, (840, 520), 0.5)
        assert dict(matplotlib.rcParams) == held
    for colour in ((255, 255, 255), BLUE, ORANGE):
        one, other = (len(where(picture, colour)[0]) for picture in (before, told))
        assert other == pytest.approx(one, rel=0.2)


def test_pyplot_is_not_touched():
    code = PRINT_HASH + "import sys; assert 'matplotlib.pyplot' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
