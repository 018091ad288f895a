"""A taste: the features it sees, the regression, and how sure it is."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
import torch

from d3po_core.candidates.images import CleanCandidates
from d3po_core.candidates.preferences import Preferences
from d3po_core.taste.features import CELLS, MOST_BLOCKS, Eye, blocks, summary
from d3po_core.taste.head import (
    LEAST_SPREAD,
    RIDGES,
    best_over_worst,
    clearest,
    kernel,
    learned,
    solved,
    standardised,
)
from tests.core.noised import clean


def made(sets=6, candidates=5, sizes=(7, 12), seed=0, noise=0.0):
    """Features of sets, and rewards that are linear in them."""
    rng = torch.Generator().manual_seed(seed)
    directions = [torch.randn(size, generator=rng) for size in sizes]
    every, rewards = [], []
    for _ in range(sets):
        parts = [torch.randn(candidates, size, generator=rng) + 5 for size in sizes]
        liked = sum(part @ direction for part, direction in zip(parts, directions))
        liked = liked + noise * torch.randn(candidates, generator=rng)
        every.append(parts)
        rewards.append(dict(enumerate(liked.tolist())))
    return every, rewards


def primal(sets, rewards, new):
    """Ridge regression on all scaled features side by side, by numpy's least squares in float64: the mean
    over the ridges."""
    rows, targets = [], []
    for parts, given in zip(sets, rewards):
        rows.append([part.double().numpy() - part.double().numpy().mean(0) for part in parts])
        values = np.array(list(given.values()))
        targets.append((values - values.mean()) / values.std())
    stacked = [np.concatenate(of_part) for of_part in zip(*rows)]
    scales = []
    for part in stacked:
        own = np.sqrt((part**2).mean(0))
        scales.append(np.maximum(own, LEAST_SPREAD * own.mean()) * np.sqrt(part.shape[1] * len(stacked)))
    x = np.concatenate([part / by for part, by in zip(stacked, scales)], 1)
    y = np.concatenate(targets)
    weights = 0
    for ridge in RIDGES:
        tall = np.concatenate([x, np.sqrt(ridge) * np.eye(x.shape[1])])
        weights = weights + np.linalg.lstsq(tall, np.concatenate([y, np.zeros(x.shape[1])]), rcond=None)[0]
    weights = weights / len(RIDGES)
    centred = [part.double().numpy() - part.double().numpy().mean(0) for part in new]
    return np.concatenate([part / by for part, by in zip(centred, scales)], 1) @ weights


@pytest.mark.parametrize("sets", [1, 4])
def test_scores_are_those_of_ridge_regression_on_all_features(sets):
    known, rewards = made(sets)
    (new,), _ = made(1, seed=1)
    taste = learned(known, rewards)
    np.testing.assert_allclose(taste.scores(new), primal(known, rewards, new), atol=1e-5)


def test_what_is_liked_of_any_images_differs_as_scores_of_a_set_and_not_by_what_else_is_asked():
    known, rewards = made(4)
    (new,), _ = made(1, candidates=6, seed=1)
    taste = learned(known, rewards)
    liking = taste.liking(new)
    torch.testing.assert_close(liking - liking.mean(), taste.scores(new), rtol=0, atol=1e-5)
    apart = torch.cat([taste.liking([part[i : i + 1] for part in new]) for i in range(6)])
    torch.testing.assert_close(apart, liking, rtol=0, atol=1e-6)
    every = torch.cat([taste.liking(parts) for parts in known])
    assert abs(float(every.mean())) < 1e-5 and liking.std() > 0.1


def test_it_tells_what_it_was_not_shown_and_knows_how_well():
    known, rewards = made(12, noise=1.0)
    taste = learned(known, rewards)
    right = []
    for new, given in zip(*made(60, noise=1.0)):
        scores, liked = taste.scores(new), torch.tensor(list(given.values()))
        better, worse = (liked[:, None] > liked[None, :]).nonzero().T
        right.append((scores[better] > scores[worse]).float())
    share = float(torch.cat(right).mean())
    assert taste.trusted and taste.accuracy.low <= share <= taste.accuracy.high + 0.05
    assert share > 0.85


def test_where_judgements_mean_nothing_chance_is_as_often_below_a_share_as_the_share_says():
    chances = []
    for seed in range(60):
        known, _ = made(4, seed=seed)
        rng = np.random.default_rng(seed)
        chances.append(
            learned(known, [dict(enumerate(rng.permutation(5).astype(float))) for _ in known]).chance
        )
    assert scipy.stats.kstest(chances, "uniform").pvalue > 0.01


def test_what_is_guessed_of_a_set_is_learned_from_the_others_alone():
    known, rewards = made(4)
    taste, share = learned(known, rewards), []
    for i, given in enumerate(rewards):
        others = [j for j in range(4) if j != i]
        parts = [torch.cat([p[5 * j : 5 * j + 5] for j in others]) for p in taste.known]
        targets = torch.cat([standardised(torch.tensor(list(rewards[j].values())).double()) for j in others])
        scores = replace(taste, known=parts, weights=solved(kernel(parts, parts), targets)).scores(known[i])
        liked = torch.tensor(list(given.values()))
        better, worse = (liked[:, None] > liked[None, :]).nonzero().T
        share.append((scores[better] > scores[worse]).double())
    assert taste.accuracy.share == pytest.approx(float(torch.cat(share).mean()), abs=1e-9)


def test_one_set_says_nothing_about_others():
    taste = learned(*made(1))
    assert taste.accuracy is None and not taste.trusted


def test_sets_of_equal_rewards_are_passed_over_and_something_must_be_preferred():
    known, rewards = made(3)
    more = learned([*known, known[0]], [*rewards, dict.fromkeys(range(5), 1.0)])
    torch.testing.assert_close(more.weights, learned(known, rewards).weights)
    with pytest.raises(ValueError, match="nothing is preferred"):
        learned(known[:1], [dict.fromkeys(range(5), 1.0)])


def test_only_who_was_judged_is_learned_from():
    known, rewards = made(3)
    some = [{i: given[i] for i in (0, 2, 3)} for given in rewards]
    alone = [[part[[0, 2, 3]] for part in parts] for parts in known]
    renamed = [dict(enumerate(given.values())) for given in some]
    torch.testing.assert_close(learned(known, some).weights, learned(alone, renamed).weights)


def test_a_taste_takes_neither_scale_nor_zero_of_features_and_rewards():
    known, rewards = made(4)
    (new,), _ = made(1, seed=1)
    other = [[100 * part - 3 for part in parts] for parts in known]
    shifted = [{i: 7 * reward + 2 for i, reward in given.items()} for given in rewards]
    a, b = learned(known, rewards), learned(other, shifted)
    torch.testing.assert_close(
        a.scores(new), b.scores([100 * part - 3 for part in new]), rtol=1e-3, atol=1e-3
    )
    assert a.accuracy.share == b.accuracy.share


@pytest.mark.parametrize(
    "count, pairs",
    [(2, {(1, 0)}), (3, {(2, 0)}), (4, {(3, 0)}), (8, {(7, 0), (7, 1), (6, 0), (6, 1)}), (1, set())],
)
def test_the_best_of_a_set_are_preferred_over_its_worst(count, pairs):
    assert set(best_over_worst(torch.arange(count).double())) == pairs


def test_of_picks_the_clearest_pairs_are_kept(toy):
    images = clean(6)
    ranking = tuple((a, b) for a in range(6) for b in range(a + 1, 6))
    kept = clearest(Preferences(images, ranking, "picks"))
    assert set(kept.pairs) == {(0, 4), (0, 5), (1, 4), (1, 5)} and kept.source == "picks"
    best = Preferences(images, ((2, 0), (2, 1), (2, 5)))
    assert set(clearest(best).pairs) <= set(best.pairs) and clearest(best).pairs
    for nothing in (Preferences(images, ()), Preferences(images, (), liked=(True,) * 6)):
        assert clearest(nothing) == nothing


# --- features ---


class Net(torch.nn.Module):
    """A network with lists of blocks, one of them of sequences, as UNets and transformers have them."""

    def __init__(self, blocks=3):
        super().__init__()
        self.first = torch.nn.Linear(1, 1)
        self.down = torch.nn.ModuleList(
            torch.nn.Sequential(torch.nn.Conv2d(4, 4, 3, padding=1), torch.nn.SiLU()) for _ in range(blocks)
        )
        self.up = torch.nn.ModuleList(torch.nn.Conv2d(4, 4, 1) for _ in range(blocks))
        self.calls = 0

    def forward(self, x, sigma):
        self.calls += 1
        for several in (self.down, self.up):
            for block in several:
                x = x + block(x)
        return x


@pytest.fixture
def images():
    latents = torch.randn(5, 4, 8, 6, generator=torch.Generator().manual_seed(1))
    return CleanCandidates(latents, torch.linspace(0.03, 14, 1000), "epsilon", "set", "model")


def test_blocks_are_the_elements_of_lists_and_of_sequences_their_last():
    net = Net()
    assert blocks(net) == [*(element[-1] for element in net.down), *net.up]


def test_features_are_by_block_what_is_there_and_where(images):
    torch.manual_seed(0)
    net = Net()
    parts = Eye(net, per_pass=2).features(images, net)
    assert [part.shape for part in parts] == [(5, 8), (5, 64)] * 6
    assert net.calls == 1 + 3 and not any(block._forward_hooks for block in blocks(net))
    for a, b in zip(parts, Eye(net, per_pass=5).features(images, net)):
        torch.testing.assert_close(a, b)
    given = Eye(net).features(images, net, images.latents[3:])
    for a, b in zip(parts, given):
        torch.testing.assert_close(a[3:], b)


class Streams(torch.nn.Module):
    """Blocks as transformers' are: of a text and the image, in this order; before them one of the text
    alone."""

    def __init__(self):
        super().__init__()
        self.of_text = torch.nn.ModuleList([torch.nn.Linear(4, 4)])
        self.both = torch.nn.ModuleList([Both(), Both()])

    def forward(self, x, sigma):
        text = self.of_text[0](torch.ones(len(x), 7, 4))
        tokens = x.flatten(2).transpose(1, 2)
        for block in self.both:
            text, tokens = block(text, tokens)
        return tokens.transpose(1, 2).reshape(x.shape)


class Both(torch.nn.Module):
    def forward(self, text, tokens):
        return text + 0.05 * tokens.mean(1, keepdim=True), 1.5 * tokens


def test_of_several_streams_the_image_is_looked_at_and_never_a_text_alone(images):
    net = Streams()
    parts = Eye(net).features(images, net)
    assert [part.shape for part in parts] == [(5, 8), (5, 4 * CELLS**2)] * 2
    ratio = parts[2] / parts[0]
    torch.testing.assert_close(ratio, torch.full_like(ratio, 1.5))


class Regions(torch.nn.Module):
    """Runs a net for several regions of a prompt, as the host does: all in one batch, or one by one."""

    def __init__(self, net, together):
        super().__init__()
        self.net, self.together = net, together

    def forward(self, x, sigma):
        if self.together:
            return self.net(torch.cat([x, x + 1]), sigma).chunk(2)[0]
        one = self.net(x, sigma)
        self.net(x[..., :4] + 1, sigma)
        return one


@pytest.mark.parametrize("together", [True, False])
def test_of_a_prompt_in_regions_the_first_is_seen(images, together):
    net = Net()
    parts = Eye(net).features(images, Regions(net, together))
    for a, b in zip(parts, Eye(net).features(images, net), strict=True):
        torch.testing.assert_close(a, b)


def test_all_sets_are_seen_by_the_blocks_that_tell_the_first_apart(images):
    net = Net(2)
    eye = Eye(net)
    first = eye.features(images, net)
    with torch.no_grad():
        net.up[0].weight.zero_()
        net.up[0].bias.zero_()  # which alone is not told apart by it
    tall = replace(images, latents=images.latents[..., :2].repeat(1, 1, 2, 1))
    assert [part.shape for part in eye.features(tall, net)] == [part.shape for part in first]
    assert len(Eye(net).features(tall, net)) == len(first) - 2
    assert len(Eye(net, places=eye.places).features(tall, net)) == len(first)


def test_of_many_blocks_some_are_looked_at(images):
    net = Net(20)
    assert len(Eye(net).features(images, net)) == 2 * MOST_BLOCKS


def test_a_network_without_blocks_or_with_infinite_ones_is_refused(images):
    with pytest.raises(ValueError, match="no blocks"):
        Eye(torch.nn.Linear(1, 1)).features(images, lambda x, sigma: x)
    net = Net()
    with torch.no_grad():
        net.up[0].bias.fill_(torch.inf)
    with pytest.raises(ValueError, match="overflowed"):
        Eye(net).features(images, net)


def test_maps_video_and_tokens_are_summed_up_alike():
    maps = torch.randn(3, 5, 8, 8, generator=torch.Generator().manual_seed(0))
    there, where = summary(maps)
    torch.testing.assert_close(there[:, :5], maps.mean((2, 3)))
    torch.testing.assert_close(there[:, 5:], maps.flatten(2).std(2, correction=0))
    torch.testing.assert_close(where.view(3, 5, 4, 4)[:, :, 1, 2], maps[:, :, 2:4, 4:6].mean((2, 3)))
    still = summary(maps[:, :, None].repeat(1, 1, 4, 1, 1))
    torch.testing.assert_close(still[1], where)
    tokens = summary(maps.flatten(2).transpose(1, 2))
    torch.testing.assert_close(tokens[0], there)
    assert tokens[1].shape == where.shape
