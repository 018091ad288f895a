"""Preferences: a trajectory, its pairs, and what losses of single candidates learn from."""

import pytest

from d3po_core.candidates.preferences import Preferences


def test_preferences_refuse_pairs_of_candidates_that_were_not_recorded(toy):
    trajectory = toy.record(toy.Denoiser(toy.net()), candidates=2)
    assert Preferences(trajectory, ((1, 0),)).pairs == ((1, 0),)
    with pytest.raises(ValueError, match="no candidate 2"):
        Preferences(trajectory, ((0, 2),))


@pytest.fixture
def trajectory(toy):
    return toy.record(toy.Denoiser(toy.net()), candidates=3)


def test_rewards_are_the_scores_or_else_wins_minus_losses_or_else_the_thumbs(trajectory):
    assert Preferences(trajectory, (), scores=(2.0, None, -1.5)).rewards == {0: 2.0, 2: -1.5}
    assert Preferences(trajectory, ((2, 0), (2, 1), (0, 1))).rewards == {0: 0.0, 1: -2.0, 2: 2.0}
    assert Preferences(trajectory, ((2, 0),), liked=(True, None, True)).rewards == {0: -1.0, 2: 1.0}
    assert Preferences(trajectory, (), liked=(False, None, True)).rewards == {0: -1.0, 2: 1.0}
    assert Preferences(trajectory, ()).rewards == {}


def test_labels_are_the_thumbs_or_else_the_side_of_the_mean_reward(trajectory):
    assert Preferences(trajectory, (), liked=(True, None, True)).labels == {0: True, 2: True}
    assert Preferences(trajectory, ((2, 0),), liked=(None, False, None)).labels == {
        0: False,
        1: False,
        2: True,
    }
    assert Preferences(trajectory, ((2, 0),), liked=(True, None, None)).labels == {0: True, 2: True}
    assert Preferences(trajectory, (), scores=(1.0, 2.0, 6.0)).labels == {0: False, 1: False, 2: True}
    assert Preferences(trajectory, ((2, 0), (2, 1), (0, 1))).labels == {1: False, 2: True}
    assert Preferences(trajectory, (), scores=(0.1, 0.1, 0.1)).labels == {}, (
        "their floating-point sum / 3 is above 0.1"
    )


@pytest.mark.parametrize("wrong", [dict(scores=(1.0, 2.0)), dict(liked=(True,))])
def test_scores_and_thumbs_fit_the_candidates(trajectory, wrong):
    with pytest.raises(ValueError, match="for 3 candidates"):
        Preferences(trajectory, (), **wrong)
