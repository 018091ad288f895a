"""What a browser sees while the pack's nodes work."""

import json
import time
import urllib.error

import pytest

from tests.host.graphs import (
    TEXT,
    found,
    judged,
    loop,
    node,
    probe,
    recording,
    same_tensors,
    sized,
    trained,
    unique,
    watch,
    with_prompts,
)


def progress(seen, node_id):
    return [
        (m["data"]["value"], m["data"]["max"])
        for m in seen
        if m["type"] == "progress" and m["data"]["node"] == node_id
    ]


def grows(values):
    return (
        len(values) >= 3
        and all(a[0] < b[0] for a, b in zip(values, values[1:]))
        and len({v[1] for v in values}) == 1
    )


def test_the_sampler_tells_its_progress_over_all_prompts(host):
    graph = with_prompts(recording(steps=4), [TEXT, "a dog"]) | {"look": probe("Trajectory", "sampler")}
    _, seen = watch(host, graph)
    values = progress(seen, "sampler")
    assert grows(values) and values[-1] == (8, 8)


def learning(seen):
    return [m["data"] for m in seen if m["type"] == "d3po.learning"]


def test_the_train_step_tells_its_progress_and_its_curves_to_the_end(host):
    began = time.monotonic()
    entry, seen = watch(host, trained(dict(epochs=8), seed=91, steps=4))
    values, told = progress(seen, "train"), learning(seen)
    assert len(told) - 3 <= 2 * (time.monotonic() - began)  # twice a second, and the first and the last two
    assert grows(values) and values[-1][0] == values[-1][1]
    losses = found(entry, "losses")
    updates = len(losses["margin"])
    assert [one["stage"] for one in told] == ["learning"] * (len(told) - 1) + ["done"]
    assert told[0]["words"].startswith(f"update 1 of {updates}, ") and told[0]["words"].endswith(" left")
    assert told[-2]["words"] == f"update {updates} of {updates}"
    lengths = [len(one["curves"]["margin"]) for one in told]
    assert lengths == sorted(lengths) and lengths[0] == 1 and lengths[-2:] == [updates, updates]
    for number, one in zip(lengths, told):
        assert one["node"] == "train"
        for name in ("margin", "implicit accuracy"):
            assert one["curves"][name] == losses[name.replace(" ", "_")][:number]


def test_with_a_vae_it_tells_of_pictures_and_learns_the_same(host, lora_file):
    """Once ten times a look's time has passed, and at the end. What is learned is the same to the bit."""
    told, times = [], []

    def act(message):
        if message["type"] != "d3po.learning":
            return
        told.append(message["data"])
        times.append(time.monotonic())
        if message["data"]["stage"] == "learning" and message["data"]["pictures"]["now"]:
            enough(host, {key: message["data"][key] for key in ("prompt_id", "node")})

    training = dict(method="D3PO", sets_per_update=2)
    looked, not_looked = unique(), unique()
    prompts = [TEXT, "a dog"]
    graph = loop(looked, training | dict(epochs=500, vae=["loader", 2]), prompts, seed=93)
    entry, _ = watch(host, graph, act)
    first, shown = [one["pictures"] for one in told[:2]]
    assert [one["stage"] for one in told[:2]] == ["looking"] * 2 and first is None
    assert shown["now"] == [] and shown["prompts"] == [TEXT, "a dog"] * 2
    learned = [i for i, one in enumerate(told) if one["stage"] == "learning" and one["pictures"]["now"]]
    assert 5 * (times[1] - times[0]) < times[learned[0]] - times[1], "ten times, but for when it is heard"

    (last,) = entry["outputs"]["train"]["pictures"]
    assert told[-1]["stage"] == "done" and told[-1]["pictures"] == last
    before, now = ([*map(host.image, files)] for files in (last["before"], last["now"]))
    assert all(image.size == (32, 32) for image in before + now)
    assert len({image.tobytes() for image in before + now}) == 8
    with pytest.raises(urllib.error.HTTPError):
        host.image(told[learned[0]]["pictures"]["now"][0])

    updates = len(told[-1]["curves"]["margin"])
    host.run(loop(not_looked, training | dict(epochs=updates), prompts, seed=93))
    assert same_tensors(lora_file(looked), lora_file(not_looked))


def test_a_vae_changes_nothing_of_a_round_on_a_leash_and_of_what_is_named_by_it(host, lora_file):
    runs, outputs, named = [unique(), unique()], [], []
    for run, wired in zip(runs, ({}, dict(vae=["loader", 2]))):
        graph = loop(run, dict(method="Diffusion-DPO", leash=0.85, learning_rate=3e-3) | wired, seed=94)
        graph["again"] = node("D3POKSampler", **graph["sampler"]["inputs"] | dict(model=["train", 0]))
        entry, seen = watch(host, sized(graph | {"look": probe("Trajectory", "again")}, 288, 32))
        outputs.append(entry["outputs"]["train"])
        named.append(found(entry, "look")["set_id"])
    assert same_tensors(*map(lora_file, runs)) and named[0] == named[1]
    assert "pictures" not in outputs[0]
    (last,) = outputs[1]["pictures"]
    assert learning(seen)[-2]["stage"] == "looking" and learning(seen)[-1]["pictures"] == last
    assert [host.image(file).size for file in last["before"] + last["now"]] == [(256, 28)] * 8


def enough(host, body):
    """The status of the answer to a wish to end."""
    try:
        host.post("/d3po/enough", body)
    except urllib.error.HTTPError as error:
        with error:
            assert "error" in json.load(error)
            return error.code
    return 200


def test_training_ends_when_it_is_enough_and_what_was_learned_is_kept(host):
    answers = []

    def act(message):
        if message["type"] == "d3po.learning" and not answers:
            node = {key: message["data"][key] for key in ("prompt_id", "node")}
            answers.extend([enough(host, node | {"node": "judge"}), enough(host, node), node])

    graph = trained(dict(epochs=500), seed=92, steps=3)
    entry, _ = watch(host, graph, act)
    assert answers[:2] == [404, 200] and enough(host, answers[2]) == 404
    updates = len(found(entry, "losses")["margin"])
    assert 1 <= updates < 100
    assert f"ended after update {updates}, as you asked" in entry["outputs"]["train"]["text"][0]
    for body in ({}, {"node": "train"}, {"prompt_id": 1, "node": "train"}, answers[2] | {"more": 1}):
        assert enough(host, body) == 400


def test_a_set_without_a_strict_preference_does_not_stop_the_progress_short(host):
    graph = with_prompts(trained(dict(epochs=2), steps=3), [TEXT, "a dog"])
    graph["judge"]["inputs"]["least_difference"] = 0.0
    sets = found(host.run(graph | {"look": probe("Preferences", "judge")}), "look")
    gaps = sorted(abs(look["scores"][0] - look["scores"][1]) for look in sets)
    graph["judge"]["inputs"]["least_difference"] = sum(gaps) / 2
    _, seen = watch(host, graph | {"losses": probe("LossMap", "train", 2)})
    values = progress(seen, "train")
    assert values[-1][0] == values[-1][1]


def test_the_results_are_told_when_a_job_ends(host):
    _, seen = watch(host, judged(seed=92) | {"look": probe("Preferences", "judge")})
    told = {m["data"]["node"]: m["data"]["output"] for m in seen if m["type"] == "executed"}
    assert len(told["judge"]["objective"]) == 2
    assert seen[-1]["type"] == "execution_success"
