"""The table of settings: which a method makes use of, and what values become of what is given."""

from dataclasses import fields, replace

import pytest
import torch

from d3po_core.training.methods import METHODS, NOISED, RECORDED, RECORDED_NOISE
from d3po_core.training.presets import PRESETS, resolved, sized
from d3po_core.training.settings import TABLE, Settings
from d3po_core.training.step_settings import StepSettings
from tests.core.judged import SETTINGS, update

OTHERWISE = {
    "beta": 5.0,
    "dpo_beta": 70.0,
    "clip": 0.02,
    "weighting": "standardised",
    "step_fraction": 0.5,
    "draws_per_set": 5,
    "window_start": 0.5,
    "window_end": 0.5,
    "label_smoothing": 0.4,
    "winner_weight": 0.1,
    "winner_share": 0.2,
    "adaptation": 0.1,
    "mapo_beta": 3.0,
    "mapo_snr": 2.0,
    "nft_beta": 0.9,
    "kl_weight": 3.0,
    "reward_beta": 2.0,
}


def unused(method):
    return {name for name, about in TABLE.items() if not about.is_used_by(method)}


@pytest.mark.parametrize("name", METHODS)
def test_a_setting_changes_the_gradient_unless_the_method_has_no_use_for_it(toy, recorded, drawn, name):
    method, changed = METHODS[name], set()
    for make in [recorded] * (method.terms != NOISED) + [drawn] * (method.terms != RECORDED):
        adapter, examples = make()
        start = adapter.weights()
        toy.stir(adapter, seed=3)

        def gradients(**setting):
            return update(adapter, replace(SETTINGS, method=name, **setting), examples, start)[0]

        usual = gradients()
        changed |= {
            setting
            for setting, value in OTHERWISE.items()
            if not all(map(torch.equal, usual, gradients(**{setting: value})))
        }
    assert changed == OTHERWISE.keys() - unused(name)


def test_every_setting_that_some_method_has_no_use_for_is_changed_here():
    """But for those that matter only without a prompt, at a large margin, or once the LoRA has moved."""
    ours = {each.name for each in fields(Settings)}
    of_some = {name for method in METHODS for name in unused(method)} & ours
    assert of_some - OTHERWISE.keys() == {"caption_dropout", "adaptation_bound", "ratio_clip"}


def test_the_defaults_are_those_of_the_table_and_can_be_had_by_themselves():
    settings, step = resolved({})
    assert (settings, step) == (Settings(), StepSettings()) == resolved(PRESETS["paper"])
    assert all(about.taken(name, about.default) == about.default for name, about in TABLE.items())
    assert all(about.tooltip and (about.options or about.low < about.high) for about in TABLE.values())


@pytest.mark.parametrize(
    "method, learn_from, caption_dropout",
    [
        ("D3PO", RECORDED, 0.0),
        ("DDPO", RECORDED, 0.0),
        ("IPO", RECORDED, 0.2),
        ("supervised", RECORDED, 0.2),
        ("Diffusion-DPO", NOISED, 0.2),
        ("MaPO", NOISED, 0.0),
        ("DiffusionNFT", NOISED, 0.0),
    ],
)
@pytest.mark.parametrize("given", [{}, {"caption_dropout": -1, "learn_from": RECORDED}], ids=str)
def test_a_method_has_defaults_of_its_own(method, learn_from, caption_dropout, given):
    settings, step = resolved({"method": method} | given)
    assert (settings.caption_dropout, step.learn_from) == (caption_dropout, learn_from)


def test_what_is_another_methods_own_keeps_its_default_and_what_is_shared_its_value():
    given = {"ratio_clip": 0.1, "caption_dropout": 0.5, "learn_from": RECORDED_NOISE, "beta": 7, "clip": 0.3}
    settings, step = resolved(given | {"method": "supervised", "no such setting": 1})
    assert (settings.ratio_clip, settings.caption_dropout) == (1e-4, 0.5)
    assert (step.learn_from, settings.beta, settings.clip) == (RECORDED_NOISE, 7.0, 0.3)
    assert isinstance(settings.beta, float)
    settings, step = resolved(given | {"method": "DDPO"})
    assert (settings.ratio_clip, settings.caption_dropout, step.learn_from) == (0.1, 0.0, RECORDED)


@pytest.mark.parametrize(
    "name, value, told",
    [
        ("clip", 5, "clip is 5, but must lie from 0 to 0.99"),
        ("rank", 0, "rank is 0, but must lie from 1 to 512"),
        ("beta", "a lot", "beta is 'a lot', but must be a number"),
        ("beta", float("nan"), "beta is nan, but must lie from 1e-06 to 100000"),
        ("optimizer", "SGD", "optimizer is 'SGD', but must be one of: AdamW, AdamW 8-bit"),
        ("method", "PPO", "method is 'PPO', but must be one of: D3PO"),
    ],
)
def test_a_value_that_a_setting_cannot_have_is_refused(name, value, told):
    with pytest.raises(ValueError, match=told):
        resolved({name: value})


@pytest.mark.parametrize(
    "sets, together, draws, epochs", [(1, 1, 12, 10), (4, 4, 3, 10), (30, 12, 1, 4), (400, 12, 1, 1)]
)
def test_as_recommended_a_round_is_as_long_with_few_sets_as_with_many(sets, together, draws, epochs):
    settings, step = resolved(sized("recommended", sets))
    assert (settings.sets_per_update, settings.draws_per_set, settings.epochs) == (together, draws, epochs)
    assert (settings.method, step.learn_from, settings.leash) == ("Diffusion-DPO", NOISED, 0.85)
    assert sized("paper", sets) == sized("paper", sets, flow=True) == PRESETS["paper"] == {}


def test_as_recommended_flow_models_learn_by_larger_steps_of_smaller_margins():
    (usual, _), (flow, _) = (resolved(sized("recommended", 12, flow)) for flow in (False, True))
    assert flow == replace(usual, learning_rate=9e-3, dpo_beta=300.0)
