"""What a browser sees while the pack's nodes work."""

import json
import time
import urllib.error

from tests.host.graphs import TEXT, found, judged, probe, recording, trained, watch, with_prompts


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
