"""Workflows from before D3PO Train Settings.

Their train steps held every setting, and get such a node when they are opened."""

import copy

import pytest

from tests.host.test_older_prompts import OLDER
from tests.web.picker import BLANK
from tests.web.train_step import HIDDEN, TRACKER, TrainStep, train_step
from tools.workflow import load, to_api

OPEN = "async (workflow) => app.loadGraphData(workflow)"
COUNT = "() => app.rootGraph._nodes.filter(({type}) => type === 'D3POTrainSettings').length"
TEMPLATES = ["d3po_thumbs", "d3po_train_on_pairs"]


def of_type(workflow, kind):
    (found,) = [node for node in workflow["nodes"] if node["type"] == kind]
    return found


def older_values(workflow):
    """What an older workflow's train step is to be trained with, by today's names."""
    saved = of_type(workflow, "D3POTrainStep")["widgets_values"]
    names = (
        "epochs sets_per_update learning_rate beta clip weighting reference guidance step_fraction rank "
        "alpha targets weight_decay max_grad_norm candidates_per_pass seed save_every dpo_beta draws_per_set "
        "method learn_from caption_dropout adapter dropout optimizer schedule warmup ema window_start "
        "window_end evaluate_every patience stop_kl"
    ).split()
    assert len(saved) == len(names)
    return dict(zip(names, saved))


@pytest.fixture
def opened(step):
    """Open a workflow; its train step and settings, and its values where it has one of each."""

    def open_(workflow):
        step.page.evaluate(OPEN, workflow)
        nodes = step.page.evaluate("""() => ["D3POTrainStep", "D3POTrainSettings"].map((type) => {
            const graphs = [app.rootGraph, ...app.rootGraph.subgraphs.values()]
            const graph = graphs.find(({_nodes}) => _nodes.some((node) => node.type === type))
            app.canvas.setGraph(graph)
            return String(graph._nodes.find((node) => node.type === type).id)
        })""")
        return TrainStep(step.page, *nodes, step.renderer).drawn()

    return open_


@pytest.mark.frontend
@pytest.mark.parametrize("name", TEMPLATES)
def test_an_older_workflow_has_its_values_and_is_saved_in_the_new_form(opened, name, object_info):
    workflow = load(OLDER / f"{name}.json")
    step = opened(copy.deepcopy(workflow))
    step.page.evaluate("() => app.extensionManager.command.execute('Comfy.Canvas.FitView')")
    step.shoot(f"older {name}")
    values = older_values(workflow)
    assert step.values.items() >= values.items()
    assert step.hidden == HIDDEN[values["method"]]
    saved, sent = step.sent()
    assert sent.items() >= values.items() and sent["strength"] == "paper"
    assert sent == train_step(to_api(saved, object_info))
    others = workflow | {"nodes": [one for one in workflow["nodes"] if one["type"] != "D3POTrainStep"]}
    before, after = (to_api(each, object_info) for each in (others, saved))
    assert len(after) == len(before) + 2
    assert all(after[key]["inputs"].items() >= node["inputs"].items() for key, node in before.items())
    assert step.page.evaluate(COUNT) == 1
    node = of_type(saved, "D3POTrainStep")
    assert node["widgets_values"] == [
        values["method"],
        "paper",
        *(values[n] for n in ("epochs", "rank", "targets")),
    ]
    again = opened(saved)
    assert (again.values, again.sent()[1]) == (step.values, sent) and step.page.evaluate(COUNT) == 1


def test_values_of_a_workflow_that_is_older_still(opened):
    """It was saved before there were methods."""
    workflow = load(OLDER / "d3po_thumbs.json")
    values = older_values(workflow)
    node = of_type(workflow, "D3POTrainStep")
    del node["widgets_values"][19:]
    known = dict(list(values.items())[:19])
    step = opened(workflow)
    assert step.values.items() >= (known | {"method": "D3PO", "stop_kl": 0.0}).items()


def test_a_linked_setting_is_linked_to_its_new_place(opened, object_info):
    workflow = load(OLDER / "d3po_thumbs.json")
    node = of_type(workflow, "D3POTrainStep")
    workflow["nodes"].append({
        "id": 150, "type": "PrimitiveFloat", "pos": [1400, 900], "size": [200, 60],
        "flags": {}, "order": 0, "mode": 0,
        "inputs": [], "outputs": [{"name": "FLOAT", "type": "FLOAT", "links": [90, 91]}],
        "properties": {}, "widgets_values": [0.25],
    })  # fmt: skip
    for link, name in ((90, "beta"), (91, "method.caption_dropout")):
        node["inputs"].append({"name": name, "type": "FLOAT", "widget": {"name": name}, "link": link})
        workflow["links"].append([link, 150, 0, node["id"], len(node["inputs"]) - 1, "FLOAT"])
    workflow["last_link_id"] = 91
    saved, sent = opened(workflow).sent()
    assert sent["beta"] == sent["caption_dropout"] == ["150", 0]
    assert sent == train_step(to_api(saved, object_info))


@pytest.mark.frontend
def test_in_a_subgraph(step, opened, object_info):
    """A workflow of today with both in a subgraph, brought back to the old form by hand."""
    new = opened(load(OLDER / "d3po_thumbs.json"))
    new.js(
        """(node, settings) => {
        const {node: box} = app.rootGraph.convertToSubgraph(
            new Set([node, app.rootGraph.getNodeById(settings)]))
        box.title = "training"
    }""",
        new.settings,
    )
    saved, sent = new.sent()
    older = copy.deepcopy(saved)
    (subgraph,) = older["definitions"]["subgraphs"]
    node, settings = (of_type(subgraph, kind) for kind in ("D3POTrainStep", "D3POTrainSettings"))
    subgraph["nodes"].remove(settings)
    (place,) = [i for i, slot in enumerate(node["inputs"]) if slot["name"] == "settings"]
    subgraph["links"] = [link for link in subgraph["links"] if link["id"] != node["inputs"][place]["link"]]
    del node["inputs"][place]
    for link in subgraph["links"]:
        if link["target_id"] == node["id"] and link["target_slot"] > place:
            link["target_slot"] -= 1
    node["widgets_values"] = of_type(load(OLDER / "d3po_thumbs.json"), "D3POTrainStep")["widgets_values"]
    step.page.evaluate(OPEN, BLANK)
    again = opened(older)
    assert again.hidden == HIDDEN["Diffusion-KTO"]
    saved, now = again.sent()
    assert now == sent == train_step(to_api(saved, object_info))


def test_undo_other_workflows_and_copies_leave_it_as_it_is(opened):
    workflow = load(OLDER / "d3po_thumbs.json")
    values = older_values(workflow)
    step = opened(workflow)
    step.remember()
    step.set(beta=3.0, epochs=5)
    step.remember()
    step.page.evaluate(f"() => {TRACKER}.undo()")
    assert step.values.items() >= values.items() and step.page.evaluate(COUNT) == 1
    step.page.evaluate(f"() => {TRACKER}.redo()")
    assert step.values["beta"] == 3.0 and step.values["epochs"] == 5
    command = "(command) => app.extensionManager.command.execute(command)"
    step.page.evaluate(command, "Comfy.NewBlankWorkflow")
    assert step.page.evaluate(COUNT) == 0
    step.page.evaluate(command, "Workspace.PreviousOpenedWorkflow")
    step.page.wait_for_function("() => app.rootGraph._nodes.length")
    assert step.values["beta"] == 3.0 and step.page.evaluate(COUNT) == 1
    step.js(
        """(node, settings) => {
        app.canvas.selectItems([node, app.canvas.graph.getNodeById(settings)])
        app.canvas.copyToClipboard()
        app.canvas.pasteFromClipboard()
    }""",
        step.settings,
    )
    assert step.page.evaluate(COUNT) == 2
    assert step.page.evaluate("""() => app.rootGraph._nodes.filter(({type}) => type === "D3POTrainSettings")
        .every((node) => node.widgets.find(({name}) => name === "beta").value === 3)""")
