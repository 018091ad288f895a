"""A train step hands on the LoRA of its best update, whatever came after it, also where it was stopped."""

import dataclasses

import pytest

from d3po_core.runs import files as run_files
from d3po_core.runs import progress, store
from d3po_core.training import loop
from d3po_core.training.monitor import best_update, stop_reason
from tests.core.rounds import PAIRS, SETTINGS, UPDATES, Stop, raise_, same

PATIENCE, BEST = 3, 4
ACCURACIES = {2: 0.6, BEST: 0.9, 6: 0.8, 8: 0.7, 10: 0.7}  # after which update; measured at every second
SETTINGS_OF = {
    "AdamW": SETTINGS,
    "averaged": dataclasses.replace(SETTINGS, ema=0.5),
    "schedule-free": dataclasses.replace(SETTINGS, optimizer="AdamW schedule-free"),
    "round start": dataclasses.replace(SETTINGS, reference="round start"),
}


@pytest.fixture
def begin_measured(begin, monkeypatch):
    """A round whose held-out accuracy is what `accuracies` say."""
    said = {}

    def measured(trainer, examples):
        return {"held-out accuracy": said[trainer].get(trainer.step, 0.5), "held-out pairs": 9}

    monkeypatch.setattr(loop, "evaluate", measured)

    def begin_measured(folder, accuracies=ACCURACIES, keep_best=True, **options):
        one = begin(folder, **options)
        one.progress.keep_best = keep_best
        said[one.trainer] = accuracies
        return one

    return begin_measured


def fit(one, updates=None, patience=PATIENCE):
    """Train until patience ends, or with `updates` until so many are made; every update's metrics."""

    def on_step():
        if one.trainer.step == updates:
            raise Stop

    made, *_ = one.progress.fit(
        one.trainer,
        one.examples,
        on_step=on_step,
        held_out=one.examples,
        evaluate_every=2,
        stop=lambda made: stop_reason(made, patience=patience),
    )
    return made


@pytest.mark.parametrize("settings", SETTINGS_OF.values(), ids=SETTINGS_OF)
def test_the_state_is_that_of_a_round_which_ends_at_the_best_update(begin_measured, tmp_path, settings):
    one = begin_measured(tmp_path / "one", settings=settings)
    made = fit(one)
    assert len(made) == UPDATES and best_update(made) == BEST
    assert one.progress.back_to_best(one.trainer, made) == made[:BEST] and one.trainer.step == BEST
    other = begin_measured(tmp_path / "other", settings=settings)
    with pytest.raises(Stop):
        fit(other, updates=BEST)
    assert same(one.trainer.state()[0], other.trainer.state()[0])
    assert same(one.trainer.trained(), other.trainer.trained())


@pytest.mark.parametrize("every", [1, 3, 100])
@pytest.mark.parametrize("stops", [[3], [5], [7], [9], [2, 4, 6, 8]], ids=str)
def test_a_round_that_was_stopped_goes_back_to_the_same_bits(begin_measured, tmp_path, every, stops):
    straight = begin_measured(tmp_path / "straight")
    straight.progress.back_to_best(straight.trainer, fit(straight))
    for updates in stops:
        with pytest.raises(Stop):
            fit(begin_measured(tmp_path / "stopped", every=every), updates)
    again = begin_measured(tmp_path / "stopped", every=every)
    assert len(again.progress.back_to_best(again.trainer, fit(again))) == BEST
    assert same(again.trainer.state()[0], straight.trainer.state()[0])


def test_a_round_that_ended_but_was_not_saved_goes_back_again(begin_measured, tmp_path):
    one, again = begin_measured(tmp_path), begin_measured(tmp_path)
    one.progress.back_to_best(one.trainer, fit(one))
    again.progress.back_to_best(again.trainer, fit(again))
    assert again.trainer.step == BEST and same(again.trainer.state()[0], one.trainer.state()[0])


def test_where_the_last_update_is_the_best_nothing_is_undone(begin_measured, tmp_path):
    one = begin_measured(tmp_path, {update: update / 10 for update in ACCURACIES})
    made = fit(one)
    last = one.trainer.state()[0]
    assert one.progress.back_to_best(one.trainer, made) == made and len(made) == one.trainer.step == UPDATES
    assert same(one.trainer.state()[0], last)


def test_without_being_asked_to_nothing_is_remembered_and_nothing_undone(begin_measured, tmp_path):
    one = begin_measured(tmp_path, keep_best=False)
    made = fit(one, patience=0)
    assert one.progress.back_to_best(one.trainer, made) == made and one.trainer.step == UPDATES
    assert not (tmp_path / progress.BEST_FILE).exists()


def test_without_a_run_it_goes_back_all_the_same(begin_measured, tmp_path):
    one = begin_measured(tmp_path)
    one.progress.folder = None
    assert len(one.progress.back_to_best(one.trainer, fit(one))) == BEST and list(tmp_path.iterdir()) == []


def test_saving_and_deleting_a_run_remove_the_best_state_of_its_train_step(begin_measured, tmp_path):
    one = begin_measured(tmp_path / "run")
    one.history = one.progress.back_to_best(one.trainer, fit(one))
    assert (tmp_path / "run" / progress.BEST_FILE).exists()
    one.save()
    assert not (tmp_path / "run" / progress.BEST_FILE).exists()
    assert store.load_run(tmp_path / "run")[1]["step"] == BEST
    fit(begin_measured(tmp_path / "run", {BEST + update: 0.5 for update in ACCURACIES}))
    assert (tmp_path / "run" / progress.BEST_FILE).exists()
    assert store.delete(tmp_path, "run") == []


def test_the_best_state_of_another_train_step_is_left_aside(begin_measured, tmp_path):
    fit(begin_measured(tmp_path))
    other = begin_measured(tmp_path, {**ACCURACIES, BEST: 0.1}, pairs=PAIRS[:2])
    other.progress.remove()
    assert (tmp_path / progress.BEST_FILE).exists()
    assert len(other.progress.back_to_best(other.trainer, fit(other))) == 2


def test_the_best_state_of_progress_that_is_replaced_goes_with_it(begin_measured, tmp_path):
    fit(begin_measured(tmp_path))
    other = begin_measured(tmp_path, keep_best=False, pairs=PAIRS[:2])
    with pytest.raises(Stop):
        fit(other, 1, patience=0)
    assert not (tmp_path / progress.BEST_FILE).exists() and (tmp_path / progress.FILE).exists()


def test_a_best_state_that_is_not_there_is_told_of_and_training_ends_where_it_ends(begin_measured, tmp_path):
    with pytest.raises(Stop):
        fit(begin_measured(tmp_path), 7)
    (tmp_path / progress.BEST_FILE).unlink()
    one = begin_measured(tmp_path)
    made, resumed, warning = one.progress.fit(
        one.trainer, one.examples, held_out=one.examples, evaluate_every=2
    )
    assert resumed == 7 and f"The state after update {BEST}" in warning
    assert one.progress.back_to_best(one.trainer, made) == made and one.trainer.step == UPDATES


def test_a_damaged_best_state_is_told_of_and_training_begins_anew(begin_measured, tmp_path):
    with pytest.raises(Stop):
        fit(begin_measured(tmp_path), 7)
    (tmp_path / progress.BEST_FILE).write_bytes(b"nothing")
    one = begin_measured(tmp_path)
    made, resumed, warning = one.progress.fit(
        one.trainer, one.examples, held_out=one.examples, evaluate_every=2
    )
    assert resumed == 0 and progress.BEST_FILE in warning and len(made) == UPDATES


def test_progress_is_never_on_disk_without_the_best_before_it(begin_measured, tmp_path, monkeypatch):
    with pytest.raises(Stop):
        fit(begin_measured(tmp_path, every=BEST), 3)
    with monkeypatch.context() as full, pytest.raises(OSError):  # between the two files
        full.setattr(
            progress,
            "write",
            lambda path, *_: raise_(OSError) if path.name == progress.FILE else run_files.write(path, *_),
        )
        fit(begin_measured(tmp_path, every=BEST))
    assert not (tmp_path / progress.FILE).exists() and (tmp_path / progress.BEST_FILE).exists()
    one = begin_measured(tmp_path, every=BEST)
    assert len(one.progress.back_to_best(one.trainer, fit(one))) == BEST
