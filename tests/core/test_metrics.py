"""The names of metrics: runs on disk and workflows hold them, so that they stay."""

import pytest

from d3po_core.training import metrics

NAMES = {
    "LOSS": "loss",
    "MARGIN": "margin",
    "ACCURACY": "implicit accuracy",
    "WINNER": "winner log-ratio",
    "LOSER": "loser log-ratio",
    "KL": "KL to reference",
    "CLIP_FRACTION": "clip fraction",
    "GRADIENT_NORM": "gradient norm",
    "HELD_OUT_ACCURACY": "held-out accuracy",
    "HELD_OUT_MARGIN": "held-out margin",
    "HELD_OUT_KL": "held-out KL to reference",
    "HELD_OUT_PAIRS": "held-out pairs",
}


def test_metrics_have_the_names_that_files_hold():
    assert {name: getattr(metrics, name) for name in NAMES} == NAMES
    assert metrics.of_quarter(metrics.MARGIN, 3) == "margin, noise quarter 3"


@pytest.mark.parametrize("name", NAMES.values())
def test_a_name_is_parted_into_metric_and_quarter(name):
    assert metrics.parted(name) == (name, None)
    for quarter in metrics.QUARTERS:
        assert metrics.parted(metrics.of_quarter(name, quarter)) == (name, quarter)


@pytest.mark.parametrize(
    "name", ["1", "", "margin, noise quarter 5", "margin, noise quarter", "noise quarter 1"]
)
def test_a_name_that_is_of_no_quarter_stays_whole(name):
    assert metrics.parted(name) == (name, None)


def test_held_out_metrics_are_told_from_those_of_training():
    assert metrics.held_out("held-out margin") == "margin" and metrics.held_out("margin") is None
