"""The loop in the official style that updates are timed against does the same work."""

import pytest

from d3po_core.training.loop import Settings
from tests.core.gradients import assert_same, gradients
from tools.bench_ranks import efficiency
from tools.bench_step import official, table


def test_the_official_style_has_the_gradient_of_an_update(recorded):
    adapter, (example, _) = recorded()
    pairs = example.preferences.pairs
    ours, _ = gradients(adapter, Settings(learning_rate=0.0, weight_decay=0.0, max_grad_norm=1e9), [example])
    for parameter in adapter.parameters():
        parameter.grad = None
    official(example.trajectory, pairs, example.denoise, adapter)
    assert_same(ours, [parameter.grad for parameter in adapter.parameters()], tolerance=1e-5)


def test_a_row_says_what_was_held_against_what():
    row = dict(model="small", steps=6, candidates=2, what="an update", against="the floor", ratio=1.014,
               low=0.99, high=1.1)  # fmt: skip
    assert table([row]).splitlines()[2] == ("| small | 6 | 2 | an update | the floor | 1.01 (0.99 to 1.10) |")


def test_what_is_sent_counts_less_the_longer_cards_compute():
    assert efficiency(weights=0, work=1e12, cards=8) == 1
    one, more = (efficiency(23e6, 35e12, 8, sets) for sets in (1, 4))
    assert 0.9 < one < more < 1
    assert efficiency(1.1e9 / 4 / 2, 60e12 / 4, 10**9) == pytest.approx(0.5)
