"""The leash: how far predictions move from the reference's, and that they move no further than it is long."""

import pytest
import torch

from d3po_core.training.adapter import ADAPTERS, Adapter
from d3po_core.training.learner import SHIFT_OF_LEASH
from d3po_core.training.loop import Settings, Trainer
from tests.core.gradients import still
from tests.core.rounds import same

PAIRS = (((0, 1),), ((1, 0), (1, 2)))
FAST = dict(learning_rate=0.005, beta=50.0, clip=0.0, weighting="standardised", sets_per_update=2, epochs=30)
WIDEST = "all linear and convolutions"


def shift_by_definition(example, adapter):
    """Half the mean square distance of predicted noises, over the random steps and candidates."""
    trajectory, shifts = example.candidates, []
    members = sorted({candidate for pair in example.preferences.pairs for candidate in pair})
    for i in trajectory.actions:
        sigma = trajectory.sigmas[i].double()
        x = trajectory.states[i][members]
        with torch.no_grad():
            policy = (x - example.denoise(x, sigma.expand(len(x)))) / sigma
            with adapter.off():
                reference = (x - example.denoise(x, sigma.expand(len(x)))) / sigma
        shifts.append((policy - reference).square().mean() / 2)
    return float(torch.stack(shifts).mean())


@pytest.mark.parametrize("weighting", ["paper", "standardised"])
def test_the_shift_is_half_the_mean_square_between_predicted_noises(toy, setup, weighting):
    denoise, adapter = setup(dtype=torch.float64)
    with adapter.off():
        (example,) = toy.examples(denoise, PAIRS[1:], dtype=torch.float64)
    toy.stir(adapter)
    metrics = Trainer(adapter, still(weighting=weighting)).update([example])
    assert metrics["shift of predictions"] == pytest.approx(shift_by_definition(example, adapter), rel=1e-9)


def test_of_noised_images_it_is_the_kl(toy, drawn):
    adapter, examples = drawn()
    toy.stir(adapter)
    metrics = Trainer(adapter, still(method="Diffusion-DPO")).update(examples)
    assert metrics["shift of predictions"] == metrics["KL to reference"] > 0


@pytest.mark.parametrize("kind", ADAPTERS)
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_what_is_left_of_an_update_is_its_share(toy, kind, share):
    net = toy.net(dtype=torch.float64)
    adapter = Adapter(net, rank=2, targets=WIDEST, adapter=kind)
    toy.stir(adapter)
    with torch.no_grad():  # DoRA's magnitudes too
        for name, parameter in adapter.named_parameters():
            if name.endswith("dora_scale"):
                parameter.mul_(1.5)
    weights = {path: layer.base_layer.weight for path, layer in adapter.layers.items()}

    def moved():
        """B A of each layer, or what stands in its place, before DoRA's magnitudes."""
        return {path: layer.get_delta_weight("d3po").detach() for path, layer in adapter.layers.items()}

    before = moved()
    adapter.pull_back(share, None, dict(adapter.named_parameters()))
    for path, delta in moved().items():
        torch.testing.assert_close(delta, share * before[path], rtol=1e-9, atol=1e-12)
    for name, magnitude in adapter.named_parameters():
        if name.endswith("dora_scale"):
            norm = weights[name.removesuffix(".dora_scale")].flatten(1).norm(dim=1).view_as(magnitude)
            torch.testing.assert_close(magnitude.detach(), norm * (1 + 0.5 * share))


# that each kind is pulled back by its share is shown above
@pytest.mark.parametrize(
    "kind, reference", [("LoRA", "base"), ("LoKr", "base"), ("DoRA", "round start")], ids=str
)
def test_predictions_move_no_further_than_the_leash_is_long(toy, setup, reference, kind):
    limit, furthest = 0.001, {}
    for length in (0.0, (limit / SHIFT_OF_LEASH) ** 0.5):
        denoise, adapter = setup(adapter=kind, targets=WIDEST)
        with adapter.off():
            examples = toy.examples(denoise, PAIRS)
        toy.stir(adapter, size=0.02 if reference == "round start" else 0.0)
        made = Trainer(adapter, Settings(**FAST, leash=length, reference=reference)).fit(examples)
        furthest[length > 0] = [metrics["shift of predictions"] for metrics in made]
        if length:
            assert made[-1]["margin"] > 0 and made[-1]["loss"] < made[0]["loss"]
    assert max(furthest[False]) > 10 * limit, "without a leash it goes far"
    assert max(furthest[True][1:]) < 2.5 * limit, "a step may go beyond; the next is pulled back"
    assert sum(furthest[True][-6:]) / 6 < 2 * limit


def test_a_long_leash_changes_nothing_to_the_bit(toy, setup):
    states = []
    for leash in (0.0, 1e3):
        denoise, adapter = setup()
        with adapter.off():
            examples = toy.examples(denoise, PAIRS)
        trainer = Trainer(adapter, Settings(**FAST, leash=leash))
        trainer.fit(examples)
        states.append(trainer.state()[0])
    assert same(*states)
