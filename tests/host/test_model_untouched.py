"""The user's MODEL is the same after training, however training ends, and the server takes the next job."""

import pytest

from tests.host.graphs import (
    Once,
    found,
    judged,
    loop,
    messages,
    node,
    probe,
    stage,
    stock_image,
    train_nodes,
    trained,
    unique,
    watch,  # fmt: skip
)
from tools.host import WorkflowError


def look(host):
    """(the model inside and out, the latent and picture that the stock KSampler makes with it)."""
    graph = stage() | stock_image() | {"model": probe("Model", "loader")}
    entry = host.run(graph)
    (image,) = entry["outputs"]["stock_image"]["images"]
    return found(entry, "model"), found(entry, "stock_latent"), host.image(image).tobytes()


@pytest.fixture
def untouched(host):
    """Looks at the model before a test and after it."""
    before = look(host)
    yield
    after = look(host)
    assert after == before
    for name in (
        "training",
        "requires_grad",
        "gradients",
        "hooks",
        "patches",
        "object_patches",
        "injections",
        "attachments",
    ):
        assert after[0][name] == [], name
    assert after[0]["in_training"] is False


@pytest.mark.parametrize("targets", ["attention", "all linear and convolutions"])
def test_training_leaves_the_model_as_it_was(host, untouched, targets):
    host.run(trained(dict(targets=targets, epochs=2), seed=81))


def test_a_whole_loop_leaves_the_model_as_it_was(host, untouched):
    run = unique()
    for seed in (82, 83):
        host.run(loop(run, dict(learning_rate=1e-2), seed=seed))


def test_a_loss_that_is_not_finite_leaves_the_model_as_it_was(host, untouched):
    graph = trained(trajectory=("spoil", 0), seed=84)
    graph["spoil"] = node("TestSpoilTrajectory", trajectory=["sampler", 0], how="nan")
    with pytest.raises(WorkflowError, match="NonFiniteLoss"):
        host.run(graph)


@pytest.mark.parametrize("call", [1, 4])
@pytest.mark.parametrize(
    "error, told", [("error", "ArithmeticError"), ("memory", "Out of memory while training")]
)
def test_an_error_inside_the_network_leaves_the_model_as_it_was(host, untouched, error, told, call):
    graph = trained(dict(epochs=3), seed=85)
    graph["trap"] = node("TestTrapModel", model=["loader", 0], error=error, call=call, times=9)
    graph["train"]["inputs"]["model"] = ["trap", 0]
    with pytest.raises(WorkflowError, match=told):
        host.run(graph)


def test_an_interrupt_in_training_leaves_the_model_and_the_run_as_they_were(host, untouched, run_file):
    run = unique("interrupted")
    host.run(loop(run, seed=86))
    kept = run_file(run).read_bytes()
    interrupt = Once(host.interrupt, "train")
    entry, seen = watch(host, loop(run, dict(epochs=10000), seed=87), interrupt)
    assert interrupt.done
    (told,) = messages(entry, "execution_interrupted")
    assert told["node_type"] == "D3POTrainStep"
    assert run_file(run).read_bytes() == kept
    assert (
        max(
            m["data"]["value"] / m["data"]["max"]
            for m in seen
            if m["type"] == "progress" and m["data"]["node"] == "train"
        )
        < 0.5
    )


def test_training_after_an_interrupt_learns_what_it_would_have_learned(host):
    graph = trained(dict(epochs=2), seed=88)
    straight = found(host.run(graph), "losses")
    interrupt = Once(host.interrupt, "train")
    watch(host, trained(dict(epochs=10000), seed=88), interrupt)
    assert interrupt.done
    graph["losses"] = probe("LossMap", "train", 2)
    graph["train settings"]["inputs"]["max_grad_norm"] = (
        1.0000001  # trains anew, and is the same in all but the 7th digit
    )
    assert found(host.run(graph), "losses")["loss"] == pytest.approx(straight["loss"], rel=1e-5)


def test_a_model_with_a_lora_on_it_is_left_as_it_was_too(host, run_file):
    """The reference may be a patched model: its patches and what it makes stay."""
    run = unique("patched")
    host.run(loop(run, dict(learning_rate=1e-2), seed=89))

    def look():
        graph = stage() | {
            "run": node("D3POLoadRun", model=["loader", 0], run=run),
            "model": probe("Model", "run"),
        }
        entry = host.run(graph | stock_image(["run", 0]))
        return found(entry, "model"), found(entry, "stock_latent")

    before = look()
    assert before[0]["patches"]
    graph = judged(model=("run", 0), seed=90) | {"run": node("D3POLoadRun", model=["loader", 0], run=run)}
    graph |= {**train_nodes(model=("run", 0)), "losses": probe("LossMap", "train", 2)}
    losses = found(host.run(graph), "losses")
    assert losses["winner_log-ratio"] == [0.0], "the patched model is its own reference"
    assert look() == before
