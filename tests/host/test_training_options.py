"""What a train step does besides learning: stop by itself, average, tell TensorBoard, warn."""

import copy
import json
import math
import re

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from d3po_core.runs.store import load_run
from tests.host.graphs import (
    found,
    judged,
    loop,
    node,
    picked,
    probe,
    says,
    stock_image,
    train_nodes,
    trained,
    unique,
)


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
    assert (
        "8 updates, of which 2 are kept (2 in all)" in report
        and "patience 3" in report
        and "Went back to update 2" in report
    )
    (figures,) = entry["outputs"]["train"]["figures"]
    assert (figures["updates"], figures["kept"], figures["step"]) == (8, 2, 2)
    for name in ("loss", "KL to reference", "gradient norm", "held-out accuracy", "held-out margin"):
        assert figures[name] == pytest.approx(losses[name.replace(" ", "_")][1])
        assert f"\n{name}: {figures[name]:.4g}\n" in report


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
    again = host.run(patient(run, epochs=2))
    assert again["outputs"]["save"]["text"] == [f"{run}: {best + 2} steps"]
    tensors, record = load_run(host.base / "output" / "d3po" / "runs" / run)
    assert [round_["start"] for round_ in record["rounds"]] == [0, best] and len(
        record["history"]
    ) == best + 2
    events = EventAccumulator(str(host.base / "output" / "d3po" / "tensorboard" / run)).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == list(range(1, best + 3))


@pytest.mark.parametrize(
    "change, updates",
    [({"beta": 150.0}, 0), ({"window_end": 0.5}, 5), ({"reference": "round start"}, 5)],
    ids=str,
)
def test_the_kl_of_earlier_rounds_counts_where_it_means_the_same(host, change, updates):
    """A run that has gone as far as stop_kl allows makes no further update, however often Run is pressed."""
    run = unique("rounds")
    training = dict(epochs=6, learning_rate=1e-2, targets="all linear and convolutions")
    host.run(loop(run, training, seed=88))
    graph = loop(run, training | dict(epochs=30, stop_kl=1e-9) | change, seed=89)
    entry = host.run(graph | {"losses": probe("LossMap", "train", 2)})
    report = entry["outputs"]["train"]["text"][0]
    assert f"stopped after update {updates}: KL" in report if updates else "above stop_kl 1e-09" in report
    assert len(found(entry, "losses")["loss"]) == 6 + updates
    assert entry["outputs"]["save"]["text"] == [f"{run}: {6 + updates} steps"]


def of_the_base(run, objective="brightness (brighter)", **training):
    """A round of a run on candidates that the base recorded."""
    graph = loop(run, training, objective=objective, seed=94)
    graph["sampler"]["inputs"]["model"] = ["loader", 0]
    return graph | {"held": judged(seed=94)["judge"], "losses": probe("LossMap", "train", 2)}


@pytest.mark.parametrize("guidance", ["as recorded", "off (faster)"])
def test_ppo_holds_a_recording_against_the_policy_that_made_it_over_all_rounds(host, guidance):
    """Without the recording's guidance the network does not give the recorded x0.

    Then what counts is the policy at the round's start."""
    run, fractions = unique("ppo"), []
    for _ in range(2):
        entry = host.run(
            of_the_base(
                run,
                epochs=2,
                learning_rate=0.01,
                guidance=guidance,
                targets="all linear and convolutions",
                **{"method": "DDPO", "ratio_clip": 1e-3},
            )
        )
        fractions.append(found(entry, "losses")["clip_fraction"][-2])
    assert fractions[0] == 0 and (fractions[1] > 0) == (guidance == "as recorded"), fractions


def test_the_report_says_where_the_lora_that_came_in_was_better(host):
    run, reports = unique("worse"), []
    for objective in ("brightness (brighter)", "darkness (darker)"):
        graph = of_the_base(
            run, objective, epochs=6, learning_rate=1e-2, targets="all linear and convolutions"
        )
        graph["train"]["inputs"]["held_out"] = ["held", 0]
        reports.append(host.run(graph)["outputs"]["train"]["text"][0])
    told = [re.search(r"came in ranked held_out better: (\S+)", report) for report in reports]
    assert told[0] is None and told[1][1] == re.search(r"held-out accuracy: (\S+)", reports[0])[1]


def test_figures_of_rounds_with_other_settings_are_not_held_against_each_other(host):
    """At the paper's beta margins are a thousandth of what they are at 100."""
    run = unique("rounds")
    host.run(loop(run, dict(epochs=12, beta=0.1, weighting="paper"), seed=90, candidates=2))
    entry = host.run(loop(run, dict(epochs=8, beta=100.0), seed=91, candidates=2))
    assert entry["outputs"]["train"]["warnings"] == []


def test_a_ratio_clip_that_holds_every_candidate_is_warned_of(host):
    entry = host.run(trained({"method": "DDPO", "epochs": 16, "learning_rate": 1e-2}, seed=92))
    (warning,) = [one for one in entry["outputs"]["train"]["warnings"] if "clip fraction" in one]
    assert "ratio_clip" in warning


@pytest.mark.parametrize(
    "inputs", [dict(patience=2), dict(patience=2, held_out=["judge", 0], evaluate_every=0)], ids=str
)
def test_patience_without_measurements_is_refused(failure, inputs):
    says(
        failure(trained(dict(evaluate_every=1) | inputs, seed=93)),
        "D3POTrainStep",
        "patience: ",
        "held_out",
        "evaluate_every",
    )


def test_patience_says_where_nothing_could_be_measured(host):
    graph = trained(dict(epochs=2, evaluate_every=1, patience=2), seed=93)
    graph["alike"] = copy.deepcopy(graph["judge"])
    graph["alike"]["inputs"]["least_difference"] = 1e6
    graph["train"]["inputs"]["held_out"] = ["alike", 0]
    assert "Patience had nothing to go by" in host.run(graph)["outputs"]["train"]["text"][0]


@pytest.mark.parametrize(
    "chosen",
    [
        dict(ema=0.5),
        dict(optimizer="AdamW schedule-free"),
        dict(optimizer="AdamW 8-bit", schedule="cosine", warmup=2),
    ],
    ids=str,
)
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
    graph = trained(dict(epochs=10, learning_rate=0.3, beta=0.1, clip=1e-6), seed=86)
    entry = host.run(graph)
    (warning,) = [one for one in entry["outputs"]["train"]["warnings"] if "clip fraction" in one]
    assert f"Warning: {warning}" in entry["outputs"]["train"]["text"][0]
    wide = host.run(trained(dict(epochs=9, clip=0.9), seed=86))
    assert not any("clip fraction" in one for one in wide["outputs"]["train"]["warnings"])


# --- what the report says of the sets ---


def test_captions_are_dropped_to_the_empty_text_alone_and_the_report_tells_where_they_stay(host):
    def report(negative, **method):
        graph = trained({"method": "Diffusion-DPO", "caption_dropout": 1.0, "epochs": 2} | method, seed=91)
        graph["negative"]["inputs"]["text"] = negative
        entry = host.run(graph)
        return (
            entry["outputs"]["train"]["text"][0],
            found(entry, "losses")["KL_to_reference"],
            found(entry, "losses")["loss"],
        )

    kept = (
        "caption_dropout: the prompt was kept in 1 of 1 sets, whose negative prompt is not known to be empty"
    )
    dropping, staying = report(" "), report("a dog on a blue background")
    assert kept not in dropping[0] and kept in staying[0]
    never = report("a dog on a blue background", **{"caption_dropout": 0.0})
    assert kept not in never[0] and staying[1:] == never[1:] != dropping[1:]


def test_picks_that_go_round_in_a_circle_are_used_and_told_of(host):
    def report(pairs):
        graph = picked(seed=92, candidates=3)
        name = host.run(graph)["outputs"]["judge"]["d3po"][0]["set"]
        graph = picked(json.dumps({"sets": {name: {"pairs": pairs}}}), seed=92, candidates=3)
        graph |= {**train_nodes(), "losses": probe("LossMap", "train", 2)}
        return host.run(graph)["outputs"]["train"]["text"][0]

    told = report([[0, 1], [1, 2], [2, 0]])
    assert "3 pairs in 1 sets" in told
    assert (
        "Picks of 1 of 1 sets go round in a circle and pull against each other: "
        "set 1 (1 over 2, 2 over 3, 3 over 1)" in told
    )
    assert "circle" not in report([[0, 1], [1, 2], [0, 2]])
