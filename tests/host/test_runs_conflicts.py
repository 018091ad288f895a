"""No save takes another run's place: names that differ, LoRAs that begin anew, two saves in one graph."""

import json

import pytest

from d3po_core.runs import store
from tests.host.graphs import judged, loop, node, says, stage, train_nodes, unique
from tests.host.test_runs import files, record_of


def saved(entry, name="save"):
    (text,) = entry["outputs"][name]["text"]
    return text, entry["outputs"][name].get("warnings", [])


@pytest.fixture
def taste(host, run_file):
    """A run of one round, and all that its folder holds."""
    run = unique("taste")
    host.run(loop(run, seed=501))
    folder = run_file(run).parent
    return run, folder, {file: (folder / file).read_bytes() for file in files(folder)}


def require_kept_beside(taste, run_file, lora_file, entry, *told):
    run, folder, before = taste
    assert {file: (folder / file).read_bytes() for file in files(folder)} == before
    text, (warning,) = saved(entry)
    assert f"{run} branch 2" in text and warning in text
    for part in told:
        assert part in warning
    assert record_of(run_file(f"{run} branch 2"))["step"] == 1 and lora_file(f"{run} branch 2").exists()


def test_the_name_is_given_once(host, run_file, lora_file):
    run = unique("once")
    for seed in (502, 503):
        graph = loop(run, seed=seed)
        graph["save"]["inputs"]["run"] = ""
        entry = host.run(graph)
        assert saved(entry) == (f"{run}: {seed - 501} steps", [])
    assert record_of(run_file(run))["step"] == 2 and lora_file(run).exists()


def test_a_chain_of_train_steps_is_saved_to_the_run_that_it_came_from(host, run_file):
    run = unique("chain")
    graph = loop(run, seed=504)
    graph |= train_nodes("second", lora=["train", 1])
    graph["save"] = node("D3POSaveRun", lora=["second", 1], run="")
    host.run(graph)
    assert record_of(run_file(run))["step"] == 2


def test_without_a_name_or_a_run_to_go_by_it_says_what_to_do(failure, base):
    graph = judged(seed=505) | train_nodes()
    graph["save"] = node("D3POSaveRun", lora=["train", 1], run=" ")
    says(failure(graph), "D3POSaveRun", "run: ", "does not come from D3PO Load Run", "write a name")


def test_a_name_changed_in_load_run_alone_replaces_no_run(host, taste, run_file, lora_file):
    other = unique("other")
    graph = loop(other, seed=506)
    graph["save"]["inputs"]["run"] = taste[0]
    entry = host.run(graph)
    require_kept_beside(taste, run_file, lora_file, entry, f"'{other}'", "leave run empty")
    assert not run_file(other).exists()


def test_a_train_step_whose_lora_is_not_wired_replaces_no_run(host, taste, run_file, lora_file):
    graph = loop(taste[0], seed=507)
    del graph["train"]["inputs"]["lora"]
    require_kept_beside(
        taste, run_file, lora_file, host.run(graph), "wire D3PO Load Run's lora to the train step"
    )


def test_a_run_of_another_rank_is_not_written_over(host, taste, run_file, lora_file):
    graph = judged(seed=508) | train_nodes(rank=4)
    graph["save"] = node("D3POSaveRun", lora=["train", 1], run=taste[0])
    require_kept_beside(taste, run_file, lora_file, host.run(graph), "rank 2", "rank 4")


def test_a_save_of_another_host_in_the_meantime_is_not_replaced(host, taste, run_file):
    """Another round is saved after this one was loaded, as by another ComfyUI."""
    run, folder, _ = taste
    graph = loop(run, seed=509)
    graph |= train_nodes("first", lora=["run", 1], learning_rate=1e-4)
    graph["save_first"] = node("D3POSaveRun", lora=["first", 1], run="")
    entry = host.run(graph)
    told = {saved(entry, name)[0]: saved(entry, name)[1] for name in ("save", "save_first")}
    (branched,) = [text for text in told if "branch 2" in text]
    assert f"{run}: 2 steps" in told and "saved to it since" in told[branched][0]
    ends = [record_of(run_file(name))["rounds"] for name in (run, f"{run} branch 2")]
    assert (
        [len(rounds) for rounds in ends] == [2, 2] and ends[0][0] == ends[1][0] and ends[0][1] != ends[1][1]
    )


def test_a_copy_is_saved_under_a_new_name(host, taste, run_file, lora_file):
    run, copy = taste[0], unique("copy")
    graph = stage() | {
        "run": node("D3POLoadRun", model=["loader", 0], run=run),
        "save": node("D3POSaveRun", lora=["run", 1], run=copy),
    }
    assert saved(host.run(graph)) == (f"{copy}: 1 steps", [])
    assert (
        record_of(run_file(copy))["rounds"] == record_of(run_file(run))["rounds"] and lora_file(copy).exists()
    )
    assert [
        one.name for one in store.list_runs(run_file(run).parent.parent) if one.name.startswith(copy)
    ] == [copy]


def test_a_run_goes_back_to_where_it_began(host, taste, run_file):
    run = taste[0]
    fresh = unique("fresh")
    for name, checkpoint in ((run, "0"), (fresh, "latest")):
        graph = loop(name, dict(learning_rate=1e-2), seed=510)
        graph["run"]["inputs"]["checkpoint"] = checkpoint
        graph["save"]["inputs"]["run"] = ""
        assert saved(host.run(graph)) == (f"{name}: 1 steps", [])
    assert json.dumps(record_of(run_file(run))["rounds"]) == json.dumps(record_of(run_file(fresh))["rounds"])
