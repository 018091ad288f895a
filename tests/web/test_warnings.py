"""What training warned of is told on the page, and stays at its node."""

import json

import pytest

from tests.host.graphs import trained
from tests.web.picker import next_entry
from tests.web.train_step import TRACKER

TOASTS = ".p-toast-message, [data-testid='toast']"
WARNINGS = [
    "The preferred images become less likely too (winner log-ratio -0.0123 and falling) while the margin "
    "rises: the pictures may get worse. Use a method that holds on to the winner.",
    "93% of the ratios are at the clamp (clip fraction), where they teach nothing.",
]


@pytest.fixture
def told(step):
    """Have the page hear of a run in which the node ended with these warnings."""

    def tell(prompt, warnings, cached=False):
        step.page.evaluate(
            """async ([node, prompt_id, warnings, cached]) => {
            const {api} = await import("/scripts/api.js")
            const tell = (name, detail) => api.dispatchEvent(new CustomEvent(name, {detail}))
            tell("execution_cached", {nodes: cached ? [node] : [], prompt_id, timestamp: 0})
            tell("executed", {node, display_node: node, prompt_id, output: {text: ["a report"], warnings}})
        }""",
            [step.node, prompt, warnings, cached],
        )
        step.drawn()

    yield tell
    clear_toasts(step.page)


def clear_toasts(page):
    page.evaluate("""() => {
        const {toast} = app.extensionManager
        toast.dismissAll ? toast.dismissAll() : toast.removeAll()
    }""")
    page.locator(TOASTS).first.wait_for(state="detached")


def marks(step):
    if step.renderer == "canvas":
        return step.js("(node) => node.widgets.filter(({type}) => type === 'button').map(({label}) => label)")
    return [text.strip() for text in step.element.get_by_role("button", name="warning").all_inner_texts()]


def click_mark(step):
    if step.renderer == "canvas":
        step.click_widget("warnings")
    else:
        step.element.get_by_role("button", name="warning").click()


@pytest.mark.frontend
def test_warnings_are_told_once_and_marked_until_a_run_without_any(step, told):
    toasts = step.page.locator(TOASTS)
    told("first", WARNINGS)
    toasts.first.wait_for()
    step.page.wait_for_timeout(500)
    step.shoot("warnings")
    assert all(text in toasts.inner_text() for text in ["D3PO LoRA Train Step", *WARNINGS])
    assert marks(step) == ["⚠ 2 warnings"]
    told("second", WARNINGS, cached=True)
    assert toasts.count() == 1 and marks(step) == ["⚠ 2 warnings"]
    clear_toasts(step.page)
    click_mark(step)
    toasts.first.wait_for()
    assert WARNINGS[1] in toasts.inner_text()
    told("third", WARNINGS[:1])
    assert marks(step) == ["⚠ 1 warning"]
    toasts.nth(1).wait_for()
    told("fourth", [])
    assert marks(step) == [] and toasts.count() == 2


@pytest.mark.parametrize("kind", ["D3POSaveRun", "D3POPairPreference"])
def test_what_other_nodes_warn_of_is_told_too(step, told, kind):
    step.node = step.page.evaluate(
        """(kind) => {
        const node = LiteGraph.createNode(kind)
        app.graph.add(node)
        return String(node.id)
    }""",
        kind,
    )
    widgets = "(node) => node.widgets.length"
    before, toasts = step.js(widgets), step.page.locator(TOASTS)
    told("first", ["The run 'my run' was left as it is"])
    toasts.first.wait_for()
    assert (
        "The run 'my run' was left as it is" in toasts.inner_text()
        and step.js("(node) => node.title") in toasts.inner_text()
    )
    told("second", ["The run 'my run' was left as it is"], cached=True)
    told("third", [])
    assert toasts.count() == 1 and step.js(widgets) == before


@pytest.mark.parametrize("renderer", ["nodes 2.0"])  # that marks are drawn in both is shown above
def test_a_real_run_warns_and_its_mark_stays_over_one_from_the_cache_another_workflow_and_an_undo(step, host):
    """Ratios clamped this tightly are all at the clamp after an update or two."""
    training = dict(method="D3PO", learning_rate=3e-3, weighting="paper", clip=0.01, epochs=8)
    graph = trained(training | dict(seed=len(step.renderer)))
    step.page.evaluate(
        """async (graph) => {
        await app.loadApiJson(graph, "warning")
        for (const {widgets} of app.graph._nodes) {
            for (const widget of widgets ?? [])
                if (widget.name === "control_after_generate") widget.value = "fixed"
        }
    }""",
        graph,
    )
    step.node, step.settings = "train", "train settings"
    toasts = step.page.locator(TOASTS)
    assert "at the clamp" in run(step, host)["train"]["warnings"][-1]
    toasts.first.wait_for()
    assert "at the clamp" in toasts.inner_text() and marks(step) == ["⚠ 1 warning"]
    clear_toasts(step.page)
    saved = step.page.evaluate("() => app.rootGraph.serialize()")
    assert "1 warning" not in json.dumps(saved)
    run(step, host)
    assert marks(step) == ["⚠ 1 warning"] and toasts.count() == 0
    command = "(command) => app.extensionManager.command.execute(command)"
    step.page.evaluate(command, "Comfy.NewBlankWorkflow")
    assert step.page.evaluate("() => app.graph._nodes.length") == 0
    step.page.evaluate(command, "Workspace.PreviousOpenedWorkflow")
    step.page.wait_for_function("() => app.graph.getNodeById('train')")
    assert marks(step) == ["⚠ 1 warning"]
    step.set(epochs=3)
    step.remember()
    step.page.evaluate(f"() => {TRACKER}.undo()")
    assert step.values["epochs"] == 8 and marks(step) == ["⚠ 1 warning"] and toasts.count() == 0


def run(step, host):
    """Press Run; the outputs of the run, once the page has heard of them."""
    before = set(host.get("/history"))
    step.page.evaluate("() => app.queuePrompt(0)")
    outputs = next_entry(step.page, host, before)["outputs"]
    step.page.wait_for_timeout(500)
    return outputs
