"""What the trainer keeps of the reference's x0, however many sets it trains on."""

import gc
from dataclasses import replace

import pytest
import torch

from d3po_core.candidates.preferences import Preferences
from d3po_core.candidates.trajectory import Trajectory
from d3po_core.training.loop import Example, Settings, Trainer
from d3po_core.training.reference import KEPT_BYTES, kinds_of, weights_of

ONE = 2 * 2 * 4 * 4 * 4  # bytes of an x0 of two candidates, of which a trajectory has three


def passes(denoise):
    return [n for n, grad in zip(denoise.batches, denoise.with_gradient) if not grad]


@pytest.fixture
def nothing_else():
    """The collector, and so the count below, leaves out what was there before.

    Going through that takes a second."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def tensor_bytes():
    """Bytes of all tensors made since."""
    gc.collect()
    storages = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
        for t in gc.get_objects()
        if type(t) in (torch.Tensor, torch.nn.Parameter) and t.layout is torch.strided
    }
    return sum(storages.values())


@pytest.fixture
def start(toy, setup):
    def make(budget=KEPT_BYTES, policy="elsewhere", settings=Settings()):
        denoise, adapter = setup()
        trainer = Trainer(adapter, settings, "base")
        trainer.reference.budget = budget

        def example(seed, folder=None):
            with adapter.off():
                trajectory = toy.record(denoise, candidates=2, seed=seed, policy=policy)
            denoise.batches.clear()
            denoise.with_gradient.clear()
            return Example(Preferences(trajectory, ((0, 1),)), denoise)

        return trainer, example

    return make


def test_memory_stays_flat_however_many_sets_there_are(nothing_else, start):
    trainer, example = start(budget=5 * 3 * ONE)
    sizes = {}
    for seed in range(40):
        trainer.update([example(seed)])
        if seed in (8, 20, 30, 39):
            sizes[seed] = tensor_bytes()
    assert max(sizes.values()) <= sizes[8]
    without_limit, example = start()
    before = tensor_bytes()
    for seed in range(40):
        without_limit.update([example(seed)])
    assert tensor_bytes() - before >= 40 * 3 * ONE  # this count sees what is kept


def test_a_recorded_reference_takes_no_memory(nothing_else, start):
    trainer, example = start(policy="base")
    sizes = {}
    for seed in range(20):
        trainer.update([example(seed)])
        if seed in (4, 19):
            sizes[seed] = tensor_bytes()
    assert sizes[19] == sizes[4]


def test_the_least_recently_used_reference_goes_first(start):
    trainer, example = start(budget=2 * 3 * ONE)
    a, b, c = (example(seed) for seed in range(3))
    for used, computed in ((a, 3), (b, 3), (a, 0), (c, 3), (a, 0), (b, 3), (c, 3)):
        used.denoise.batches.clear()
        used.denoise.with_gradient.clear()
        trainer.update([used])
        assert passes(used.denoise) == computed * [2]


def test_a_reference_larger_than_the_budget_is_used_and_not_kept(start):
    (small, example), (large, same_example) = start(budget=ONE - 1), start()
    one, same = example(0), same_example(0)
    assert [small.update([one]) for _ in range(2)] == [large.update([same]) for _ in range(2)]
    assert passes(one.denoise) == 6 * [2] and passes(same.denoise) == 3 * [2]


@pytest.mark.parametrize("method", ["D3PO", "DDPO"])
def test_a_pass_of_the_rounds_start_writes_no_weight(start, toy, method):
    settings = Settings(method=method, reference="round start" if method == "D3PO" else "base")
    trainer, example = start(settings=settings)
    one, policy = example(0), trainer.sampler
    toy.stir(trainer.adapter)
    trainer.begin_round()
    net = trainer.adapter.root
    expected = one.denoise(one.candidates.states[0], one.candidates.sigmas[:1].expand(2)).detach()
    toy.stir(trainer.adapter, seed=2)
    before = [(id(p), p.data_ptr(), p._version) for p in net.parameters()]
    one.denoise.batches.clear()
    assert torch.equal(policy.x0(one, 0), expected) and one.denoise.batches == [2]
    assert [(id(p), p.data_ptr(), p._version) for p in net.parameters()] == before


def test_only_the_steps_that_are_trained_on_take_a_reference_pass(start):
    trainer, example = start(settings=Settings(step_fraction=0.34))
    one = example(0)
    trainer.update([one])
    assert passes(one.denoise) == [2]


@pytest.mark.parametrize("policy, computed", [("elsewhere", 3 * [2]), ("base", 3 * [1])])
def test_a_set_that_is_opened_again_is_known_again(start, tmp_path, policy, computed):
    trainer, example = start(policy=policy)
    first = example(0)
    first.candidates.save(tmp_path / "set.safetensors")
    metrics = []
    for _ in range(3):
        trajectory = Trajectory.open(tmp_path / "set.safetensors")
        metrics.append(trainer.update([Example(Preferences(trajectory, ((0, 1),)), first.denoise)]))
    assert passes(first.denoise) == computed
    in_memory, example = start(policy=policy)
    one = example(0)
    assert [in_memory.update([one]) for _ in range(3)] == metrics


# --- recordings that say they are the reference's ---


def altered(example, step, candidate=0, by=1e-2):
    """The example with the recorded x0 of one candidate's step changed."""
    denoised = example.candidates.denoised.clone()
    denoised[step, candidate] *= 1 + by
    return replace(
        example,
        preferences=replace(example.preferences, candidates=replace(example.candidates, denoised=denoised)),
    )


@pytest.mark.parametrize("step", [0, 1, 2])
@pytest.mark.parametrize("by", [1e-3, 0.5])
def test_a_recording_that_is_not_the_references_at_any_step_is_computed(start, step, by):
    trainer, example = start(policy="base")
    one = altered(example(0), step, by=by)
    metrics = trainer.update([one])
    assert metrics["winner log-ratio"] == metrics["loser log-ratio"] == metrics["KL to reference"] == 0
    assert passes(one.denoise) == (step + 1) * [1] + (3 - step) * [2]
    assert trainer.reference.apart == ({"set 0"} if by > 1e-2 else set())


def test_a_step_is_looked_at_the_first_time_it_is_used(start):
    trainer, example = start(policy="base", settings=Settings(step_fraction=0.34))
    one = example(0)
    for _ in range(20):
        trainer.update([one])
    assert passes(one.denoise) == 3 * [1]


def test_float32_leaves_no_room_for_a_small_difference(start):
    trainer, example = start(policy="base")
    for by, computed in ((1e-5, False), (5e-4, True)):
        one = altered(example(0), 0, by=by)
        trainer.reference.become(None)
        one.denoise.batches.clear()
        one.denoise.with_gradient.clear()
        trainer.update([one])
        assert (2 in passes(one.denoise)) == computed


@pytest.mark.parametrize(
    "policy, apart",
    [("base kinds:objects", set()), ("base", {"set 0"}), ("base other:names", {"set 0"}), ("a-lora", set())],
)
def test_recordings_of_these_weights_by_another_denoiser_are_told_of(start, policy, apart):
    """Where all of a name is another's, x0 tells; of other weights it says nothing."""
    trainer, example = start(policy=policy)
    trainer.reference.policy = "base kinds:objects"
    one = example(0)
    trainer.update([altered(one, 1, by=0.5) if apart else one])
    assert trainer.reference.apart == apart


def test_a_dataset_whose_x0_agrees_is_not_told_of(start):
    trainer, example = start(policy="base")
    trainer.reference.policy = "base kinds:objects"
    one = example(0)
    trainer.update([one])
    assert passes(one.denoise) == 3 * [2] and trainer.reference.apart == set()


def test_the_parts_of_a_policys_name():
    assert [weights_of(name) for name in ("base", "base a:b", "1234 a:b")] == ["base", "base", "1234"]
    assert [kinds_of(name) for name in ("base", "base a:b", "1234 a:c")] == ["", "a", "a"]
