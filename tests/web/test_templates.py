"""The example workflows as the page draws them."""

import json

from tests.web.picker import complaints, set_renderer
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


def test_what_covers_another_is_found():
    apart, inside = (1, "A", 0, 0, 10, 10), (2, "B", 5, 5, 3, 3)
    assert overlapping([apart, (2, "B", 10, 0, 10, 10)]) == [] != overlapping([apart, inside])
