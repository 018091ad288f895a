"""Train step and settings on the page: what the method uses is shown, what it does not use is kept."""

import pytest

from tests.web.picker import BLANK, set_setting
from tests.web.train_step import HIDDEN, OF_METHOD, OF_SOME, OWN, SHARED, TRACKER, TrainStep, train_step
from tools.workflow import to_api

ADVANCED = "Comfy.Node.AlwaysShowAdvancedWidgets"  # which Nodes 2.0 folds away


def test_only_what_a_method_uses_is_shown_and_the_node_is_no_longer_than_that(step):
    heights = {}
    for method in [*HIDDEN, "D3PO"]:
        step.choose(method)
        assert step.hidden == HIDDEN[method], method
        height, least = step.height
        heights[method] = height - least
        step.shoot(method)
    assert all(abs(left) < 2 for left in heights.values()), heights


@pytest.mark.frontend
def test_what_is_rarely_changed_is_hidden_as_well_where_it_is_of_no_use(step):
    set_setting(step.page, ADVANCED, True)
    try:
        for method in ("D3PO", "Diffusion-DPO", "MaPO", "D3PO"):
            step.choose(method)
            assert OF_SOME - set(step.shown) == HIDDEN[method], method
    finally:
        set_setting(step.page, ADVANCED, False)


@pytest.mark.frontend
def test_without_one_method_to_go_by_all_are_shown(step):
    assert step.hidden == HIDDEN["Diffusion-DPO"]
    another = step.js(
        """(node, settings) => {
        const another = LiteGraph.createNode("D3POTrainStep")
        app.canvas.graph.add(another)
        another.pos = [300, 600]
        app.canvas.graph.getNodeById(settings).connect(0, another, another.findInputSlot("settings"))
        return String(another.id)
    }""",
        step.settings,
    )
    other = TrainStep(step.page, another, step.settings, step.renderer)
    assert step.hidden == HIDDEN["Diffusion-DPO"]
    step.choose("DDPO")
    assert step.hidden == set()
    other.choose("DDPO")
    assert step.hidden == HIDDEN["DDPO"]
    unwire = "(node) => node.disconnectInput(node.findInputSlot('settings'))"
    other.js(unwire)
    assert step.hidden == HIDDEN["DDPO"]
    step.js(unwire)
    assert step.hidden == set()


@pytest.mark.frontend
def test_where_the_method_is_linked_all_are_shown(step):
    step.choose("DDPO")
    step.js("""(node) => {
        const source = LiteGraph.createNode("PrimitiveString")
        app.canvas.graph.add(source)
        source.pos = [20, 60]
        source.connect(0, node, node.inputs.findIndex((input) => input.name === "method"))
    }""")
    linked = step.js("(node) => node.inputs.find((input) => input.name === 'method').link != null")
    assert step.hidden == (set() if linked else HIDDEN["DDPO"])


def test_a_method_keeps_its_values_and_the_others_over_saving_and_loading(step, object_info):
    step.set(**OWN)
    # what is saved does not depend on the renderer: one is enough for methods that share their widgets
    for method in OF_METHOD if step.renderer == "canvas" else SHARED:
        own = OF_METHOD[method]
        step.choose(method)
        numbers = {name: step.values[name] / 2 for name in own - {"learn_from", "caption_dropout"}}
        step.set(**numbers, patience=3)
        before, (saved, sent) = step.values, step.sent()
        assert before.items() >= (OWN | numbers | {"patience": 3, "method": method}).items()
        assert sent == before
        assert sent == train_step(to_api(saved, object_info))
        step.page.evaluate("async (blank) => app.loadGraphData(blank)", BLANK)
        step.page.evaluate("async (saved) => app.loadGraphData(saved)", saved)
        assert step.values == before and step.hidden == HIDDEN[method]
        (node,) = [node for node in saved["nodes"] if node["type"] == "D3POTrainSettings"]
        assert step.height[0] == node["size"][1]
        assert step.sent()[1] == sent


@pytest.mark.frontend
def test_undo_and_redo_bring_the_widgets_of_their_method(step):
    step.set(**OWN)
    step.remember()
    for method in ("DDPO", "MaPO"):
        step.choose(method)
        step.remember()
    for act, method in (("undo", "DDPO"), ("undo", "Diffusion-DPO"), ("redo", "DDPO"), ("redo", "MaPO")):
        step.page.evaluate(f"() => {TRACKER}.{act}()")
        assert step.values["method"] == method and step.hidden == HIDDEN[method]
        assert step.values.items() >= OWN.items()


@pytest.mark.frontend
def test_a_copy_shows_what_its_original_does_and_goes_its_own_way(step):
    step.set(**OWN)
    step.choose("DDPO")
    nodes = step.js(
        """(node, settings) => {
        app.canvas.selectItems([node, app.canvas.graph.getNodeById(settings)])
        app.canvas.copyToClipboard()
        app.canvas.pasteFromClipboard()
        for (const one of [node, app.canvas.graph.getNodeById(settings)]) one.pos = [one.pos[0] + 2000, 60]
        const pasted = app.canvas.graph._nodes.slice(-2)
        return ["D3POTrainStep", "D3POTrainSettings"].map(
            (type) => String(pasted.find((one) => one.type === type).id))
    }""",
        step.settings,
    )
    copy = TrainStep(step.page, *nodes, step.renderer)
    assert not {copy.node, copy.settings} & {step.node, step.settings}
    copy.js(
        """(node, settings) => {
        node.pos = [300, 60]
        app.canvas.graph.getNodeById(settings).pos = [720, 60]  // pasted where the mouse is: over the other
        app.canvas.deselectAll()
    }""",
        copy.settings,
    )
    copy.drawn()
    assert copy.values == step.values and copy.hidden == HIDDEN["DDPO"]
    copy.choose("D3PO")
    assert copy.hidden == HIDDEN["D3PO"] and copy.values.items() >= OWN.items()
    hidden = step.js("(node) => node.widgets.filter((w) => w.hidden).length", node=step.settings)
    assert hidden == len(HIDDEN["DDPO"])


@pytest.mark.frontend
def test_in_a_subgraph(step, object_info):
    step.set(**OWN)
    step.choose("MaPO")
    before = step.sent()[1]
    step.node, step.settings = step.js(
        """(node, settings) => {
        const both = new Set([node, app.canvas.graph.getNodeById(settings)])
        const {node: box} = app.rootGraph.convertToSubgraph(both)
        app.canvas.setGraph(box.subgraph)
        Object.assign(app.canvas.ds, {scale: 0.8, offset: [0, 60]})
        const inside = ["D3POTrainStep", "D3POTrainSettings"].map(
            (type) => box.subgraph.nodes.find((one) => one.type === type))
        inside.forEach((one, place) => { one.pos = [300 + 420 * place, 60] })
        return inside.map(({id}) => String(id))
    }""",
        step.settings,
    )
    assert step.hidden == HIDDEN["MaPO"]
    step.choose("DDPO")
    assert step.hidden == HIDDEN["DDPO"]
    saved, sent = step.sent()
    assert sent == train_step(to_api(saved, object_info)) and sent.items() >= OWN.items()
    assert sent["method"] == "DDPO"
    step.choose("MaPO")
    assert step.sent()[1] == before


@pytest.mark.frontend
def test_a_linked_widget_stays_until_its_link_goes(step):
    step.js(
        """(node) => {
        const source = LiteGraph.createNode("PrimitiveFloat")
        app.canvas.graph.add(source)
        source.pos = [20, 60]
        source.connect(0, node, node.inputs.findIndex((input) => input.name === "beta"))
    }""",
        node=step.settings,
    )
    step.choose("DDPO")
    assert step.hidden == HIDDEN["DDPO"] - {"beta"}
    step.shoot("linked")
    step.js(
        "(node) => node.disconnectInput(node.inputs.findIndex((input) => input.name === 'beta'))",
        node=step.settings,
    )
    assert step.hidden == HIDDEN["DDPO"]
