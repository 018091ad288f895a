"""Datasets in the graph: record now, judge later, train on it."""

import contextlib
import json
import sqlite3

import pytest

from tests.host.graphs import found, judged, node, picked, probe, recording, train_nodes, unique, with_prompts


def saved(dataset, annotator="me", prompts=(), **sampling):
    """A recording that goes into a dataset, and nothing else."""
    graph = judged(**sampling)
    del graph["judge"]
    graph["save"] = node(
        "D3POSaveToDataset",
        trajectory=["sampler", 0],
        images=["decode", 0],
        dataset=dataset,
        annotator=annotator,
    )
    if prompts:
        graph = with_prompts(graph, prompts)
        graph["save"]["inputs"]["prompt"] = ["prompts", 0]
    return graph


def load(dataset, annotator="me", sets="not judged by me", **changes):
    return node(
        "D3POLoadSets",
        **(dict(dataset=dataset, annotator=annotator, sets=sets, limit=100, since="", until="") | changes),
    )


def to_judge(dataset, annotator="me", picks="", **changes):
    return {
        "load": load(dataset, annotator, **changes),
        "judge": node(
            "D3POPairPreference", trajectory=["load", 1], images=["load", 2], picks=picks, dataset=["load", 0]
        ),
    }


def preferences(dataset, split="all", **changes):
    return node(
        "D3POLoadPreferences",
        **(
            dict(
                dataset=dataset,
                split=split,
                held_out=0.5,
                annotators="",
                joining="all",
                limit=0,
                since="",
                until="",
            )
            | changes
        ),
    )


def picks_for(told, *judgements):
    return json.dumps({"sets": dict(zip([each["set"] for each in told], judgements))})


@pytest.mark.usefixtures("emoji_model")
def test_sets_are_recorded_now_and_judged_later_by_two_people(host, dataset):
    shown = host.run(saved(dataset, prompts=["a cat", "a dog"], seed=1))["outputs"]["save"]["text"]
    assert shown == [f"{dataset}: 2 new of 2 sets"]
    with dataset.open() as store:
        assert sorted(row.prompt for row in store.sets()) == ["a cat", "a dog"]
        assert {row.model_name for row in store.sets()} == {"d3po-emoji.safetensors"}
    told = host.run(to_judge(dataset, "ann"))["outputs"]["judge"]["d3po"]
    assert [each["judged"] for each in told] == [False, False] and len(told[0]["images"]) == 2
    graph = to_judge(dataset, "ann", picks_for(told, {"pairs": [[1, 0]]}, {"pairs": [], "bad": [0]}))
    graph["look"] = probe("Preferences", "judge")
    assert [each["pairs"] for each in found(host.run(graph), "look")] == [[[1, 0]], []]
    assert host.run(to_judge(dataset, "ann"))["outputs"]["load"]["text"] == [f"{dataset}: 0 sets to judge"]
    assert len(host.run(to_judge(dataset, "ben"))["outputs"]["judge"]["d3po"]) == 2
    nobody = host.run({"load": load(dataset, "ben", sets="not judged by anyone")})
    assert nobody["outputs"]["load"]["text"] == [f"{dataset}: 0 sets to judge"]
    with dataset.open() as store:
        (entry,) = store.judgements(told[0]["set"])
        assert (
            entry.annotator == "ann"
            and entry.judgement.as_json == {"pairs": [[1, 0]]}
            and "picker" in entry.tool
        )


def test_saying_the_same_again_adds_no_judgement_and_another_answer_does(host, dataset):
    host.run(saved(dataset, seed=2))
    told = host.run(to_judge(dataset))["outputs"]["judge"]["d3po"]
    for pairs in ([[1, 0]], [[1, 0]], [[0, 1]]):
        graph = to_judge(dataset, picks=picks_for(told, {"pairs": pairs}), sets="all")
        host.run(graph | {"look": probe("Preferences", "judge")})
    with dataset.open() as store:
        assert [entry.judgement.as_json["pairs"] for entry in store.judgements(told[0]["set"])] == [
            [[1, 0]],
            [[0, 1]],
        ]
        assert store.pairs(told[0]["set"]) == [(0, 1)]


def test_training_from_a_dataset_is_training_from_the_graph_to_the_bit(host, dataset):
    prompts = ["a cat on a red background", "a dog"]
    graph = with_prompts(judged(seed=3), prompts)
    direct = graph | {**train_nodes(), "losses": probe("LossMap", "train", 2)}
    expected = found(host.run(direct), "losses")
    record = saved(dataset, prompts=prompts, seed=3)
    record["judge"] = graph["judge"] | {"inputs": graph["judge"]["inputs"] | {"dataset": ["save", 2]}}
    host.run(record)
    host.post("/free", {"unload_models": True, "free_memory": True})
    later = {name: recording()[name] for name in ("loader",)}
    later |= {
        "load": preferences(dataset),
        **train_nodes(preferences=("load", 0)),
        "losses": probe("LossMap", "train", 2),
    }
    entry = host.run(later)
    assert sorted(found(entry, "losses")["loss"]) == pytest.approx(sorted(expected["loss"]), abs=0)
    assert "2 sets" in entry["outputs"]["load"]["text"][0]


def test_thumbs_go_into_a_dataset_and_come_out_joined_also_where_they_make_no_pair(host, dataset):
    prompts = ["a cat", "a dog", "a fish"]
    host.run(saved(dataset, prompts=prompts, seed=10))
    told = host.run(to_judge(dataset))["outputs"]["judge"]["d3po"]
    sets = [each["set"] for each in told]
    for who, thumbs in {
        "ann": ({"good": [0, 1]}, {"good": [1], "bad": [0]}, {"bad": [0]}),
        "ben": ({"good": [0], "bad": [1]}, {"ties": [[0, 1]], "bad": [0, 1]}, {"good": [0]}),
    }.items():
        graph = to_judge(dataset, who, picks_for(told, *thumbs), sets="all")
        host.run(graph | {"look": probe("Preferences", "judge")})

    def loaded(**changes):
        entry = host.run({"load": preferences(dataset, **changes), "look": probe("Preferences", "load")})
        seen = found(entry, "look")
        seen = seen if isinstance(seen, list) else [seen]
        return entry["outputs"]["load"]["text"], {
            each["set_id"]: (each["pairs"], each["liked"]) for each in seen
        }

    assert loaded() == (
        [f"{dataset}: 2 pairs and 2 thumbs in 2 sets"],
        {sets[0]: ([[0, 1]], [True, None]), sets[1]: ([[1, 0]], [False, None])},
    )
    assert loaded(annotators="ann") == (
        [f"{dataset}: 1 pairs and 5 thumbs in 3 sets"],
        {sets[0]: ([], [True, True]), sets[1]: ([[1, 0]], [False, True]), sets[2]: ([], [False, None])},
    )
    assert loaded(annotators="ann", limit=1)[1].keys() == {sets[0]}
    figures = host.run({"figures": node("D3PODatasetStatistics", dataset=dataset, held_out=0.1)})["outputs"][
        "figures"
    ]
    assert "2 pairs, 1 ties, 5 thumbs up and 5 down" in figures["text"][0]


def test_stars_come_out_of_a_dataset_as_the_scores_of_one_person(host, dataset):
    host.run(saved(dataset, seed=11))
    told = host.run(to_judge(dataset))["outputs"]["judge"]["d3po"]
    for who, scores in (("ann", [5, 1]), ("ben", [2, 3])):
        graph = to_judge(dataset, who, picks_for(told, {"scores": scores}), sets="all")
        host.run(graph | {"look": probe("Preferences", "judge")})
    for names, scores in (("ann", [5, 1]), ("ben", [2, 3]), ("", [])):
        entry = host.run(
            {"load": preferences(dataset, annotators=names), "look": probe("Preferences", "load")}
        )
        assert found(entry, "look")["scores"] == scores


def test_an_objective_judges_a_dataset(host, dataset):
    host.run(saved(dataset, prompts=["a cat", "a dog"], seed=4))
    graph = {
        "load": load(dataset),
        "judge": node(
            "D3POObjectivePreference",
            trajectory=["load", 1],
            images=["load", 2],
            objective="brightness (brighter)",
            second_objective="none",
            target_colour="#ffffff",
            least_difference=0.0,
            dataset=["load", 0],
        ),
    }
    host.run(graph | {"look": probe("Preferences", "judge")})
    with dataset.open() as store:
        statistics = store.statistics()
    assert statistics["annotators"] == {"brightness (brighter)": 2} and statistics["pairs"] == 2


@pytest.mark.usefixtures("emoji_model")
def test_train_and_held_out_share_no_set_and_stay_when_sets_are_added(host, dataset):
    def names(split):
        entry = host.run({"load": preferences(dataset, split), "look": probe("Preferences", "load")})
        if "look" not in entry["outputs"]:
            return set()
        seen = found(entry, "look")
        return {each["set_id"] for each in (seen if isinstance(seen, list) else [seen])}

    def record(seed, count):
        graph = saved(dataset, prompts=[f"prompt {seed} {i}" for i in range(count)], seed=seed)
        graph["judge"] = judged()["judge"]
        graph["judge"]["inputs"]["dataset"] = ["save", 2]
        host.run(graph)

    record(5, 4)
    train, held = names("train"), names("held out")
    assert not train & held and len(train | held) == 4
    record(6, 3)
    assert train <= names("train") and held <= names("held out") and len(names("all")) == 7


@pytest.mark.usefixtures("emoji_model")
def test_statistics_say_what_is_there(host, dataset):
    host.run(saved(dataset, seed=7))
    entry = host.run({"figures": node("D3PODatasetStatistics", dataset=dataset, held_out=0.1)})
    text = entry["outputs"]["figures"]["text"][0]
    assert "1 sets, 0 judged, 1 to judge" in text and "d3po-emoji.safetensors: 1 sets" in text


def test_the_picker_takes_a_dataset_only_with_sets_it_holds(failure, host, dataset):
    host.run(saved(dataset, seed=8))
    told = host.run(picked(seed=9))["outputs"]["judge"]["d3po"]
    graph = picked(picks_for(told, {"pairs": [[0, 1]]}), seed=9) | {"load": load(dataset)}
    graph["judge"]["inputs"]["dataset"] = ["load", 0]
    assert "does not hold the set" in failure(graph).message


@pytest.mark.parametrize("name", ["../outside", "a/b", "", "CON", "x" * 200])
def test_a_name_that_is_no_folder_is_refused(failure, name):
    assert "dataset: " in failure({"load": load(name)}).message


def test_a_dataset_that_is_not_there_yet_is_told_and_stops_nothing_else(host):
    name = unique("nowhere")
    graph = to_judge(name) | {"train_from": preferences(name), "look": probe("Preferences", "train_from")}
    outputs = host.run(graph)["outputs"]
    assert (
        outputs["load"]["text"]
        == outputs["train_from"]["text"]
        == [f"{name}: there is no dataset of this name yet"]
    )
    assert "look" not in outputs and "judge" not in outputs


def test_a_damaged_set_is_left_out_and_the_others_go_on(host, base, dataset):
    graph = saved(dataset, prompts=["a cat", "a dog", "a fish"], seed=12)
    graph["judge"] = judged()["judge"]
    graph["judge"]["inputs"]["dataset"] = ["save", 2]
    host.run(graph)
    dataset_folder = base / "output/d3po/datasets" / dataset
    with dataset.open() as store:
        first, second, _ = (row.id for row in store.sets())
        store.image_files(second)[0].write_bytes(b"x")
        (dataset_folder / store._conditioning_row(second)["file"]).unlink()
    with (
        contextlib.closing(sqlite3.connect(dataset_folder / "index.sqlite")) as index,
        index,
    ):
        index.execute(
            "UPDATE judgements SET judgement = ?, pairs = ? WHERE set_id = ?",
            ["[" * 9999, "[[0, 99]]", first],
        )
    name = unique("export")
    outputs = host.run(
        {
            "loader": recording()["loader"],
            "preferences": preferences(dataset),
            "sets": load(dataset, "ben"),
            "figures": node("D3PODatasetStatistics", dataset=dataset, held_out=0.1),
            "out": node("D3POExportPreferences", dataset=dataset, format="csv", name=name, annotator=""),
            "encode": node(
                "D3POEncodePairs",
                model=["loader", 0],
                clip=["loader", 1],
                vae=["loader", 2],
                limit=0,
                dataset=["sets", 0],
                split="all",
                held_out=0.1,
                annotators="",
                joining="all",
            ),
            "look": probe("Preferences", "preferences"),
            "train on": probe("Preferences", "encode"),
        }
    )["outputs"]
    texts = {name: outputs[name]["text"][0] for name in ("preferences", "sets", "figures", "out", "encode")}
    assert (
        f"{dataset}: 1 pairs in 1 sets" in texts["preferences"]
        and f"left out: set '{first}'" in texts["preferences"]
        and f"left out: set '{second}'" in texts["preferences"]
    )
    assert f"{dataset}: 2 sets to judge" in texts["sets"] and f"left out: set '{second}'" in texts["sets"]
    assert "3 sets, 3 judged" in texts["figures"]
    assert "1 pairs in 1 sets" in texts["out"] and first in texts["out"] and "is not an image" in texts["out"]
    assert "1 pairs in 1 sets" in texts["encode"] and first in texts["encode"] and second in texts["encode"]


def test_datasets_are_merged_once_under_a_new_name(host, dataset):
    name, other, both = dataset, f"{dataset} 2", f"{dataset} both"
    for each, prompt in ((name, "a cat"), (other, "a dog")):
        host.run(saved(each, prompts=[prompt], seed=33))
    graph = {
        "merge": node("D3POMergeDatasets", datasets=f"{name}\n{other}\n", merged=both),
        "load": load(both),
    }
    graph["load"]["inputs"]["dataset"] = ["merge", 0]
    entry = host.run(graph)["outputs"]
    assert entry["merge"]["text"] == [f"{both}: 2 sets and 0 judgements of 2 datasets"]
    assert entry["load"]["text"] == [f"{both}: 2 sets to judge"]
    graph["merge"]["inputs"]["datasets"] += "another\n"
    (kept,) = host.run(graph)["outputs"]["merge"]["text"]
    assert kept.startswith(f"{both} is there already")
