"""A train step shows how it learns while it does and what pictures become, and ends when its button is
pressed."""

import json

from tests.host.graphs import TEXT, trained
from tests.web.picker import keep, next_entry, wait_until_ready
from tests.web.test_warnings import clear_toasts

LOAD = """async (graph) => {
  await app.loadApiJson(graph, "learning")
  for (const widget of app.graph._nodes.flatMap(({widgets}) => widgets ?? []))
    if (widget.name === "control_after_generate") widget.value = "fixed"
}"""
ALL_DRAWN = """(count) => {
  const panes = [...document.querySelectorAll(".d3po-pictures .d3po-pane")]
  const images = panes.flatMap((pane) => [...pane.querySelectorAll("img")])
  return panes.length === count && images.length && images.every((one) => one.complete && one.naturalWidth)
}"""
# of the picture that can be seen in the first pane
SEEN = """() => [...document.querySelectorAll(".d3po-pictures .d3po-pane:first-child .d3po-layer")]
  .filter((layer) => getComputedStyle(layer).visibility === "visible").at(-1).querySelector("img").src"""


def drawn(page, panes):
    page.wait_for_function(ALL_DRAWN, arg=panes, timeout=120_000)
    return page.locator(".d3po-pictures")


def look_at_pictures(page, outputs, renderer):
    """They stand in pairs; a click shows one pair alone, and F what was before in the same place."""
    strip = drawn(page, 8)
    panes = strip.locator(".d3po-pane")
    boxes = [panes.nth(i).bounding_box() for i in range(8)]
    assert all(min(box["width"], box["height"]) > 50 for box in boxes)
    assert (
        {round(box["y"]) for box in boxes[:4]} == {round(boxes[0]["y"])} < {round(box["y"]) for box in boxes}
    )
    node = page.locator(".d3po-learning").bounding_box()
    assert all(box["x"] + box["width"] <= node["x"] + node["width"] for box in boxes)
    assert strip.locator(".d3po-badge").all_inner_texts() == ["before", "now"] * 4
    assert panes.first.get_attribute("title") == TEXT
    assert panes.nth(1).get_attribute("aria-label") == f"{TEXT}, now: look at it alone"
    keep(page, "learned", renderer)
    panes.nth(3).focus()
    page.keyboard.press("Enter")
    drawn(page, 1)
    files = {side: outputs["pictures"][0][side][1]["filename"] for side in ("before", "now")}
    assert files["now"] in page.evaluate(SEEN)
    keep(page, "learned", "alone", renderer)
    page.keyboard.down("f")
    strip.get_by_text("before").wait_for()
    assert files["before"] in page.evaluate(SEEN)
    page.keyboard.up("f")
    strip.get_by_text("now").wait_for()
    strip.get_by_role("button", name="all pairs").click()
    drawn(page, 8)


def test_curves_grow_while_it_learns_and_the_button_ends_it_and_keeps_the_lora(step, host):
    page = step.page
    training = dict(method="D3PO", epochs=500, seed=len(step.renderer), vae=["loader", 2])
    graph = trained(training, seed=31)
    page.evaluate(LOAD, graph)
    page.evaluate("() => { app.canvas.ds.reset(); app.graph.getNodeById('train').pos = [300, 60] }")
    step.node, before = "train", set(host.get("/history"))
    page.evaluate("() => app.queuePrompt(0)")
    shown = page.locator(".d3po-learning")
    shown.locator("figure").first.wait_for(timeout=180_000)
    words = shown.locator("[role=status]")
    page.wait_for_function("(text) => text.isConnected && /update ([3-9]|[0-9]{2})/.test(text.textContent)",
                           arg=words.element_handle(), timeout=180_000)  # fmt: skip
    assert " of 500, " in words.inner_text() and words.inner_text().endswith(" left")
    titles = shown.locator("figcaption").all_inner_texts()
    assert "agrees with picks" in titles and "margin" in titles
    assert all(
        "L" in path for path in shown.locator("path").evaluate_all("all => all.map(p => p.getAttribute('d'))")
    )
    shown.get_by_role("button", name="stop and keep").click()
    entry = next_entry(page, host, before, timeout=180)
    assert "as you asked" in entry["outputs"]["train"]["text"][0]
    page.wait_for_function(
        "(text) => text.textContent.startsWith('ended after update ')",
        arg=words.element_handle(),
        timeout=120_000,
    )
    assert shown.get_by_role("button", name="stop and keep").is_hidden()
    assert shown.locator("figure").count() == len(titles)
    look_at_pictures(page, entry["outputs"]["train"], step.renderer)
    node = page.evaluate("() => app.graph.serialize().nodes.find((one) => one.id == 'train')")
    assert "update" not in json.dumps(node["widgets_values"])
    clear_toasts(page)  # so fast a training is warned of
    if step.renderer == "canvas":  # a page takes long to load
        page.reload()
        wait_until_ready(page)
        assert not page.locator(".d3po-learning").count()
        page.evaluate("() => app.queuePrompt(0)")  # all comes from the cache
        drawn(page, 8)
        assert shown.get_by_role("button", name="stop and keep").is_hidden()
        keep(page, "learned", "reloaded", step.renderer)
