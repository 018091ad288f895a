"""Which of the settings that several methods share a method makes use of."""

from dataclasses import replace

import pytest
import torch

from d3po_core.training.methods import METHODS, NOISED, RECORDED
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
}


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
    assert changed == OTHERWISE.keys() - set(method.unused)
