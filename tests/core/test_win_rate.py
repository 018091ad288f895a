"""The win rate of a blind comparison: its interval, and when there are enough answers."""

import pytest
import scipy.stats

from d3po_core.training.implicit import NORMAL_95
from d3po_core.training.win_rate import LEAST, NORMAL_EARLY, WinRate


@pytest.mark.parametrize("wins, losses", [(0, 9), (13, 7), (20, 0), (350, 650)])
@pytest.mark.parametrize("normal", [NORMAL_95, NORMAL_EARLY])
def test_the_interval_is_wilsons_at_both_levels(wins, losses, normal):
    level = 2 * scipy.stats.norm.cdf(normal) - 1
    theirs = scipy.stats.binomtest(wins, wins + losses).proportion_ci(level, method="wilson")
    assert WinRate(wins, losses).interval(normal) == pytest.approx((theirs.low, theirs.high), abs=1e-6)


def test_ties_count_half():
    rate = WinRate(wins=5, losses=2, ties=3)
    assert (rate.answers, rate.share) == (10, 0.65)
    assert WinRate(6, 4, 0).interval() == WinRate(5, 3, 2).interval()


def test_without_answers_anything_is_possible():
    assert (WinRate().share, WinRate().interval(), WinRate().verdict(True)) == (0.5, (0.0, 1.0), "open")


@pytest.mark.parametrize(
    "answers, early, complete",
    [
        ((5, 0, 0), "open", "open"),  # 2 / 2**5: six in a hundred
        ((6, 0, 0), "open", "better"),
        ((0, 7, 0), "open", "worse"),
        ((8, 0, 0), "better", "better"),
        ((0, 8, 0), "worse", "worse"),
        ((14, 6, 0), "open", "open"),
        ((15, 5, 0), "open", "better"),
        ((30, 30, 30), "open", "open"),
        ((45, 45, 10), "same", "same"),
        ((0, 0, 100), "same", "same"),
    ],
)
def test_the_verdict_needs_more_while_it_is_looked_at_after_each_answer(answers, early, complete):
    rate = WinRate(*answers)
    assert (rate.verdict(False), rate.verdict(True)) == (early, complete)


@pytest.mark.parametrize("complete, chance_of_one", [(True, (0.3, 0.4)), (False, (0.03, 0.05))])
def test_looking_after_each_answer_rarely_sees_what_is_not_there(complete, chance_of_one):
    """The chance that 100 answers drawn by a coin lead to a verdict on the way, exactly: a walk whose paths
    end where there is one."""
    paths, found = {0: 1.0}, 0.0
    for answers in range(1, 101):
        steps = {}
        for wins, chance in paths.items():
            for more in (0, 1):
                verdict = WinRate(wins + more, answers - wins - more).verdict(complete)
                if verdict in ("better", "worse"):
                    found += chance / 2
                else:
                    steps[wins + more] = steps.get(wins + more, 0) + chance / 2
        paths = steps
    assert chance_of_one[0] < found < chance_of_one[1]


def test_as_many_as_all_agree_by_chance_in_one_of_twenty_sessions_tell_something():
    assert 2 * 0.5**LEAST < 0.05 < 2 * 0.5 ** (LEAST - 1)
