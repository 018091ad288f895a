"""The example workflows as the page draws them."""

import json

import pytest

from tests.web.picker import complaints, keep, set_renderer
from tools.host import ROOT

FILES = sorted((ROOT / "example_workflows").glob("*.json"))
# resolves once no node has changed its place or size for a while: Nodes 2.0 grows nodes to their contents
OPENED = """async (workflow) => {
  await app.loadGraphData(workflow)
  const boxes = () => app.graph.nodes.map((node) => [node.id, node.type, ...node.boundingRect])
  for (let same = 0, tries = 0, last; same < 10 && tries < 200; tries++) {
    await new Promise(requestAnimationFrame)
    const now = JSON.stringify(boxes())
    same = now === last ? same + 1 : 0
    last = now
  }
  return boxes()
}"""


def overlapping(boxes):
    """Pairs of nodes of [(id, type, x, y, width, height)] one of which covers a part of the other."""
    return [
        (one[:2], other[:2])
        for i, one in enumerate(boxes)
        for other in boxes[:i]
        if all(
            min(one[at] + one[at + 2], other[at] + other[at + 2]) - max(one[at], other[at]) > 1
            for at in (2, 3)
        )
    ]


def test_no_node_of_an_example_covers_another(page, renderer):
    set_renderer(page, renderer)
    found = {}
    for file in FILES:
        boxes = page.evaluate(OPENED, json.loads(file.read_text("utf-8")))
        assert len(boxes) > 5
        found[file.stem] = overlapping(boxes)
    assert not any(found.values()), found
    complaints(page)


@pytest.mark.frontend
def test_an_example_opens_on_what_comes_first_and_is_read_without_zooming(page):
    """As the template browser opens it."""
    open_ = """async ([workflow, name]) => {
      await app.loadGraphData(workflow, true, true, name, {openSource: "template"})
      for (let i = 0; i < 6; i++) await new Promise(requestAnimationFrame)
      return [app.canvas.ds.scale, ...app.canvas.visible_area, "d3po_first_view" in app.rootGraph.extra]
    }"""
    first = {}
    for file in FILES:
        workflow = json.loads(file.read_text("utf-8"))
        scale, x, y, width, height, again = page.evaluate(open_, [workflow, file.stem])
        keep(page, "template", file.stem)
        first[file.stem] = scale
        assert not again  # saved again, it has the view that it was left with
        if wanted := workflow["extra"].get("d3po_first_view"):
            assert x <= wanted[0] and wanted[0] + wanted[2] <= x + width
            assert y <= wanted[1] and wanted[1] + wanted[3] <= y + height
    assert min(first.values()) > 0.55, first
    page.evaluate("() => app.canvas.ds.reset()")
    complaints(page)


def test_what_covers_another_is_found():
    apart, inside = (1, "A", 0, 0, 10, 10), (2, "B", 5, 5, 3, 3)
    assert overlapping([apart, (2, "B", 10, 0, 10, 10)]) == [] != overlapping([apart, inside])
