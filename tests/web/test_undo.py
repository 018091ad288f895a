"""Save Run's button that takes back the last round."""

import pytest

from d3po_core.runs.store import load_record
from tests.host.graphs import loop, unique
from tests.web.picker import BLANK, keep, set_renderer
from tests.web.test_warnings import TOASTS, clear_toasts
from tests.web.train_step import PLACE_OF_WIDGET

BUTTON = "undo last round"


def save_run(page, run):
    """A Save Run on an empty page: its id."""
    return page.evaluate(
        """async ([blank, run]) => {
        await app.loadGraphData(blank)
        const node = LiteGraph.createNode("D3POSaveRun")
        app.graph.add(node)
        node.pos = [300, 120]
        node.widgets.find(({name}) => name === "run").value = run
        app.canvas.ds.reset()
        return String(node.id)
    }""",
        [BLANK, run],
    )


def press(page, node, renderer):
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    if renderer == "canvas":
        page.mouse.click(*page.evaluate(PLACE_OF_WIDGET, [node, BUTTON]))
    else:
        page.locator(f"[data-node-id='{node}']").get_by_role("button", name=BUTTON).click()


@pytest.mark.frontend
@pytest.mark.parametrize("renderer", ["nodes 2.0"])  # that it can be pressed in both is shown below
def test_the_button_takes_the_last_round_back_and_says_how_to_have_it_again(page, host, renderer):
    run = unique("spoiled")
    for seed in (1, 2):
        host.run(loop(run, seed=seed))
    set_renderer(page, renderer)
    node = save_run(page, run)
    press(page, node, renderer)
    toast = page.locator(TOASTS).first
    toast.wait_for()
    keep(page, "undo", renderer)
    assert "from step 2 to step 1" in toast.inner_text() and "checkpoint to 2" in toast.inner_text()
    clear_toasts(page)
    assert load_record(host.base / "output" / "d3po" / "runs" / run)["step"] == 1


def test_without_a_run_the_button_says_what_it_wants(page, renderer):
    set_renderer(page, renderer)
    node = save_run(page, "")
    press(page, node, renderer)
    toast = page.locator(TOASTS).first
    toast.wait_for()
    assert "Which run?" in toast.inner_text()
    clear_toasts(page)
    values = page.evaluate("(id) => app.graph.getNodeById(id).serialize().widgets_values", node)
    assert values == ["", 3], "the button is no value"
