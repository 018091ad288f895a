"""A train step shows how it learns while it does, and ends when its button is pressed."""

import json

from tests.host.graphs import trained
from tests.web.picker import keep, next_entry
from tests.web.test_warnings import clear_toasts


def test_curves_grow_while_it_learns_and_the_button_ends_it_and_keeps_the_lora(step, host):
    page = step.page
    graph = trained(dict(method="D3PO", epochs=500, seed=len(step.renderer)), seed=31)
    page.evaluate("(graph) => app.loadApiJson(graph, 'learning')", graph)
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
    node = page.evaluate("() => app.graph.serialize().nodes.find((one) => one.id == 'train')")
    assert "update" not in json.dumps(node["widgets_values"])
    keep(page, "learned", step.renderer)
    clear_toasts(page)  # so fast a training is warned of
