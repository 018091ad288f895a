"""Nodes whose result is a text show it on themselves, in both renderers."""

import pytest

from tests.host.graphs import unique
from tests.web.picker import BLANK, complaints, keep, next_entry, set_renderer


def queue(page, host, node_type, **values):
    """Put one node on an empty page and run it: (its id, history entry)."""
    before = set(host.get("/history"))
    node = page.evaluate(
        """async ([blank, type, values]) => {
        await app.loadGraphData(blank)
        const node = LiteGraph.createNode(type)
        app.graph.add(node)
        node.pos = [300, 120]
        Object.entries(values).forEach(([name, value]) => {
            node.widgets.find((one) => one.name === name).value = value
        })
        app.canvas.ds.reset()
        await app.queuePrompt(0, 1)
        return String(node.id)
    }""",
        [BLANK, node_type, values],
    )
    page.wait_for_function(
        "(id) => app.graph.getNodeById(id).widgets.some((one) => one.name === 'report')",
        arg=node,
        timeout=60_000,
    )
    return node, next_entry(page, host, before)


def shown(page, node, renderer):
    """The text that can be seen on the node."""
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    if renderer == "canvas":
        field = page.locator("textarea.comfy-multiline-input")
    else:
        field = page.locator(f"[data-node-id='{node}'] textarea")
    field.first.wait_for(state="visible")
    return field.first.input_value()


@pytest.mark.frontend
@pytest.mark.parametrize(
    "node_type, values, words",
    [
        ("D3PODatasetStatistics", dict(dataset="not there"), "there is no dataset of this name yet"),
        ("D3POManageRuns", {}, "run"),
        ("D3POLoadSets", dict(dataset="not there"), "there is no dataset of this name yet"),
    ],
)
def test_a_nodes_text_is_on_the_node_and_not_in_the_workflow(page, host, renderer, node_type, values, words):
    values = {name: unique(value) for name, value in values.items()}
    set_renderer(page, renderer)
    node, entry = queue(page, host, node_type, **values)
    text = shown(page, node, renderer)
    assert words in text and text == entry["outputs"][node]["text"][0]
    keep(page, "report", node_type, renderer)
    saved = page.evaluate(
        "(id) => app.graph.serialize().nodes.find((one) => String(one.id) === id).widgets_values", node
    )
    sent = page.evaluate("async (id) => (await app.graphToPrompt()).output[id].inputs", node)
    assert text not in saved and "report" not in sent
    page.evaluate("(graph) => app.loadGraphData(graph)", page.evaluate("() => app.graph.serialize()"))
    assert not complaints(page)
