"""Search in the initial noise: the best of N, the walk over neighbours, and what a way along a gradient
keeps."""

import math

import numpy as np
import pytest
import scipy.stats
import torch

from d3po_core.search import reno
from d3po_core.search.ascent import Look, NonFinite
from d3po_core.search.doodl import ascended
from d3po_core.search.noise import NoScore, best_first, gain, neighbours, searched


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_the_best_come_first_and_what_has_no_score_is_left_out():
    scores = np.array([1.0, np.nan, 3.0, 2.0, -np.inf, 3.0])
    assert best_first(scores) == [2, 5, 3, 0]
    known = [1.0, 3.0, 2.0, 3.0]
    assert gain(scores) == pytest.approx(scipy.stats.zscore(known, ddof=1).max())
    assert gain(np.array([2.0, 2.0])) == gain(np.array([5.0, np.nan])) == 0


@pytest.mark.parametrize("step", [0.0, 0.3, 1.0])
def test_neighbours_are_unit_gaussian_and_correlate_with_their_pivot(step):
    pivot = torch.randn(1, 4, 50, 50, generator=generator(), dtype=torch.float64)
    near = neighbours(pivot, 3, step, generator(1)).flatten(1)
    assert (
        scipy.stats.kstest(near.flatten(), "norm").pvalue > 1e-3 if step else (near == pivot.flatten()).all()
    )
    for one in near:
        assert float(np.corrcoef(one, pivot.flatten())[0, 1]) == pytest.approx((1 - step**2) ** 0.5, abs=0.05)


def bright(noises):
    return noises.flatten(1).mean(1).double().numpy(), [f"{float(one.sum()):.3f}" for one in noises]


def test_a_search_never_falls_and_gives_what_it_judged():
    pivot = torch.randn(1, 1, 4, 4, generator=generator())
    asked = []

    def judge(noises):
        asked.append(len(noises))
        scores, made = bright(noises)
        return np.where(scores > 0.3, np.nan, scores), made  # on which it fails

    found = searched(pivot, judge, 6, 3, 0.4, generator(2))
    assert asked == [4, 3, 3, 3, 3, 3] and len(found.history) == 7
    assert found.history == sorted(found.history) and found.history[0] < found.history[-1] <= 0.3
    scores, made = bright(found.noise)
    assert found.history[-1] == scores[0] and [found.made] == made
    again = searched(pivot, judge, 6, 3, 0.4, generator(2))
    assert again.history == found.history


def test_a_pivot_without_a_score_is_left_and_nothing_to_go_by_is_an_error():
    pivot = torch.zeros(1, 1, 2, 2)
    first = lambda noises: (np.where(noises.flatten(1).any(1), 1.0, np.nan), noises)
    found = searched(pivot, first, 1, 1, 0.5, generator())
    assert math.isnan(found.history[0]) and found.history[1] == 1 and found.noise.any()
    with pytest.raises(NoScore, match="no picture has a score"):
        searched(pivot, lambda noises: (np.full(len(noises), np.inf), noises), 2, 2, 0.5, generator())


# --- along a gradient ---


def hill(noise):
    """A score whose gradient is 2 (top - noise)."""
    top = torch.arange(4.0).reshape(1, 1, 2, 2)
    score = -(noise - top).square().sum()
    return Look(float(score), noise, lambda: 2 * (top - noise))


def test_a_way_along_the_gradient_keeps_the_norm_and_gives_the_best():
    start = torch.randn(1, 1, 2, 2, generator=generator(3))
    found = ascended(start, hill, 60, 0.1)
    assert len(found.history) == 61 and max(found.history) > found.history[0]
    assert hill(found.noise).score == max(found.history) == found.score
    assert torch.equal(found.made, found.noise) and found.noise.norm() == pytest.approx(float(start.norm()))
    # the highest place on the sphere is in the top's direction
    top = torch.arange(4.0).reshape(1, 1, 2, 2)
    assert torch.cosine_similarity(found.noise.flatten(), top.flatten(), 0) > 0.999


def test_an_update_goes_by_its_share_of_the_norm_whatever_the_gradient_s_size():
    start = torch.tensor([3.0, 4.0]).reshape(1, 1, 1, 2)
    seen = []

    def look(noise):
        seen.append(noise)
        return Look(0.0, None, lambda: 1e-9 * torch.tensor([4.0, -3.0]).reshape(1, 1, 1, 2))

    ascended(start, look, 1, 0.2)
    moved = start + 0.2 * torch.tensor([4.0, -3.0]).reshape(1, 1, 1, 2)  # 0.2 of the norm 5, across it
    torch.testing.assert_close(seen[1], moved * 5 / moved.norm())


def test_a_way_ends_without_a_gradient_and_says_what_is_not_finite():
    start = torch.ones(1, 1, 2, 2)
    assert ascended(start, lambda noise: Look(1.0, None, lambda: 0 * noise), 5, 0.1).history == [1.0]
    with pytest.raises(NonFinite, match="the gradient after 0 updates"):
        ascended(start, lambda noise: Look(1.0, None, lambda: math.nan * noise), 5, 0.1)
    with pytest.raises(NonFinite, match="the score after 0 updates"):
        ascended(start, lambda noise: Look(math.inf, None, lambda: noise), 5, 0.1)


def test_the_likelihood_s_gradient_is_that_of_the_chi_distribution_of_its_norm():
    noise = 1.3 * torch.randn(1, 2, 3, 3, generator=generator(4), dtype=torch.float64)
    chi, found = scipy.stats.chi(noise.numel()), reno.by_likelihood(noise)
    for place in np.ndindex(*noise.shape):
        away = torch.zeros_like(noise)
        away[place] = 1e-5
        high, low = (chi.logpdf(float((noise + side * away).norm())) for side in (1, -1))
        assert float(found[place]) == pytest.approx((high - low) / 2e-5, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("scale", [1e-3, 1.0])
def test_reno_goes_as_torch_s_nesterov_along_a_score_and_its_norm_s_likelihood(scale):
    """The large gradients are cut, the small ones are not."""
    top, start = torch.arange(1.0, 5).reshape(1, 1, 2, 2), torch.randn(1, 1, 2, 2, generator=generator(3))
    score = lambda noise: -scale * (noise - top).square().sum()
    seen = []

    def look(noise):
        seen.append(noise)
        return Look(float(score(noise)), noise, lambda: 2 * scale * (top - noise))

    found = reno.ascended(start, look, 8, 0.5)
    own = start.clone().requires_grad_()
    descent = torch.optim.SGD([own], lr=0.5, momentum=0.9, nesterov=True)
    for noise in seen:
        torch.testing.assert_close(noise, own.detach(), rtol=1e-4, atol=1e-4)
        descent.zero_grad()
        norm = torch.linalg.vector_norm(own)
        (-score(own) + 0.01 * (norm**2 / 2 - 3 * norm.log())).backward()
        torch.nn.utils.clip_grad_norm_(own, 0.1)
        descent.step()
    assert len(found.history) == 9 and found.score == max(found.history) > found.history[0]
    assert float(score(found.noise)) == found.score and torch.equal(found.made, found.noise)
