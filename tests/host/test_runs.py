"""Runs that are stopped, killed, gone back on, branched and deleted."""

import re
import shutil

import pytest
from safetensors import safe_open

from d3po_core.runs import files as run_files
from d3po_core.runs import store
from tests.host.graphs import (
    Once,  # fmt: skip
    found,
    judged,
    loop,
    messages,
    node,
    probe,
    recording,
    same_tensors,
    says,
    stage,
    train_nodes,
    unique,
    watch,
)
from tools.host import HostError

LONG = dict(epochs=8, learning_rate=1e-3)  # two denoising steps each
DRAWN = dict(epochs=12, learning_rate=1e-3, step_fraction=0.5)  # one of the two, drawn


class Midway(Once):
    """Acts when a node has told so much progress."""

    def __init__(self, act, node_id, value=8):
        super().__init__(act, node_id)
        self.value = value

    def __call__(self, message):
        if message["type"] == "progress" and message["data"]["value"] >= self.value:
            super().__call__(message)


def record_of(file):
    return run_files.read(file, store.FORMAT)[1]


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def manage(action, **inputs):
    return {"manage": node("D3POManageRuns", action=action, **inputs)}


def table(host, action="list", **inputs):
    return host.run(manage(action, **inputs))["outputs"]["manage"]["text"][0]


def with_held_out(graph, seed):
    """The graph with other judged candidates, that the train step is measured by."""
    other = judged(seed=seed)
    graph |= {f"held_{name}": other[name] for name in ("sampler", "decode", "judge")}
    graph["held_decode"]["inputs"]["samples"] = ["held_sampler", 1]
    graph["held_judge"]["inputs"] |= {"trajectory": ["held_sampler", 0], "images": ["held_decode", 0]}
    graph["train"]["inputs"]["held_out"] = ["held_judge", 0]
    return graph


def went_on(entry):
    """After how many updates of its round a train step went on, 0 if it began anew."""
    (text,) = entry["outputs"]["train"]["text"]
    told = re.search(r"Went on after update (\d+) of this round", text)
    return int(told[1]) if told else 0


@pytest.fixture(scope="module")
def straight(host):
    """What two uninterrupted rounds end with: the run's file."""
    run = unique("straight")
    host.run(loop(run, seed=201))
    host.run(loop(run, DRAWN, seed=202))
    return host.base / "output" / "d3po" / "runs" / run / "run.safetensors"


# --- going on ---


def test_a_run_that_was_cancelled_in_training_goes_on_when_run_again(host, straight, run_file):
    run = unique("cancelled")
    host.run(loop(run, seed=201))
    before = run_file(run).read_bytes()
    entry, _ = watch(host, loop(run, DRAWN, seed=202), Midway(host.interrupt, "train"))
    assert messages(entry, "execution_interrupted")
    assert run_file(run).read_bytes() == before and (run_file(run).parent / "progress.safetensors").exists()
    entry = host.run(loop(run, DRAWN, seed=202))
    assert 3 <= went_on(entry) < 12
    assert same_tensors(run_file(run), straight)
    assert record_of(run_file(run))["history"] == record_of(straight)["history"]
    assert files(run_file(run).parent) == [
        "checkpoints/step-000001.safetensors",
        "checkpoints/step-000013.safetensors",
        "run.safetensors",
    ]


@pytest.fixture(scope="module")
def killed(host):
    """Killed while a run trains: the run's name, a copy's, and a recording before and after."""
    run, copy = unique("killed"), unique("copy")
    host.run(loop(run, seed=201))
    folder = host.base / "output" / "d3po" / "runs" / run
    kept, graph = (folder / "run.safetensors").read_bytes(), recording(seed=68)
    graph["look"] = probe("Trajectory", "sampler")
    looks = [found(host.run(graph), "look")]
    with pytest.raises((HostError, OSError)):
        watch(host, loop(run, DRAWN, seed=202), Midway(host.kill, "train"))
    host.start()
    assert (folder / "run.safetensors").read_bytes() == kept
    shutil.copytree(folder, folder.with_name(copy))
    return run, copy, [*looks, found(host.run(graph), "look")]


def test_a_run_whose_host_was_killed_in_training_ends_with_the_same_bits(
    host, straight, killed, run_file, lora_file
):
    run, *_ = killed
    entry = host.run(loop(run, DRAWN, seed=202))
    assert 1 <= went_on(entry) < 12  # where the disk is slow, the first update may be the last one on it
    assert same_tensors(run_file(run), straight)
    assert same_tensors(lora_file(run), lora_file(straight.parent.name))
    assert record_of(run_file(run))["history"] == record_of(straight)["history"]
    with safe_open(run_file(run), framework="pt") as file:
        kinds = {name.rpartition(".")[2] for name in file.keys() if name.startswith("optimizer.")}
    assert kinds == {"step", "exp_avg", "exp_avg_sq"}


def test_after_a_kill_in_training_a_run_goes_on_with_other_candidates(host, killed, run_file):
    _, run, _ = killed
    assert went_on(host.run(loop(run, seed=71))) == 0
    assert record_of(run_file(run))["step"] == 2
    assert sorted(path.name for path in run_file(run).parent.iterdir()) == ["checkpoints", "run.safetensors"]


def test_a_sets_name_and_its_bits_outlive_the_host(killed):
    *_, (before, after) = killed
    for name in ("set_id", "model", "policy", "sha"):
        assert after[name] == before[name]


def test_a_first_round_that_was_cancelled_goes_on_too(host, run_file):
    run, other = unique("young"), unique("straight")
    watch(host, loop(run, LONG, seed=203), Midway(host.interrupt, "train"))
    assert files(run_file(run).parent) == ["progress.safetensors"]
    assert went_on(host.run(loop(run, LONG, seed=203))) >= 3
    host.run(loop(other, LONG, seed=203))
    assert same_tensors(run_file(run), run_file(other))


def test_after_too_little_memory_training_goes_on_with_fewer_candidates_per_pass(host, failure, run_file):
    run = unique("memory")
    graph = loop(run, LONG, seed=204)
    graph["trap"] = node("TestTrapModel", model=["loader", 0], error="memory", call=15, times=3)
    graph["train"]["inputs"]["model"] = ["trap", 0]
    says(failure(graph), "D3POTrainStep", "Out of memory", "one candidate at a time")
    graph["train settings"]["inputs"]["candidates_per_pass"] = 1
    assert went_on(host.run(graph)) >= 3
    assert record_of(run_file(run))["step"] == 8


def test_another_patch_on_the_model_begins_the_round_anew(host, run_file):
    run = unique("patched")
    graph = loop(run, LONG, seed=230)
    graph["patch"] = node("TestTrapModel", model=["loader", 0], error="memory", call=100000, times=1)
    graph["train"]["inputs"]["model"] = ["patch", 0]
    watch(host, graph, Midway(host.interrupt, "train"))
    graph["patch"]["inputs"]["call"] = 100001
    assert went_on(host.run(graph)) == 0


def test_other_settings_begin_the_round_anew(host, run_file):
    run, other = unique("changed"), unique("straight")
    watch(host, loop(run, LONG, seed=205), Midway(host.interrupt, "train"))
    assert went_on(host.run(loop(run, dict(epochs=2), seed=205))) == 0
    host.run(loop(other, dict(epochs=2), seed=205))
    assert same_tensors(run_file(run), run_file(other))
    assert not (run_file(run).parent / "progress.safetensors").exists()


def test_a_damaged_progress_is_told_and_no_obstacle(host, run_file):
    run = unique("damaged")
    progress = run_file(run).parent / "progress.safetensors"
    watch(host, loop(run, LONG, seed=206), Midway(host.interrupt, "train"))
    progress.write_bytes(progress.read_bytes()[:-10])
    entry = host.run(loop(run, LONG, seed=206))
    (text,) = entry["outputs"]["train"]["text"]
    assert went_on(entry) == 0 and "began anew" in text and str(progress) in text
    assert record_of(run_file(run))["step"] == 8


def test_without_a_run_the_train_step_writes_nothing(host, base):
    before = sorted(base.glob("output/**/*"))
    host.run(judged(seed=207) | {**train_nodes(epochs=3), "losses": probe("LossMap", "train", 2)})
    assert sorted(base.glob("output/**/*")) == before


def test_save_every_0_keeps_nothing_on_the_way(host, run_file):
    run = unique("never")
    watch(host, loop(run, LONG | {"save_every": 0}, seed=208), Midway(host.interrupt, "train"))
    assert not run_file(run).parent.exists()


# --- what a run remembers ---


def test_a_run_notes_what_each_round_was_trained_on(host, run_file):
    run, name = unique("noted"), []
    for seed in (209, 210):
        graph = loop(run, dict(epochs=2), seed=seed) | {"look": probe("Preferences", "judge")}
        name.append(found(host.run(graph), "look")["set_id"])
    record = record_of(run_file(run))
    assert record["format"] == store.FORMAT
    assert [each["start"] for each in record["rounds"]] == [0, 2]
    assert [[one["set"] for one in each["sets"]] for each in record["rounds"]] == [[name[0]], [name[1]]]


def test_held_out_candidates_tell_the_best_checkpoint(host, run_file):
    run = unique("held")
    for seed in (211, 212):
        text = host.run(with_held_out(loop(run, dict(epochs=2), seed=seed), seed=213))["outputs"]["train"][
            "text"
        ][0]
        assert "held-out accuracy: " in text and "held-out pairs: 1" in text
        last = record_of(run_file(run))["history"][-1]
        assert 0 <= last["held-out accuracy"] <= 1 and last["held-out pairs"] == 1
    assert "held-out accuracy" not in record_of(run_file(run))["history"][0]
    graph = stage() | {"run": node("D3POLoadRun", model=["loader", 0], run=run, checkpoint="best")}
    host.run(graph | {"model": probe("Model", "run")})


def test_held_out_sets_that_are_trained_on_are_told(host):
    graph = judged(seed=214) | {
        **train_nodes(held_out=["judge", 0]),
        "losses": probe("LossMap", "train", 2),
    }
    assert "1 of the held-out sets are trained on as well" in host.run(graph)["outputs"]["train"]["text"][0]


@pytest.mark.usefixtures("emoji_model")
def test_held_out_candidates_of_another_model_are_refused(failure):
    graph = with_held_out(
        judged(seed=215) | {**train_nodes(), "losses": probe("LossMap", "train", 2)}, seed=216
    )
    graph["other"] = node("UNETLoader", unet_name="other.safetensors", weight_dtype="default")
    graph["held_sampler"]["inputs"]["model"] = ["other", 0]
    says(failure(graph), "D3POTrainStep", "held_out: ", "another model")


# --- going back, branches, the list ---


@pytest.fixture(scope="module")
def three_rounds(host):
    run = unique("rounds")
    for seed in (221, 222, 223):
        host.run(loop(run, dict(learning_rate=1e-2), seed=seed))
    return run


def branched(host, run):
    name = unique("branch")
    table(host, "branch", run=run, new_name=name)
    return name


def candidates(host, run, checkpoint="latest"):
    """The name of the candidates that a run's LoRA makes."""
    graph = loop(run, seed=224)
    graph = {name: graph[name] for name in graph if name not in ("train", "save", "judge", "decode")}
    graph["run"]["inputs"]["checkpoint"] = checkpoint
    return found(host.run(graph | {"look": probe("Trajectory", "sampler")}), "look")


def test_a_run_goes_on_from_an_earlier_checkpoint(host, three_rounds, run_file):
    run = branched(host, three_rounds)
    for seed in (225, 226):
        host.run(loop(run, seed=seed))
    there = candidates(host, run)
    graph = loop(run, dict(learning_rate=1e-3), seed=227)
    graph["run"]["inputs"]["checkpoint"] = "4"
    host.run(graph)
    assert record_of(run_file(run))["step"] == 5
    again = candidates(host, run)
    assert again["set_id"] != there["set_id"], (
        "picks of the way that was left would be taken for these candidates'"
    )
    assert again["sha"] != there["sha"]


def test_a_branch_goes_on_by_itself(host, three_rounds, run_file):
    kept = run_file(three_rounds).read_bytes()
    name = unique("branch")
    text = table(host, "branch", run=three_rounds, new_name=name, checkpoint="2")
    assert text.startswith(f"{name}: begins at step 2 of {three_rounds}\n")
    host.run(loop(name, seed=228))
    assert record_of(run_file(name))["step"] == 3 and run_file(three_rounds).read_bytes() == kept


def test_runs_are_listed_in_a_table(host, three_rounds):
    (line,) = [line for line in table(host).splitlines() if line.startswith(three_rounds + " ")]
    name, steps, rounds, rank, held_out, best, size, date, time, *rest = line.split()
    assert (steps, rounds, rank, held_out, best) == ("3", "3", "2", "-", "-") and float(size) > 0
    assert rest[:-1] == ["1,", "2,", "3", "SD15"] and re.fullmatch(r"\w{16}", rest[-1])


def test_a_run_is_deleted_when_its_name_is_confirmed(host, three_rounds, failure, run_file, lora_file):
    run = branched(host, three_rounds)
    host.run(loop(run, seed=229))
    assert lora_file(run).exists()
    says(
        failure(manage("delete", run=run, confirm="yes")),
        "D3POManageRuns",
        "confirm: ",
        run,
        "Nothing was deleted",
    )
    assert run_file(run).exists()
    says(failure(manage("delete", run=run, confirm=f"{run} 3")), "D3POManageRuns", "confirm: ", f"{run} 4")
    assert table(host, "delete", run=run, confirm=f"{run} 4").startswith(f"{run}: deleted\n")
    assert (
        not run_file(run).parent.exists() and not lora_file(run).exists() and run_file(three_rounds).exists()
    )
    assert candidates(host, run)["settings"]["lora"] is None


@pytest.mark.parametrize(
    "action, inputs, told",
    [
        ("branch", dict(run="nobody", new_name="x"), "run: there is no run 'nobody'"),
        ("branch", dict(run="{run}", new_name="{run}"), "new_name: "),
        ("branch", dict(run="{run}", new_name="../x"), "cannot name a folder"),
        ("branch", dict(run="{run}", new_name="x", checkpoint="99"), "checkpoint: this run has no '99'"),
        ("delete", dict(run="nobody", confirm="nobody"), "run: there is no run 'nobody'"),
        ("delete", dict(run="..", confirm=".."), "cannot name a folder"),
    ],
)
def test_what_cannot_be_done_is_told_and_leaves_all_as_it_was(
    failure, base, three_rounds, action, inputs, told
):
    runs = base / "output" / "d3po" / "runs"
    before = files(runs)
    inputs = {name: value.format(run=three_rounds) for name, value in inputs.items()}
    says(failure(manage(action, **inputs)), "D3POManageRuns", told)
    assert files(runs) == before


def test_save_run_keeps_as_many_checkpoints_as_it_is_told(host, run_file):
    run = unique("kept")
    for seed in (231, 232, 233):
        graph = loop(run, seed=seed)
        graph["save"]["inputs"]["keep"] = 1
        host.run(graph)
    assert files(run_file(run).parent) == ["checkpoints/step-000003.safetensors", "run.safetensors"]
