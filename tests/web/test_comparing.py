"""Two sides' pictures in pairs, and a blind session over them, as an artist meets them."""

import io

import numpy as np
import pytest
from PIL import Image

from d3po_core.training.win_rate import WinRate
from tests.web.picker import BLANK, Picker, complaints, keep, set_renderer
from tests.web.test_look import matrices
from tools.host import PACK

BUILD = """async ([blank, type, sets, size, seed, values]) => {
  await app.loadGraphData(blank)
  const [source, inverted, node] = ["TestCandidates", "ImageInvert", type].map((each, i) => {
    const made = LiteGraph.createNode(each)
    app.graph.add(made)
    made.pos = [[40, 120], [40, 400], [330, 120]][i]
    return made
  })
  const set = (node, values) => Object.entries(values).forEach(([name, value]) =>
    { node.widgets.find((widget) => widget.name === name).value = value })
  set(source, {seed, candidates: 1, sets, size, control_after_generate: "fixed"})
  set(node, values)
  source.connect(1, inverted, 0)
  source.connect(1, node, 0)
  inverted.connect(0, node, 1)
  app.canvas.ds.reset()
  app.extensionManager.workflow.activeWorkflow.changeTracker.captureCanvasState()
  return String(node.id)
}"""


def build(page, node_type, sets, renderer="canvas", size=64, seed=3, **values):
    set_renderer(page, renderer)
    return page.evaluate(BUILD, [BLANK, node_type, sets, size, seed, values])


class Comparison(Picker):
    """One compare node on a page."""

    ROOT = ".d3po-compare"

    def drawn(self):
        self.page.evaluate(
            "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
        )

    @property
    def stage(self):
        return self.part("stage")

    def shows(self, view):
        return self.stage.get_attribute("data-view") == view

    def panes(self, count):
        self.until(lambda: self.root.locator(".d3po-pane").count() == count)
        self.drawn()


@pytest.fixture
def compare(page, host):
    def make(sets=4, renderer="canvas", **options):
        one = Comparison(page, host, build(page, "D3POCompare", sets, renderer, **options))
        one.root.wait_for()
        return one

    yield make
    assert not complaints(page)


def picture_of(one, pane=0):
    """The middle of what a pane shows, as numbers [height, width, 3]."""
    one.drawn()
    box = one.root.locator(".d3po-pane").nth(pane).bounding_box()
    clip = {"x": box["x"] + 20, "y": box["y"] + 40, "width": box["width"] - 40, "height": box["height"] - 80}
    png = one.page.screenshot(clip=clip)
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def is_like(one, other):
    return one.shape == other.shape and np.abs(one - other).mean() < 3


@pytest.mark.frontend
def test_a_pair_is_seen_apart_under_a_line_in_one_place_and_as_its_difference(compare, renderer):
    one = compare(sets=4, renderer=renderer, size=256)
    assert "Press Run" in one.text
    one.run()
    one.panes(8)
    keep(one.page, "compare_side", renderer)
    one.root.locator(".d3po-pane").nth(5).click()
    one.panes(2)
    assert "3 of 4" in one.text
    one.press("3")
    one.panes(1)
    b = picture_of(one)
    one.page.keyboard.down("f")
    a = picture_of(one)
    one.page.keyboard.up("f")
    assert not is_like(a, b) and is_like(picture_of(one), b)
    one.press("2")
    half = picture_of(one)
    middle = half.shape[1] // 2
    assert is_like(half[:, : middle - 4], a[:, : middle - 4])
    assert is_like(half[:, middle + 4 :], b[:, middle + 4 :])
    one.press("4")
    slider = one.part("slider")
    slider.evaluate("(e) => { e.value = 1; e.dispatchEvent(new Event('input')) }")
    inside = np.abs(a - b).sum(2) > 0  # beside the picture there is the pane
    assert np.abs(picture_of(one) - np.abs(a - b))[inside].mean() < 3
    one.press("ArrowRight")
    assert "4 of 4" in one.text
    one.click("all")
    one.panes(4)
    one.press("e", "?")
    keep(one.page, "compare_expanded", renderer)
    one.press("?", "e")


def test_the_line_follows_the_mouse_and_all_pictures_zoom_together(compare):
    one = compare(sets=3)
    one.run()
    one.click("line")
    one.panes(3)
    box = one.root.locator(".d3po-pane").nth(1).bounding_box()
    x, y = box["x"] + 0.25 * box["width"], box["y"] + box["height"] / 2
    one.page.mouse.move(x, y)
    split = "(e) => Number(getComputedStyle(e).getPropertyValue('--d3po-split'))"
    assert one.stage.evaluate(split) == pytest.approx(0.25, abs=0.01)
    assert float(one.part("slider").input_value()) == pytest.approx(0.25, abs=0.01)
    one.focus()
    one.page.mouse.wheel(0, -600)
    one.until(lambda: matrices(one)[0] != "none")
    assert len(set(matrices(one))) == 1 and len(matrices(one)) == 6
    finger = {"clientX": box["x"] + 0.75 * box["width"], "clientY": y, "pointerType": "touch"}
    one.stage.dispatch_event("pointermove", finger | {"isPrimary": False})
    assert one.stage.evaluate(split) == pytest.approx(0.25, abs=0.01)
    one.stage.dispatch_event("pointermove", finger | {"isPrimary": True})
    assert one.stage.evaluate(split) == pytest.approx(0.75, abs=0.01)
    one.press("0", "1")
    assert set(matrices(one)) == {"none"}


def test_the_flip_button_flips_while_it_is_held_and_keys_stay_in_the_node(compare):
    one = compare(sets=2)
    one.run()
    one.panes(4)
    one.page.evaluate(
        "() => { window.reached = []; "
        """window.addEventListener("keydown", (event) => window.reached.push(event.key)) }"""
    )
    one.focus()
    one.press(*"1234fe", "e", "?", "?", "+", "-", "0", "ArrowLeft", "ArrowRight")
    assert one.page.evaluate("() => window.reached") == []
    one.click("side")
    box = one.part("flip").bounding_box()
    one.page.mouse.move(box["x"] + 5, box["y"] + 5)
    one.page.mouse.down()
    one.until(lambda: one.shows("other"))
    one.page.mouse.up()
    one.until(lambda: one.shows("side"))


@pytest.mark.frontend
def test_a_view_is_kept_with_the_workflow_and_the_widget_is_none_of_its_values(compare):
    one = compare(sets=2)
    one.run()
    one.panes(4)
    one.click("difference")
    one.panes(2)
    saved = one.page.evaluate("() => app.graph.serialize()")
    (node,) = [node for node in saved["nodes"] if node["type"] == "D3POCompare"]
    assert node["widgets_values"] == ["base", "LoRA"] and node["properties"]["view"] == "difference"
    sent = one.page.evaluate("async (id) => (await app.graphToPrompt()).output[id].inputs", one.node)
    assert {*sent} == {"images_a", "images_b", "name_a", "name_b"}


@pytest.mark.frontend
def test_after_an_undo_the_node_shows_what_runs_give(compare, renderer):
    one = compare(sets=2, renderer=renderer)
    one.run()
    one.panes(4)
    tracker = "app.extensionManager.workflow.activeWorkflow.changeTracker"
    one.js("(node) => { node.title = 'another' }")
    one.page.evaluate(f"() => {tracker}.captureCanvasState()")
    one.page.evaluate(f"() => {tracker}.undo()")
    one.until(lambda: one.js("(node) => node.title") == "D3PO Compare")
    one.panes(4)
    sets = "(node) => app.graph._nodes.find((n) => n.type === 'TestCandidates').widgets"
    one.js(sets + ".find((w) => w.name === 'sets').value = 3")
    one.run()
    one.panes(6)


# --- blind ---


@pytest.fixture
def session(page, host):
    def make(sets=10, renderer="canvas", **options):
        one = Picker(page, host, build(page, "D3POWinRate", sets, renderer, **options))
        one.root.wait_for()
        return one

    yield make
    host.interrupt()
    assert not complaints(page)


@pytest.mark.frontend
def test_a_session_is_blind_ends_when_it_is_clear_and_then_tells(session, host, renderer):
    one = session(renderer=renderer, size=256, name_a="first", name_b="second")
    one.run()
    one.question()
    keep(one.page, "win_rate_asked", renderer)
    assert one.part("mode").is_hidden() and "when all 10 pairs are judged" in one.text
    one.focus()
    lefts = []
    while one.part("banner").nth(1).is_hidden():
        left, right = one.question()
        lefts.append(left)
        html = one.root.evaluate("(e) => e.outerHTML")
        assert "first" not in html and "second" not in html and "Candidate" not in html
        one.press("1" if left == 1 else "2")
    assert len(lefts) == 8 and {*lefts} == {0, 1}
    assert [judged["pairs"] for judged in one.value.values()] == [[[1, 0]]] * 8
    keep(one.page, "win_rate_enough", renderer)
    before = set(host.get("/history"))
    one.click("result")
    entry = one.next_run(before)
    (text,) = entry["outputs"][one.node]["text"]
    assert "second 8, first 0" in text and "Enough answers: you prefer second" in text
    assert text in one.text and "8 done, 2 to do" in one.text
    keep(one.page, "win_rate_told", renderer)


def test_what_is_judged_does_not_tell_the_sides_either(session):
    one = session(sets=12)
    one.run()
    one.focus()
    one.press("1", "u")
    assert one.value == {} and "0 done, 12 to do · pair 1 of 12" in one.text
    ties = []
    for _ in range(12):
        ties.append(one.question())
        one.press("3")
    assert one.kind == "done" and {tuple(order) for order in ties} == {(0, 1), (1, 0)}
    for order in ties[:-4:-1]:
        labels = one.root.locator(".d3po-pane").evaluate_all("(all) => all.map((e) => e.ariaLabel)")
        assert one.shown() == order and [label[:11] for label in labels] == ["Candidate 1", "Candidate 2"]
        one.press("{")


def test_the_page_and_the_node_agree_on_when_answers_are_enough(page):
    results = [(w, l, t) for w in range(0, 120, 7) for l in range(0, 120, 3) for t in range(0, 60, 5)]
    found = page.evaluate(
        """async ([module, results]) => {
        const { isEnough } = await import(module)
        return results.map(([wins, losses, ties]) => isEnough({wins, losses, ties}))
    }""",
        [f"/extensions/{PACK}/win_rate.js", results],
    )
    assert found == [WinRate(*result).verdict(complete=False) != "open" for result in results]
