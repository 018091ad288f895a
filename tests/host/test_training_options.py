"""What a train step does besides learning: stop by itself, average, tell TensorBoard, warn."""

import math

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.host.graphs import found, loop, node, probe, stock_image, trained, unique


def test_it_stops_where_the_kl_is_above_the_limit_and_says_so(host):
    graph = trained(dict(epochs=30, learning_rate=1e-2, stop_kl=1e-7), seed=81)
    entry = host.run(graph)
    report = entry["outputs"]["train"]["text"][0]
    assert "stopped after update 5: KL to reference is" in report and "above stop_kl" in report
    assert len(found(entry, "losses")["loss"]) == 5


def test_held_out_figures_come_when_asked_for_and_training_stops_without_a_new_best(host):
    graph = trained(dict(epochs=30, learning_rate=0.0, evaluate_every=2, patience=3), seed=82)
    graph["train"]["inputs"]["held_out"] = ["judge", 0]
    entry = host.run(graph)
    losses = found(entry, "losses")
    measured = [i + 1 for i, value in enumerate(losses["held-out_accuracy"]) if not math.isnan(value)]
    assert measured == [2, 4, 6, 8], "the first is the best, and three more bring nothing new"
    report = entry["outputs"]["train"]["text"][0]
    assert "8 updates (2 in all)" in report and "patience 3" in report and "Went back to update 2" in report


def test_with_patience_a_run_is_what_it_was_at_its_best(host):
    """As if it had been trained for as many epochs and no longer."""
    def patient(run, **training):
        graph = loop(run, dict(learning_rate=0.05, targets="all linear and convolutions") | training, seed=87)
        if training.get("patience"):
            graph["train"]["inputs"]["held_out"] = ["judge", 0]
        return graph | {"losses": probe("LossMap", "train", 2)} | stock_image(["train", 0], "tuned")

    run = unique("patient")
    entry = host.run(patient(run, epochs=40, evaluate_every=1, patience=2))
    losses = found(entry, "losses")
    measured = list(zip(losses["held-out_accuracy"], losses["held-out_margin"]))
    best = measured.index(max(measured)) + 1
    assert best == len(measured) - 2, "two more updates and no new best"
    shorter = host.run(patient(unique("shorter"), epochs=best))
    assert found(entry, "tuned_latent") == found(shorter, "tuned_latent")
    assert entry["outputs"]["save"]["text"] == [f"{run}: {best} steps"]


@pytest.mark.parametrize("chosen", [dict(ema=0.5), dict(optimizer="AdamW schedule-free"), dict(
    optimizer="AdamW 8-bit", schedule="cosine", warmup=2)], ids=str)
def test_what_is_saved_is_what_the_train_step_hands_on(host, chosen):
    run = unique("average")
    graph = loop(run, dict(epochs=4, learning_rate=1e-2, **chosen), seed=83)
    of_model = found(host.run(graph | stock_image(["train", 0], "tuned")), "tuned_latent")
    graph = {"loader": graph["loader"], "negative": graph["negative"], "empty": graph["empty"]}
    graph["again"] = node("D3POLoadRun", model=["loader", 0], run=run)
    entry = host.run(graph | stock_image(["again", 0], "loaded") | stock_image(["loader", 0], "base"))
    assert found(entry, "loaded_latent") == of_model != found(entry, "base_latent")


def test_a_runs_metrics_are_there_for_tensorboard(host, base):
    run = unique("events")
    for seed in (84, 85):
        host.run(loop(run, dict(epochs=3), seed=seed))
    events = EventAccumulator(str(base / "output" / "d3po" / "tensorboard" / run)).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3, 4, 5, 6]


def test_a_saturated_clamp_is_warned_of_in_the_graph(host):
    graph = trained(dict(epochs=24, learning_rate=0.3, beta=0.1, clip=1e-6), seed=86)
    entry = host.run(graph)
    (warning,) = [one for one in entry["outputs"]["train"]["warnings"] if "clip fraction" in one]
    assert f"Warning: {warning}" in entry["outputs"]["train"]["text"][0]
    calm = host.run(trained(dict(epochs=2), seed=86) | {"other": probe("Preferences", "judge")})
    assert calm["outputs"]["train"]["warnings"] == []
