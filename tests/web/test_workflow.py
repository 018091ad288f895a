"""Picks are data of the workflow: copied, undone, saved, shared, inside a subgraph."""

import json
import shutil

import pytest

from tests.host.graphs import cached_nodes, same_tensors, unique
from tests.web.picker import Picker, set_renderer
from tests.web.test_judging import by_number, only
from tests.web.test_look import shoot
from tests.web.test_rounds import SAME
from tests.web.test_runs import history, outputs
from tools.host import ROOT
from tools.workflow import load, to_api

EXAMPLE = ROOT / "example_workflows" / "d3po_picker_loop.json"


def judged(picker, **options):
    picker = picker(**options)
    picker.run()
    picker.focus()
    picker.answer_as(by_number)
    return picker


@pytest.mark.frontend
def test_a_copy_carries_the_picks_and_goes_its_own_way(picker):
    one = judged(picker, candidates=3, size=53)
    other = one.copied()
    assert other.node != one.node
    assert other.value == one.value
    changed = {"version": 1, "sets": {"other": {"pairs": [[0, 1]]}}}
    other.js("(node, text) => { node.widgets[0].value = text }", json.dumps(changed))
    assert one.value != other.value and "other" not in one.value


@pytest.mark.frontend
def test_undoing_the_workflow_undoes_the_picks_and_redoing_brings_them_back(picker, renderer):
    picker = picker(candidates=3, size=52, renderer=renderer)
    picker.run()
    picker.focus()
    picker.question()
    picker.press("1")
    picker.page.evaluate(
        "() => app.extensionManager.workflow.activeWorkflow.changeTracker.captureCanvasState()"
    )
    done = picker.value
    assert done
    picker.page.evaluate("() => app.extensionManager.workflow.activeWorkflow.changeTracker.undo()")
    picker.until(lambda: picker.value == {})
    picker.question()
    picker.page.wait_for_timeout(400)  # a widget that is gone must not tell of its change any more
    picker.page.evaluate("() => app.extensionManager.workflow.activeWorkflow.changeTracker.redo()")
    picker.until(lambda: picker.value == done)
    picker.question()
    assert "1 done, 2 to do" in picker.text
    picker.click_pane(0)
    assert picker.value != done and "2 done, 1 to do" in picker.text


@pytest.mark.frontend
def test_each_answer_is_a_step_of_the_workflows_undo(picker):
    picker = picker(candidates=3, size=51)
    picker.run()
    picker.focus()
    steps = "() => app.extensionManager.workflow.activeWorkflow.changeTracker.undoQueue.length"
    for _ in range(2):
        before = picker.page.evaluate(steps)
        picker.question()
        picker.press("1")
        picker.until(lambda: picker.page.evaluate(steps) == before + 1)
        picker.page.wait_for_timeout(100)  # newer frontends take into a step what changes within 50 ms of it


def test_picks_of_other_sets_stay_and_come_back_with_their_set(picker):
    one = judged(picker, candidates=3, size=50)
    first = one.value
    seed = "(node, seed) => { app.graph.getNodeById(1).widgets.find((w) => w.name === 'seed').value = seed }"
    one.js(seed, 5)
    one.run()
    assert one.kind == "pair" and one.question()
    one.focus()
    one.answer_as(by_number)
    assert len(one.value) == 2 and first.items() <= one.value.items()
    one.js(seed, 0)
    again = one.run()
    assert only(outputs(again, one.node)["d3po"])["judged"] is True


@pytest.mark.frontend
def test_widgets_promoted_onto_a_subgraph_work_and_the_picker_stays_where_it_can_be_seen(
    picker, host, renderer
):
    """No frontend shows a custom widget on a subgraph's node, nor one inside whose value comes from there."""
    outer = picker(candidates=2, size=36, renderer=renderer)
    path = outer.js("""(node) => {
        const {node: box} = app.rootGraph.convertToSubgraph(new Set([node]))
        const [inside] = box.subgraph.nodes
        app.canvas.openSubgraph(box.subgraph, box)
        app.canvas.ds.reset()
        inside.pos = [330, 120]
        app.canvas.setDirty(true, true)
        return [String(box.id), String(inside.id)]
    }""")
    inner = Picker(outer.page, host, ":".join(path), **outer.others)
    inner.root.wait_for()
    promote(inner, "picks", inner.part("status"))
    promote(inner, "when_missing", outer.page.get_by_text("when_missing", exact=True).first)
    promoted = outer.page.evaluate(
        """(id) => {
        const {widgets} = app.rootGraph.getNodeById(id)
        widgets[0].value = "wait"
        return widgets.map(({name}) => name)
    }""",
        path[0],
    )
    assert promoted == ["when_missing"]
    before = history(host)
    inner.run(wait=False)
    inner.question()
    assert inner.root.is_visible() and "The run waits for your picks" in inner.text
    inner.focus()
    inner.press("e")
    shoot(inner, f"subgraph_expanded_{renderer}".replace(" ", "_"))
    inner.press("1", "e")
    assert outputs(inner.next_run(before), inner.others["preview"])["images"] and len(inner.value) == 1
    outer.page.evaluate("() => app.canvas.setGraph(app.rootGraph)")


def promote(inner, name, place):
    """Ask for a widget to be promoted.

    In the canvas renderer it is the one under the mouse, else it is by the menu at `place`."""
    if inner.page.evaluate("() => LiteGraph.vueNodesMode"):
        place.click(button="right")
        inner.page.get_by_role("menuitem", name=f"Promote Widget: {name}").click()
        return
    inner.js(
        """async (node, name) => {
        app.canvas.draw(true, true)
        const {y} = node.widgets.find((widget) => widget.name === name)
        app.canvas.graph_mouse = [node.pos[0] + 60, node.pos[1] + y + 10]
        await app.extensionManager.command.execute("Comfy.Graph.ToggleWidgetPromotion")
    }""",
        name,
    )


@pytest.mark.frontend
@pytest.mark.parametrize("depth", [1, 2])
def test_a_picker_in_a_subgraph(picker, host, renderer, depth):
    outer = picker(candidates=3, size=49, renderer=renderer, next_round=True)
    path = outer.js(
        """async (node, depth) => {
        let inside = node, path = []
        for (let i = 0; i < depth; i++) {
            app.canvas.deselectAll?.()
            const {node: box} = app.rootGraph.convertToSubgraph(
                new Set([i ? app.rootGraph.getNodeById(path[0]) : node]))
            path = [String(box.id), ...path.slice(0, 0)].concat(
                i ? [String(box.subgraph.nodes[0].id), ...path.slice(1)] : [String(box.subgraph.nodes[0].id)])
        }
        app.extensionManager.workflow.activeWorkflow.changeTracker.captureCanvasState()
        return path
    }""",
        depth,
    )
    inner = Picker(outer.page, host, ":".join(path), **outer.others)
    assert len(path) == depth + 1
    outer.page.evaluate(
        """async (path) => {
        let graph = app.rootGraph
        for (const id of path.slice(0, -1)) graph = graph.getNodeById(id).subgraph
        app.canvas.openSubgraph
            ? app.canvas.openSubgraph(graph, app.rootGraph.getNodeById(path[0]))
            : app.canvas.setGraph(graph)
        app.canvas.ds.reset()
    }""",
        path,
    )
    inner.run()
    inner.root.wait_for()
    inner.focus()
    inner.answer_as(by_number)
    before = history(host)
    inner.click("continue")
    went_on = inner.next_run(before)
    assert outputs(went_on, inner.others["preview"])["images"]
    saved = went_on["prompt"][3]["extra_pnginfo"]["workflow"]
    assert only(inner.value) in json.dumps(saved)
    inner.until(lambda: SAME in inner.text)  # the next round was queued, and brought nothing new
    outer.page.evaluate("() => app.canvas.setGraph(app.rootGraph)")


@pytest.mark.frontend
def test_a_collapsed_node_keeps_its_picks_and_shows_them_again(picker, renderer):
    one = judged(picker, candidates=3, size=48, renderer=renderer)
    done = one.value
    one.js("(node) => node.collapse()")
    one.root.wait_for(state="hidden")
    assert one.value == done
    one.run()
    one.js("(node) => node.collapse()")
    one.root.wait_for(state="visible")
    assert one.kind == "done" and one.value == done


@pytest.mark.frontend
def test_a_renderer_is_changed_under_way(picker):
    one = picker(candidates=3, size=47)
    one.run()
    for renderer in ("nodes 2.0", "canvas"):
        one.focus()
        one.question()
        one.press("1")
        set_renderer(one.page, renderer)
        one.root.wait_for(state="visible")
        assert one.question()
    assert "2 done, 1 to do" in one.text


def test_picks_that_cannot_be_read_are_told_and_kept(picker):
    text = '{"version": 9, "sets": {"a": 1}}'
    one = picker(candidates=2, picks=text, size=46)
    assert "cannot be read" in one.text and "version 9" in one.text
    assert one.js("(node) => node.widgets[0].value") == text


@pytest.mark.frontend
def test_picks_written_by_hand_are_shown_and_can_be_changed(picker):
    one = picker(candidates=3, size=45)
    one.run()
    name = only(one.sets)["set"]
    one.js(
        "(node, text) => { node.widgets[0].value = text }",
        json.dumps({"sets": {name: {"ranking": [2, 0, 1]}}}),
    )
    one.until(lambda: one.kind == "done")
    one.drawn()
    assert one.shown()[0] == 2
    one.focus()
    one.press("[")
    left, right = one.question()
    one.press("3")
    assert only(one.value.values())["ties"] == [sorted([left, right])] or {left, right} in map(
        set, only(one.value.values())["ties"]
    )


def test_a_shared_workflow_trains_the_same_lora_without_a_click(host, base, page, new_page, object_info):
    """Judged on one page, saved, opened in another browser profile, run: the same LoRA, bit for bit."""

    def load_example(page, workflow, run):
        for node in workflow["nodes"]:
            if node["type"] == "CheckpointLoaderSimple":
                node |= {"type": "TestSmallModel", "inputs": [], "widgets_values": []}
            changes = {"D3POLoadRun": {0: run}, "D3POSaveRun": {0: run}}.get(node["type"], {})
            for place, value in changes.items():
                node["widgets_values"][place] = value
        page.evaluate("(workflow) => app.loadGraphData(workflow)", workflow)
        page.evaluate("() => app.extensionManager.command.execute('Comfy.Canvas.FitView')")
        node = only(node["id"] for node in workflow["nodes"] if node["type"] == "D3POPairPreference")
        picker = Picker(page, host, str(node))
        picker.root.wait_for()
        return picker

    def small(workflow):
        prompt = to_api(workflow, object_info)
        for node in workflow["nodes"]:
            names = list(prompt.get(str(node["id"]), {"inputs": {}})["inputs"])
            for name, value in {
                "D3POKSampler": {"steps": 3, "candidates": 2},
                "D3POTrainStep": {"epochs": 1, "rank": 2},
                "KSampler": {"steps": 3},
                "EmptyLatentImage": {"width": 32, "height": 32},
            }.get(node["type"], {}).items():
                widgets = [n for n in names if not isinstance(prompt[str(node["id"])]["inputs"][n], list)]
                place = widgets.index(name)
                place += (
                    name != "seed" and "seed" in widgets[:place]
                )  # control_after_generate has a place of its own
                node["widgets_values"][place] = value
        return workflow

    run = unique("shared")
    set_renderer(page, "canvas")
    one = load_example(page, small(load(EXAMPLE)), run)
    nodes = one.run()["prompt"][2]
    sampler = only(i for i, node in nodes.items() if node["class_type"] == "D3POKSampler")
    written = nodes[nodes[sampler]["inputs"]["positive"][0]]["inputs"]["text"]
    assert one.root.locator(".d3po-prompt").inner_text() == written
    one.focus()
    one.answer_as(by_number)
    saved = page.evaluate("() => app.graph.serialize()")
    before = history(host)
    one.click("continue")
    trained = one.next_run(before, 180)
    assert trained["status"]["status_str"] == "success", trained["status"]["messages"][-1]
    assert sampler in cached_nodes(trained)

    lora = base / "output" / "loras" / "d3po" / f"{run}.safetensors"
    kept = lora.rename(lora.with_name("kept.safetensors"))
    shutil.rmtree(base / "output" / "d3po" / "runs" / run)
    host.post("/free", {"unload_models": True, "free_memory": True})  # nothing may come from the cache
    two = load_example(new_page(), saved, run)
    trained = two.run(timeout=180)
    assert trained["status"]["status_str"] == "success" and sampler not in cached_nodes(trained)
    assert same_tensors(kept, lora)


@pytest.mark.frontend
def test_undoing_in_the_expanded_view_closes_it_and_loses_no_later_answer(picker, renderer):
    one = picker(candidates=3, size=39, renderer=renderer)
    one.run()
    one.focus()
    one.question()
    one.press("1")
    one.page.evaluate("() => app.extensionManager.workflow.activeWorkflow.changeTracker.captureCanvasState()")
    one.press("e")
    one.page.keyboard.press("Control+z")
    one.until(lambda: one.value == {} and not one.page.locator("dialog.d3po-dialog").count())
    one.question()
    one.focus()
    one.press("2")
    assert len(one.value) == 1


def test_a_mode_that_asks_less_finishes_what_was_begun_in_another(picker):
    one = picker(candidates=3, size=38)
    one.run()
    one.focus()
    one.answer_as(by_number)
    finished = one.value
    mode = one.part("mode")
    mode.select_option("stars")
    one.question()
    one.focus()
    one.press("4")
    assert only(one.value.values())["open"] is True
    mode.select_option("pairs")
    one.drawn()
    assert one.kind == "done" and only(one.value.values()).get("open") is None
    assert only(one.value.values())["pairs"] == only(finished.values())["pairs"]


@pytest.mark.parametrize("text", ['{"sets": {"a": null}}', '{"sets": []}', "3", "null"])
def test_a_value_that_is_no_picks_is_told_and_kept(picker, text):
    one = picker(candidates=2, picks=text, size=37)
    assert "cannot be read" in one.text and one.js("(node) => node.widgets[0].value") == text
