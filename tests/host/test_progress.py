"""What a browser sees while the pack's nodes work."""

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


def test_the_train_step_tells_its_progress_to_the_end(host):
    _, seen = watch(host, trained(dict(epochs=4), seed=91, steps=4))
    values = progress(seen, "train")
    assert grows(values) and values[-1][0] == values[-1][1]


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
