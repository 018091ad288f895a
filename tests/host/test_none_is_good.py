"""A round in which nobody preferred anything is no error: it is kept, and the next one has new candidates."""

import json

from tests.host.graphs import found, loop, node, picked, probe, stock_image, train_nodes, unique, with_prompts
from tests.host.test_runs import record_of

NOBODY = ({"pairs": [], "bad": [0, 1]}, {"ties": [[0, 1]]})


def picking(run, judgements, **sampling):
    """The loop with a person's picks, {set name: judgement}, and what templates wire behind training."""
    graph = loop(run, dict(epochs=2), seed=601, **sampling)
    graph["judge"] = picked(json.dumps({"sets": judgements}))["judge"]
    graph["save"]["inputs"]["run"] = ""
    graph["plot"] = node(
        "D3POPlot", loss_map=["train", 2], runs="", metrics="loss", smoothing=0.6, width=320, height=240
    )
    graph["losses"] = node("LossGraphNode", loss=["train", 2], filename_prefix="loss")
    graph["file"] = node(
        "D3POSaveLoRA",
        model=["loader", 0],
        lora=["train", 1],
        filename_prefix=f"loras/{run}",
        naming="ComfyUI",
    )
    return graph | {"candidates": probe("Trajectory", "sampler")}


def new_set(host, run, judgements):
    """The name of the candidates that a run shows next, and what is told of them."""
    entry = host.run(picking(run, judgements))
    return found(entry, "candidates")["set_id"], found(entry, "candidates")


def test_an_evening_goes_on_after_candidates_of_which_none_is_good(host, run_file, lora_file):
    run, judgements, shown = unique("evening"), {}, []
    for judgement in NOBODY:
        name, look = new_set(host, run, judgements)
        shown.append(look["sha"])
        judgements[name] = judgement
        outputs = host.run(picking(run, judgements))["outputs"]
        (text,) = outputs["train"]["text"]
        assert "Nothing was learned" in text and name in text and "next Run shows new candidates" in text
        assert outputs["train"]["warnings"] and outputs["save"]["text"] == [f"{run}: 0 steps"]
        assert (
            "plot" not in outputs
            and "losses" not in outputs
            and "Nothing was saved" in outputs["file"]["text"][0]
        )
        assert not lora_file(run).exists()
    record = record_of(run_file(run))
    assert (record["step"], len(record["rounds"])) == (0, 2)

    name, look = new_set(host, run, judgements)
    assert len({*shown, look["sha"]}) == 3 and look["settings"]["seed"] == 601 + 2
    outputs = host.run(picking(run, judgements | {name: {"pairs": [[0, 1]]}}))["outputs"]
    assert outputs["save"]["text"] == [f"{run}: 2 steps"] and {"plot", "losses"} <= set(outputs)
    assert lora_file(run).exists() and record_of(run_file(run))["step"] == 2
    assert new_set(host, run, judgements)[1]["settings"]["seed"] == 601, "an update ends the count"


def test_a_set_without_a_preference_leaves_a_trained_lora_as_it_came_in(host, run_file, lora_file):
    run = unique("trained")
    host.run(loop(run, dict(learning_rate=1e-2), seed=602))
    lora = lora_file(run).read_bytes()
    graph = (
        loop(run, dict(learning_rate=1e-2), seed=603)
        | stock_image(["train", 0], "out")
        | stock_image(["run", 0], "in")
    )
    graph["judge"]["inputs"]["least_difference"] = 1e6
    graph["losses"] = probe("LossMap", "train", 2)
    entry = host.run(graph)
    assert found(entry, "out_latent")["sha"] == found(entry, "in_latent")["sha"]
    assert (
        len(found(entry, "losses")["loss"]) == 1
        and "Nothing was learned" in entry["outputs"]["train"]["text"][0]
    )
    record = record_of(run_file(run))
    assert (record["step"], [each["start"] for each in record["rounds"]]) == (1, [0, 1])
    assert len(lora) == len(lora_file(run).read_bytes())
    after = host.run(loop(run, seed=603) | {"look": probe("Trajectory", "sampler")})
    assert found(after, "look")["settings"]["seed"] == 604


def test_the_same_picks_show_the_same_candidates_elsewhere(host):
    """Two runs, as on two machines, of the same workflow."""
    names = []
    for run in (unique("here"), unique("there")):
        first, _ = new_set(host, run, {})
        picks = {first: NOBODY[0]}
        host.run(picking(run, picks))
        names.append((first, new_set(host, run, picks)[0]))
    assert names[0] == names[1] and names[0][0] != names[0][1]


def test_a_set_without_a_preference_among_others_is_told(host):
    def graph(judgements):
        return with_prompts(picked(json.dumps({"sets": judgements}), seed=604), ["a cat", "a dog"]) | {
            **train_nodes(),
            "losses": probe("LossMap", "train", 2),
        }

    one, other = (told["set"] for told in host.run(graph({}))["outputs"]["judge"]["d3po"])
    (text,) = host.run(graph({one: {"pairs": [[0, 1]]}, other: NOBODY[1]}))["outputs"]["train"]["text"]
    assert "1 of 2 sets was passed over: no candidate is strictly preferred" in text
