"""A ComfyUI that has no model and no card: what was recorded elsewhere is judged there."""

import shutil

import pytest

from d3po_core.dataset.store import Dataset
from tests.host.graphs import judged, node, unique
from tests.web.picker import BLANK, Picker, complaints, keep, open_page
from tools.host import Host, make_base

BUILD = """async ({blank, dataset}) => {
  await app.loadGraphData(blank)
  const [sets, picker, preview] = ["D3POLoadSets", "D3POPairPreference", "PreviewImage"].map((type, i) => {
    const node = LiteGraph.createNode(type)
    app.graph.add(node)
    node.pos = [[40, 120], [330, 120], [1030, 120]][i]
    return node
  })
  const set = (name, value) => { sets.widgets.find((widget) => widget.name === name).value = value }
  set("dataset", dataset)
  set("annotator", "ann")
  for (const name of ["dataset", "trajectory", "images"]) sets.connect(name, picker, name)
  picker.connect("preferred", preview, "images")
  app.extensionManager.workflow.activeWorkflow.changeTracker.captureCanvasState()
  return String(picker.id)
}"""


@pytest.fixture(scope="module")
def recorded(host):
    """A dataset of two sets with their trajectories, which nobody has judged."""
    name = unique("recorded")
    wires = dict(trajectory=["sampler", 0], images=["decode", 0])
    for seed in (1, 2):
        graph = judged(candidates=3, seed=seed)
        del graph["judge"]
        host.run(graph | {"keep": node("D3POSaveToDataset", **wires, dataset=name, annotator="me")})
    return host.base / "output" / "d3po" / "datasets" / name


@pytest.fixture(scope="module")
def bare(recorded, tmp_path_factory):
    """Another ComfyUI, of a folder without any model, to which the dataset was copied."""
    base = make_base(tmp_path_factory.mktemp("bare"))
    for checkpoint in (base / "models" / "checkpoints").iterdir():
        checkpoint.unlink()
    shutil.copytree(recorded, base / "output" / "d3po" / "datasets" / recorded.name)
    with Host(base, ["--disable-api-nodes", "--cpu"]) as host:
        yield host


def test_what_was_recorded_elsewhere_is_judged_without_a_model(recorded, bare, browser):
    page = open_page(browser, bare)
    picker = Picker(page, bare, page.evaluate(BUILD, dict(blank=BLANK, dataset=recorded.name)))
    picker.root.wait_for()
    entry = picker.run()
    assert entry["status"]["status_str"] == "success"
    picker.focus()
    asked = picker.answer_as(lambda left, right: "1" if left < right else "2")
    keep(page, "judged", "without", "a", "model")
    picker.until(lambda: not any(told["waiting"] for told in picker.sets))
    assert len(asked) >= 4 and picker.run()["status"]["status_str"] == "success"
    with Dataset(bare.base / "output" / "d3po" / "datasets" / recorded.name, create=False) as dataset:
        rows = dataset.sets(judged=True, annotator="ann")
        assert len(rows) == 2 and all((0, 2) in dataset.pairs(row.id, "ann") for row in rows)
    assert not complaints(page)
    page.context.close()
