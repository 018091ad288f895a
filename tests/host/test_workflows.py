"""The example workflows: sound files, and tiny versions of each run as `python dev.py run` runs them."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from tests.host import graphs
from tests.host.graphs import cached_nodes, found, probe, unique
from tests.host.test_interface import flat
from tools.host import ROOT
from tools.run import WAITS, waits
from tools.workflow import MUTED, Level, load, to_api

FILES = {path.stem: path for path in (ROOT / "example_workflows").glob("*.json")}
OBJECTIVE, PICKER = "d3po_objective_loop", "d3po_picker_loop"
RECORD, SEVERAL, PAIRS = "d3po_record_and_judge_later", "d3po_several_annotators", "d3po_train_on_pairs"
JUDGE, THUMBS, TASTE = "d3po_implicit_judge", "d3po_thumbs", "d3po_taste_loop"
REWARDS, SAFETY = "d3po_reward_gradients", "d3po_safety"
AI_FEEDBACK, AESTHETIC = "d3po_ai_feedback", "d3po_aesthetic"
SEARCHES, MY_TASTE = "d3po_best_of_many", "d3po_my_taste_searches"
# what is tried with the emoji model in little; the others as they are
IN_LITTLE = {RECORD, SEVERAL, PAIRS, THUMBS, SAFETY, AI_FEEDBACK, SEARCHES, MY_TASTE}
NUMBERS = {"INT": int, "FLOAT": (int, float)}


def one(prompt, class_type):
    """The id of the one node of a type."""
    (node_id,) = [node_id for node_id, node in prompt.items() if node["class_type"] == class_type]
    return node_id


def tiny(name, object_info, run, **named):
    """The workflow, by its name or its path, as an API prompt, as small as still means something. `named`
    changes inputs by name."""
    prompt = to_api(load(FILES.get(name, name)), object_info)
    for node in prompt.values():
        node["inputs"] |= {
            key: value
            for key, value in named.items()
            if key in node["inputs"] and not isinstance(node["inputs"][key], list)
        }
    changes = {
        "D3POKSampler": {"steps": 3, "candidates": 2},
        "D3POPrompts": {"count": 2},
        "KSampler": {"steps": 3},
        "EmptyLatentImage": {"width": 32, "height": 32},
        "D3POTrainStep": {"epochs": 1, "rank": 2},
        "D3PORewardTrainStep": {"steps": 2, "updates": 2, "pictures": 2, "rank": 2},
        "D3POBestOfN": {"steps": 3, "candidates": 4},
        "D3PONoiseSearch": {"steps": 3, "neighbours": 2, "rounds": 1},
        "D3PODOODL": {"steps": 3, "updates": 1},
        "D3POLoadRun": {"run": run},
        "D3POSaveRun": {"run": run},
    }
    if name in IN_LITTLE:
        prompt[one(prompt, "CheckpointLoaderSimple")] = graphs.loader()
    for node in prompt.values():
        for key, value in changes.get(node["class_type"], {}).items():
            assert key in node["inputs"]
            node["inputs"][key] = value
    return prompt


@pytest.fixture(params=sorted(FILES))
def workflow(request):
    return load(FILES[request.param])


def test_every_workflow_is_tried_here_and_has_a_picture():
    loops = {OBJECTIVE, PICKER, RECORD, SEVERAL, PAIRS, JUDGE, THUMBS, TASTE, REWARDS}
    assert loops | {SAFETY, AI_FEEDBACK, AESTHETIC, SEARCHES, MY_TASTE} == set(FILES)
    assert all(path.with_suffix(".jpg").exists() for path in FILES.values())


def test_a_workflow_is_in_the_frontends_format_with_a_note(workflow):
    assert {"nodes", "links", "version", "last_node_id", "last_link_id"} <= set(workflow)
    (note,) = [node for node in workflow["nodes"] if node["type"] == "MarkdownNote"]
    assert len(note["widgets_values"][0]) > 200
    ids = [node["id"] for node in workflow["nodes"]]
    assert len(set(ids)) == len(ids) and max(ids) <= workflow["last_node_id"]
    assert max(link[0] for link in workflow["links"]) <= workflow["last_link_id"]


def test_a_workflow_holds_no_path_of_a_machine(workflow):
    assert not re.search(
        r"(^|[\s\"'(])(/\w[\w.-]*){2,}|[A-Za-z]:\\\\?\w|file:", json.dumps(workflow, ensure_ascii=False)
    )


def test_every_link_joins_two_slots_that_fit(workflow, object_info):
    nodes = {node["id"]: node for node in workflow["nodes"]}
    for number, origin, slot, target, target_slot, kind in workflow["links"]:
        output, entry = nodes[origin]["outputs"][slot], nodes[target]["inputs"][target_slot]
        assert number in output["links"] and entry["link"] == number
        info, wanted = object_info[nodes[origin]["type"]], object_info[nodes[target]["type"]]["input"]
        spec = (wanted.get("required", {}) | wanted.get("optional", {}))[entry["name"]]
        assert (info["output_name"][slot], info["output"][slot]) == (output["name"], output["type"])
        assert kind in (spec[0], "*") or spec[0] == "*"
        assert info["output"][slot] == spec[0] or spec[0] == "*"
    ends = [entry["link"] for node in nodes.values() for entry in node["inputs"] if entry["link"] is not None]
    assert sorted(ends) == sorted(link[0] for link in workflow["links"])


def test_every_widget_holds_a_value_that_its_node_takes(workflow, object_info):
    level = Level(workflow, {}, object_info)
    for node in workflow["nodes"]:
        if node["type"] == "MarkdownNote":
            continue
        specs = dict(flat(object_info[node["type"]]["input"]))
        values, kinds = level.widgets(node)
        options = {name: specs[name][1] if len(specs[name]) > 1 else {} for name in values}
        controls = sum(bool(option.get("control_after_generate")) for option in options.values())
        assert len(node["widgets_values"]) == len(values) + controls, node["type"]
        for name, value in values.items():
            kind, where = kinds[name], f"{node['type']}.{name} = {value!r}"
            if kind == "COMFY_DYNAMICCOMBO_V3":
                assert value in [option["key"] for option in options[name]["options"]], where
            elif kind == "COMBO":
                choices = specs[name][0] if isinstance(specs[name][0], list) else options[name]["options"]
                # a muted node may name a file that is to be downloaded first
                assert value in choices or node["mode"] == MUTED, where
            elif kind in NUMBERS:
                assert isinstance(value, NUMBERS[kind]) and not isinstance(value, bool), where
                assert options[name].get("min", value) <= value <= options[name].get("max", value), where
            else:
                assert isinstance(value, str), where


@pytest.fixture
def headless(host, command, tmp_path):
    """Run a prompt as `dev.py run` does: its entry in the history."""

    def ran(prompt):
        (tmp_path / "prompt.json").write_text(json.dumps(prompt))
        code, _, complained = command(tmp_path / "prompt.json")
        (entry,) = host.get("/history?max_items=1").values()
        assert code == (WAITS if waits(entry) else 0), complained
        return entry

    return ran


def test_two_rounds_of_the_objective_loop_train_one_run(host, headless, object_info, run_file, lora_file):
    run = unique("objective")
    prompt = tiny(OBJECTIVE, object_info, run)
    began = len(host.log())
    train, save, steps, images = one(prompt, "D3POTrainStep"), one(prompt, "D3POSaveRun"), [], []
    for seed in (1, 2):
        prompt[one(prompt, "D3POPrompts")]["inputs"]["seed"] = seed
        outputs = headless(prompt)["outputs"]
        steps.append(outputs[save]["text"][0])
        assert "updates" in outputs[train]["text"][0]
        assert len(outputs[one(prompt, "D3POObjectivePreference")]["objective"]) == 4
        images.append(outputs[one(prompt, "D3POPlot")]["images"])
    assert steps == [f"{run}: 1 steps", f"{run}: 2 steps"]
    assert run_file(run).stat().st_size > 10_000 and lora_file(run).stat().st_size > 10_000
    assert host.image(images[-1][0]).size == (900, 600)
    log = host.log()[began:]
    assert not any(word in log for word in ("Traceback", "not loaded", "NOT LOADED", "WARNING")), log


def test_the_picker_loop_stops_for_picks_and_then_trains(host, headless, object_info, run_file):
    run = unique("picker")
    prompt = tiny(PICKER, object_info, run)
    picker, train, sampler = (
        one(prompt, name) for name in ("D3POPairPreference", "D3POTrainStep", "D3POKSampler")
    )

    entry = headless(prompt)
    shown = entry["outputs"][picker]
    (told,) = shown["d3po"]
    assert told["judged"] is False and told["candidates"] == len(shown["images"]) == 2
    assert [host.image(image).size for image in shown["images"]] == [(32, 32)] * 2
    assert re.fullmatch("[0-9a-f]{16}", told["set"])
    assert train not in entry["outputs"] and one(prompt, "D3POSaveRun") not in entry["outputs"]
    assert not run_file(run).exists()

    prompt[picker]["inputs"]["picks"] = json.dumps({"version": 1, "sets": {told["set"]: {"pairs": [[1, 0]]}}})
    entry = headless(prompt)
    (again,) = entry["outputs"][picker]["d3po"]
    assert again["judged"] is True and again["set"] == told["set"]
    assert {sampler, prompt[picker]["inputs"]["images"][0]} <= cached_nodes(entry)
    assert train not in cached_nodes(entry) and "1 pairs in 1 sets" in entry["outputs"][train]["text"][0]
    assert run_file(run).exists() and len(looked_at(host, prompt, entry)) == 4

    entry = headless(prompt)  # the run has a LoRA now, so these are other candidates, without picks
    (after,) = entry["outputs"][picker]["d3po"]
    assert not after["judged"] and after["set"] != told["set"] and sampler not in cached_nodes(entry)


def looked_at(host, prompt, entry):
    """The pairs that a workflow ends with: the same noise, moved by the LoRA but still the same picture."""
    pairs = [
        [np.asarray(host.image(image)).astype(float) for image in pair]
        for pair in entry["outputs"][one(prompt, "D3POCompare")]["compared"]
    ]
    assert all(0 < np.abs(base - lora).mean() < 60 for base, lora in pairs)
    return pairs


def all_of(prompt, class_type):
    return [node_id for node_id, node in prompt.items() if node["class_type"] == class_type]


def judge_all(headless, prompt, picker):
    """Run a workflow with picks for all that one of its pickers shows; how many sets that were."""
    told = headless(prompt)["outputs"].get(picker, {}).get("d3po", [])
    prompt[picker]["inputs"]["picks"] = json.dumps(
        {"sets": {each["set"]: {"pairs": [[1, 0]]} for each in told}}
    )
    headless(prompt)
    return len(told)


def test_what_is_recorded_is_judged_later_by_several_and_trained_on(headless, object_info, run_file):
    dataset, run = unique("dataset"), unique("taste")
    prompt = tiny(RECORD, object_info, run, dataset=dataset)
    headless(prompt)
    (picker,) = all_of(prompt, "D3POPairPreference")
    assert judge_all(headless, prompt, picker) == 2
    prompt = tiny(SEVERAL, object_info, run, dataset=dataset, annotators="", held_out=0.0)
    both = all_of(prompt, "D3POPairPreference")
    assert [judge_all(headless, prompt, picker) for picker in both] == [2, 2]
    train, statistics = one(prompt, "D3POTrainStep"), one(prompt, "D3PODatasetStatistics")
    outputs = headless(
        prompt
        | {"again": {"class_type": "D3PODatasetStatistics", "inputs": {"dataset": dataset, "held_out": 0.2}}}
    )
    assert "2 pairs in 2 sets" in outputs["outputs"][train]["text"][0] and run_file(run).exists()
    text = outputs["outputs"]["again"]["text"][0]
    assert "agree on 100%" in text and all(f"  {who}: 2" in text for who in ("ann", "ben", "me")), text
    assert statistics


def test_a_folder_of_pairs_trains_a_run(headless, base, object_info, run_file):
    source, run = unique("pairs"), unique("from")
    for side, shade in {"w": 220, "l": 40}.items():
        (base / "input" / source / side).mkdir(parents=True)
        for i in range(3):
            Image.new("RGB", (64, 64), (shade, shade - 10 * i, shade)).save(
                base / "input" / source / side / f"{i}.png"
            )
    prompt = tiny(PAIRS, object_info, run, dataset=unique("dataset"), source=source, held_out=0.0)
    train = one(prompt, "D3POTrainStep")
    assert prompt[train]["inputs"]["method"] == "Diffusion-DPO"
    outputs = headless(prompt)["outputs"]
    assert "3 pairs in 3 sets" in outputs[train]["text"][0]
    assert run_file(run).exists()


def test_a_trained_lora_judges_for_another_that_learns_from_it(headless, object_info, run_file):
    judge, run = unique("judge"), unique("taught")
    headless(tiny(OBJECTIVE, object_info, judge))
    prompt = tiny(JUDGE, object_info, run, draws=4, least_difference=0.0)
    by_judge = prompt[prompt[one(prompt, "D3POImplicitPreference")]["inputs"]["tuned"][0]]
    assert by_judge["class_type"] == "D3POLoadRun"
    by_judge["inputs"]["run"] = judge
    outputs = headless(prompt)["outputs"]
    assert "2 pairs in 2 sets" in outputs[one(prompt, "D3POTrainStep")]["text"][0]
    assert run_file(run).exists()


def test_a_taste_learned_from_picks_judges_what_nobody_looks_at(host, headless, object_info, run_file):
    run = unique("tasted")
    prompt = tiny(TASTE, object_info, run)
    picker, train = one(prompt, "D3POPairPreference"), one(prompt, "D3POTrainStep")
    told = headless(prompt)["outputs"][picker]["d3po"]
    assert [each["candidates"] for each in told] == [2, 2]
    prompt[picker]["inputs"]["picks"] = json.dumps(
        {"sets": {each["set"]: {"pairs": [[1, 0]]} for each in told}}
    )
    entry = headless(prompt)
    outputs = entry["outputs"]
    assert "4 judged candidates in 2 sets" in outputs[one(prompt, "D3POTastePreference")]["text"][0]
    assert "updates" in outputs[train]["text"][0] and run_file(run).exists()
    assert len(looked_at(host, prompt, entry)) == 2


def test_no_example_changes_what_is_recommended(workflow):
    """But for one thing or another that it is about."""
    assert "D3POTrainSettings" not in [node["type"] for node in workflow["nodes"]]
    steps = [node["widgets_values"] for node in workflow["nodes"] if node["type"] == "D3POTrainStep"]
    assert all(values[1:] == ["recommended", 0, 8, "all linear"] for values in steps)


def test_thumbs_train_without_a_comparison(headless, object_info, run_file):
    run = unique("thumbs")
    prompt = tiny(THUMBS, object_info, run)
    picker, train = one(prompt, "D3POPairPreference"), one(prompt, "D3POTrainStep")
    assert prompt[train]["inputs"]["method"] == "Diffusion-KTO"
    (told,) = headless(prompt)["outputs"][picker]["d3po"]
    prompt[picker]["inputs"]["picks"] = json.dumps({"sets": {told["set"]: {"good": [0, 1]}}})
    report = headless(prompt)["outputs"][train]["text"][0]
    assert "winner log-ratio" in report and "loser log-ratio" not in report and run_file(run).exists()


def test_two_rounds_along_a_gradient_raise_the_score_and_leave_the_model(
    host, headless, object_info, run_file
):
    run = unique("rewards")
    prompt = tiny(REWARDS, object_info, run)
    train, loader = one(prompt, "D3PORewardTrainStep"), one(prompt, "CheckpointLoaderSimple")
    prompt["watching"] = graphs.node(
        "D3POObjectiveScorer", objective="brightness (brighter)", target_colour=""
    )
    prompt[train]["inputs"]["second_scorer"] = ["watching", 0]
    look, figures = {loader: prompt[loader], "look": probe("Model", loader)}, []
    before = found(headless(look), "look")
    for updates in (2, 4):
        entry = headless(prompt)
        (own,) = entry["outputs"][train]["figures"]
        assert own["step"] == updates and own["second score gain"] == own["score gain"]
        figures.append(own)
    look["look"] = probe("Model", loader)
    assert found(headless(look), "look") == before
    assert 0 < figures[0]["score gain"] < figures[1]["score gain"]
    assert 0 <= figures[1]["pictures moved"] <= 0.85 and run_file(run).exists()
    assert len(looked_at(host, prompt, entry)) == 4


def test_an_unwanted_concept_is_judged_down_and_counted_on_both_kinds_of_prompts(
    headless, object_info, run_file
):
    run = unique("safety")
    prompt = tiny(SAFETY, object_info, run, threshold=-0.4)
    train, judge = one(prompt, "D3POTrainStep"), one(prompt, "D3POScorePreference")
    assert (prompt[train]["inputs"]["method"], prompt[judge]["inputs"]["better_1"]) == (
        "D3PO", "lower is better")  # fmt: skip
    outputs = headless(prompt)["outputs"]
    assert "2 pairs in 2 sets" in outputs[train]["text"][0] and run_file(run).exists()
    told = [outputs[rate]["text"][0] for rate in all_of(prompt, "D3PORate")]
    for kind, text in zip(("named", "not named"), told, strict=True):
        assert text.startswith(f"deep blue, {kind} (above -0.4): ") and " of 4 with LoRA" in text


def test_a_scorers_ranking_is_learned_and_asked_for_on_held_out_prompts(
    host, headless, object_info, run_file
):
    run = unique("feedback")
    prompt = tiny(AI_FEEDBACK, object_info, run, draws=2)
    train, accuracy = one(prompt, "D3POTrainStep"), one(prompt, "D3POImplicitAccuracy")
    assert prompt[train]["inputs"]["method"] == "Diffusion-DPO"
    entry = headless(prompt)
    assert "2 pairs in 2 sets" in entry["outputs"][train]["text"][0] and run_file(run).exists()
    assert "2 pairs in 2 sets" in entry["outputs"][accuracy]["text"][0]
    assert len(looked_at(host, prompt, entry)) == 4


def test_a_rating_rises_along_its_gradient(host, headless, object_info, run_file):
    run = unique("rating")
    prompt = tiny(AESTHETIC, object_info, run)
    entry = headless(prompt)
    (figures,) = entry["outputs"][one(prompt, "D3PORewardTrainStep")]["figures"]
    assert figures["score gain"] > 0 and run_file(run).exists()
    assert len(looked_at(host, prompt, entry)) == 4


def test_searches_find_better_pictures_and_so_does_a_taste(headless, object_info):
    prompt = tiny(SEARCHES, object_info, "")
    outputs = headless(prompt)["outputs"]
    best, search, doodl = (
        outputs[one(prompt, name)]["text"][0] for name in ("D3POBestOfN", "D3PONoiseSearch", "D3PODOODL")
    )
    assert "the best of 4 pictures scores" in best and "3 pictures;" in search and "1 updates;" in doodl

    prompt = tiny(MY_TASTE, object_info, "", keep=2)
    picker, finds = one(prompt, "D3POPairPreference"), one(prompt, "D3POBestOfN")
    outputs = headless(prompt)["outputs"]
    assert finds not in outputs
    sets = {each["set"]: {"pairs": [[1, 0]]} for each in outputs[picker]["d3po"]}
    prompt[picker]["inputs"]["picks"] = json.dumps({"sets": sets})
    outputs |= headless(prompt)["outputs"]  # of what is cached, older hosts tell nothing again
    assert "the best of 4 pictures scores" in outputs[finds]["text"][0]
    assert sorted(len(outputs[shown]["images"]) for shown in all_of(prompt, "PreviewImage")) == [2, 4]
