"""A taste that judges further candidates, and the leash that what is learned of them is held on."""

import re

import pytest

from tests.host.graphs import (
    found,  # fmt: skip
    judged,
    loop,
    node,
    probe,
    recording,
    train_nodes,
    unique,
    with_prompts,
)

PROMPTS = [f"{name} on a {colour} background" for name in ("a cat", "a fox") for colour in ("red", "blue")]


def with_taste(graph, prompts=PROMPTS, candidates=4, model=("loader", 0)):
    """The graph with further candidates that a taste judges, learned from what `judge` says."""
    further = with_prompts(recording(model=model, candidates=candidates, seed=77), prompts, seed=9)
    graph |= {f"further_{name}": further[name] for name in ("prompts", "positive", "sampler")}
    graph["further_positive"]["inputs"]["text"] = ["further_prompts", 0]
    graph["further_sampler"]["inputs"] |= {
        "positive": ["further_positive", 0],
        "seed": ["further_prompts", 1],
    }
    graph["taste"] = node(
        "D3POTastePreference",
        model=["loader", 0],
        preferences=["judge", 0],
        trajectory=["further_sampler", 0],
    )
    graph["look"] = probe("Preferences", "taste")
    return graph


def strength(graph, **widgets):
    """The graph with a train step that its own widgets tell all."""
    wires = {k: v for k, v in graph["train"]["inputs"].items() if isinstance(v, list) and k != "settings"}
    graph["train"]["inputs"] = wires | {"strength": "recommended", "epochs": 0, "rank": 2} | widgets
    return {name: each for name, each in graph.items() if each["class_type"] != "D3POTrainSettings"}


@pytest.fixture(scope="module")
def tasted(host):
    """A taste of brightness, clear to see: of four prompts with five candidates each."""
    return host.run(with_taste(with_prompts(judged(candidates=5), PROMPTS)))


def test_a_taste_learned_from_picks_judges_further_candidates(tasted):
    text = tasted["outputs"]["taste"]["text"][0]
    told = re.search(r"in (\d+)% of cases", text)
    assert "20 judged candidates in 4 sets" in text and told, text
    assert int(told[1]) > 65 and "4 further sets are judged" in text
    picks, further = found(tasted, "look")[:4], found(tasted, "look")[4:]
    assert {each["source"] for each in picks} == {"brightness (brighter)"}
    assert [each["source"] for each in further] == ["taste"] * 4
    assert all(len(each["pairs"]) == 1 for each in further)
    (figures,) = tasted["outputs"]["taste"]["figures"]
    assert figures == {"accuracy": pytest.approx(int(told[1]) / 100, abs=0.006), "judged": 4}


def test_earlier_picks_are_learned_from_too_each_once(host):
    """Two rounds on other seeds, and the second once more: what is in the dataset already counts once."""
    dataset = unique("picks")

    def round_(seed):
        graph = with_taste(with_prompts(judged(candidates=4), PROMPTS[:2], seed), PROMPTS[:1])
        graph["keep"] = node(
            "D3POSaveToDataset", trajectory=["sampler", 0], images=["decode", 0], dataset=dataset,
            annotator="brightness (brighter)")  # fmt: skip
        for name in ("judge", "taste"):
            graph[name]["inputs"]["dataset"] = ["keep", 2]
        graph["judge"]["inputs"] |= {"trajectory": ["keep", 0], "images": ["keep", 1]}
        entry = host.run(graph)
        return entry["outputs"]["taste"]["text"][0], [p["source"] for p in found(entry, "look")]

    assert "8 judged candidates in 2 sets\n" in round_(1)[0]
    text, sources = round_(2)
    assert "16 judged candidates in 4 sets, 2 of them judged earlier" in text
    assert sources[:4] == [dataset] * 2 + ["brightness (brighter)"] * 2
    assert round_(2)[0] == text


def test_one_set_is_too_little_for_a_taste_and_training_gets_the_picks_alone(host):
    entry = host.run(with_taste(judged(candidates=4), PROMPTS[:1]))
    assert "One set cannot tell" in entry["outputs"]["taste"]["text"][0]
    assert found(entry, "look")["source"] == "brightness (brighter)"


def test_where_nothing_is_preferred_there_is_no_taste_and_no_error(host):
    graph = with_taste(judged(candidates=2), PROMPTS[:1])
    graph["judge"]["inputs"]["second_objective"] = "darkness (darker)"  # nothing is better in both
    entry = host.run(graph)
    assert "no preference to learn" in entry["outputs"]["taste"]["text"][0]
    assert found(entry, "look")["pairs"] == []


@pytest.mark.usefixtures("emoji_model")
def test_as_recommended_a_few_picks_train_a_little_and_say_so(host, run_file):
    run = unique("few")
    entry = host.run(strength(loop(run, candidates=2)))
    (text,) = entry["outputs"]["train"]["text"]
    (figures,) = entry["outputs"]["train"]["figures"]
    assert "looked at 2 candidates so far" in text and figures["updates"] == 10
    assert 0 < figures["pictures moved"] <= 0.85 * (2 / 36) ** 0.5 + 1e-6
    assert run_file(run).exists()


def test_a_run_s_rounds_add_up_to_a_longer_leash(host):
    run = unique("longer")
    for seed, looked_at in ((1, 2), (2, 4)):
        entry = host.run(strength(loop(run, seed=seed), epochs=1))
        assert f"looked at {looked_at} candidates so far" in entry["outputs"]["train"]["text"][0]


def test_what_goes_too_far_is_pulled_back(host):
    graph = loop(unique("far"), dict(learning_rate=3e-2, epochs=12, leash=0.3), candidates=4)
    entry = host.run(graph)
    (text,) = entry["outputs"]["train"]["text"]
    (figures,) = entry["outputs"]["train"]["figures"]
    assert "pulled back" in text and 0 < figures["pictures moved"] <= 0.1 + 1e-6


@pytest.mark.parametrize("stop_kl", [0.0, 10.0])
def test_what_a_taste_vouches_for_is_carried_on_but_not_past_a_kl_that_training_is_to_stop_at(host, stop_kl):
    graph = with_taste(with_prompts(judged(candidates=5), PROMPTS))
    graph |= train_nodes(learning_rate=1e-4, leash=2.0, stop_kl=stop_kl)
    graph["train"]["inputs"]["preferences"] = ["taste", 0]
    entry = host.run(graph | {"losses": probe("LossMap", "train", 2)})
    (text,) = entry["outputs"]["train"]["text"]
    (figures,) = entry["outputs"]["train"]["figures"]
    assert ("carried on, to 4.0 times" in text) == (not stop_kl) and "pulled back" not in text
    assert 0 <= figures["pictures moved"] < 2.0


def test_a_taste_guides_where_there_is_one(host):
    graph = strength(with_taste(with_prompts(judged(candidates=5), PROMPTS)) | train_nodes())
    graph["train"]["inputs"] |= {"method": "taste guidance", "epochs": 1}
    graph["losses"] = probe("LossMap", "train", 2)
    graph["train"]["inputs"]["preferences"] = ["judge", 0]
    assert "there is no taste to go by" in host.run(graph)["outputs"]["train"]["text"][0]
    graph["train"]["inputs"]["preferences"] = ["taste", 0]
    entry = host.run(graph)
    (figures,) = entry["outputs"]["train"]["figures"]
    assert figures["updates"] and 0 < figures["pictures moved"] <= 0.85


def test_the_last_round_is_taken_back_by_the_page_and_by_manage_runs(host, run_file, lora_file):
    run = unique("spoiled")
    host.run(loop(run, seed=1))
    first = lora_file(run).read_bytes()
    host.run(loop(run, seed=2))
    assert lora_file(run).read_bytes() != first
    told = host.post("/d3po/undo", {"run": run})["told"]
    assert "from step 2 to step 1" in told and "checkpoint to 2" in told
    entry = host.run({"manage": node("D3POManageRuns", action="undo last round", run=run)})
    assert "from step 1 to step 0" in entry["outputs"]["manage"]["text"][0]
    assert not lora_file(run).exists() and run_file(run).exists()
    host.run(loop(run, seed=3))
    assert lora_file(run).exists()
