"""Train step and settings on the page: what the method uses is shown, what it does not use is kept; warnings are told."""

import json

import pytest

from tests.host.graphs import trained
from tests.web.picker import BLANK, complaints, next_entry, set_renderer, set_setting
from tests.web.test_look import SCREENSHOTS
from tools.workflow import to_api

EITHER = {"learn_from", "caption_dropout"}
OF_METHOD = {
    "D3PO": set(),
    "Diffusion-DPO": EITHER,
    "IPO": EITHER,
    "DPO with label smoothing": EITHER | {"label_smoothing"},
    "DPO with winner anchor": EITHER | {"winner_weight"},
    "Diffusion-SDPO": EITHER | {"winner_share"},
    "beta-DPO": EITHER | {"adaptation", "adaptation_bound"},
    "MaPO": EITHER | {"mapo_beta", "mapo_snr"},
    "Diffusion-KTO": EITHER,
    "DDPO": {"ratio_clip"},
    "DPOK": {"ratio_clip", "kl_weight"},
    "reward-weighted": EITHER | {"reward_beta"},
    "supervised": EITHER,
}
ALL_OWN = set().union(*OF_METHOD.values())
CLEAN = {"clip", "beta", "weighting", "step_fraction", "guidance", "window_start", "window_end"}
SHARED = {
    "D3PO": set(),
    "Diffusion-DPO": CLEAN,
    "MaPO": CLEAN | {"dpo_beta", "stop_kl"},
    "DDPO": {"clip", "beta", "dpo_beta", "draws_per_set"},
    "DPOK": {"clip", "beta", "dpo_beta", "draws_per_set"},
    "reward-weighted": {"clip", "beta", "dpo_beta"},
    "supervised": {"clip", "beta", "dpo_beta"},
}
HIDDEN = {method: SHARED.get(method, {"clip"}) | ALL_OWN - own for method, own in OF_METHOD.items()}
OF_SOME = set().union(*HIDDEN.values())
OWN = {
    "beta": 7.0,
    "clip": 0.25,
    "dpo_beta": 1234.0,
    "weighting": "standardised",
    "draws_per_set": 9,
    "step_fraction": 0.5,
    "guidance": "off (faster)",
}
ADVANCED = "Comfy.Node.AlwaysShowAdvancedWidgets"  # which Nodes 2.0 folds away
TOASTS = ".p-toast-message, [data-testid='toast']"
TRACKER = "app.extensionManager.workflow.activeWorkflow.changeTracker"


class TrainStep:
    """A train step and its settings on a page. Their graph may be a subgraph, which is then the one on screen."""

    def __init__(self, page, node, settings, renderer):
        self.page, self.node, self.settings, self.renderer = page, node, settings, renderer

    @classmethod
    def build(cls, page, renderer):
        set_renderer(page, renderer)
        page.keyboard.press("Escape")
        nodes = page.evaluate(
            """async (blank) => {
            await app.loadGraphData(blank)
            const [node, settings] = ["D3POTrainStep", "D3POTrainSettings"].map((type, place) => {
                const node = LiteGraph.createNode(type)
                app.graph.add(node)
                node.pos = [300 + 420 * place, 60]
                return node
            })
            settings.connect(0, node, node.findInputSlot("settings"))
            Object.assign(app.canvas.ds, {scale: 0.8, offset: [0, 60]})
            app.canvas.setDirty(true, true)
            return [String(node.id), String(settings.id)]
        }""",
            BLANK,
        )
        return cls(page, *nodes, renderer).drawn()

    def js(self, expression, argument=None, node=None):
        """Evaluate a function of (the node, argument): the train step, or the node of this id."""
        return self.page.evaluate(
            f"([id, argument]) => ({expression})(app.canvas.graph.getNodeById(id), argument)",
            [node or self.node, argument],
        )

    def drawn(self):
        self.page.evaluate(
            "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
        )
        return self

    def remember(self):
        """Make what is on screen a step of the undo."""
        self.page.evaluate(f"() => {TRACKER}.captureCanvasState()")

    def click_widget(self, name):
        """On the train step, in the canvas renderer."""
        self.page.mouse.click(
            *self.js(
                """(node, name) => {
            const {y} = node.widgets.find((widget) => widget.name === name), {scale, offset} = app.canvas.ds
            const box = app.canvas.canvas.getBoundingClientRect()
            return [box.x + (node.pos[0] + node.size[0] / 2 + offset[0]) * scale,
                    box.y + (node.pos[1] + y + 10 + offset[1]) * scale]
        }""",
                name,
            )
        )

    def choose(self, method):
        """Choose a method as a user does."""
        if self.renderer == "canvas":
            self.click_widget("method")
            self.page.locator(".litecontextmenu .litemenu-entry").get_by_text(method, exact=True).click()
        else:
            self.element.get_by_role("combobox", name="method", exact=True).click()
            self.page.get_by_role("option", name=method, exact=True).click()
        self.drawn()
        assert self.values["method"] == method

    @property
    def element(self):
        """The train step itself, in Nodes 2.0."""
        return self.page.locator(f"[data-node-id='{self.node}']")

    @property
    def shown(self):
        """Names of the settings on screen, in their order. Newer frontends show no more of a linked one than its name."""
        self.drawn()
        if self.renderer == "canvas":
            return self.js(
                """(node) => {
                const isShown = node.isWidgetRowVisible ?? node.isWidgetVisible
                return node.widgets.filter((one) => isShown.call(node, one)).map(({name}) => name)
            }""",
                node=self.settings,
            )
        labels = ".lg-node-widget [data-testid='widget-layout-field-label'], [data-widget-name]:not(.lg-node-widget)"
        settings = self.page.locator(f"[data-node-id='{self.settings}']")
        return [name.strip() for name in settings.locator(labels).all_inner_texts()]

    @property
    def values(self):
        """Of both nodes."""
        read = "(node) => Object.fromEntries(node.widgets.map(({name, value}) => [name, value]))"
        return self.js(read) | self.js(read, node=self.settings)

    def set(self, **values):
        for node in (self.node, self.settings):
            self.js(
                """(node, values) => { for (const widget of node.widgets) {
                if (widget.name in values) widget.value = values[widget.name] } }""",
                values,
                node,
            )

    @property
    def hidden(self):
        """What a method hides. Nodes 2.0 folds the advanced ones away by itself."""
        folded = self.js(
            "(node) => node.widgets.filter(({hidden, options}) => !hidden && options.advanced).map(({name}) => name)",
            node=self.settings,
        )
        return OF_SOME - set(self.shown) - set(folded if self.renderer != "canvas" else [])

    @property
    def height(self):
        """(of the settings, the least that they can have)."""
        return self.js("(node) => [node.size[1], node.computeSize()[1]]", node=self.settings)

    def sent(self):
        """The workflow as it is saved, and the inputs of its only train step in the API prompt that the page makes."""
        saved, made = self.page.evaluate(
            "async () => [app.rootGraph.serialize(), (await app.graphToPrompt()).output]"
        )
        return saved, train_step(made)

    def shoot(self, name):
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        self.drawn()
        self.page.screenshot(path=SCREENSHOTS / f"{name} {self.renderer}.png".replace(" ", "_"))


def train_step(prompt):
    """The values of an API prompt's only train step and of the settings that are wired to it."""
    (inputs,) = [node["inputs"] for node in prompt.values() if node["class_type"] == "D3POTrainStep"]
    assert prompt[inputs["settings"][0]]["class_type"] == "D3POTrainSettings"
    values = inputs | prompt[inputs["settings"][0]]["inputs"]
    return {name: value for name, value in values.items() if name != "settings"}


@pytest.fixture
def step(page, renderer):
    yield TrainStep.build(page, renderer)
    problems = complaints(page)
    page.evaluate("() => { app.canvas.setGraph(app.rootGraph); app.canvas.ds.reset() }")
    assert not problems


def test_only_what_a_method_uses_is_shown_and_the_node_is_no_longer_than_that(step):
    heights = {}
    for method in [*HIDDEN, "D3PO"]:
        step.choose(method)
        assert step.hidden == HIDDEN[method], method
        height, least = step.height
        heights[method] = height - least
        step.shoot(method)
    assert all(abs(left) < 2 for left in heights.values()), heights


def test_what_is_rarely_changed_is_hidden_as_well_where_it_is_of_no_use(step):
    set_setting(step.page, ADVANCED, True)
    try:
        for method in ("D3PO", "Diffusion-DPO", "MaPO", "D3PO"):
            step.choose(method)
            assert OF_SOME - set(step.shown) == HIDDEN[method], method
    finally:
        set_setting(step.page, ADVANCED, False)


def test_without_one_method_to_go_by_all_are_shown(step):
    assert step.hidden == HIDDEN["D3PO"]
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
    assert step.hidden == HIDDEN["D3PO"]
    step.choose("DDPO")
    assert step.hidden == set()
    other.choose("DDPO")
    assert step.hidden == HIDDEN["DDPO"]
    unwire = "(node) => node.disconnectInput(node.findInputSlot('settings'))"
    other.js(unwire)
    assert step.hidden == HIDDEN["DDPO"]
    step.js(unwire)
    assert step.hidden == set()


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
    for method, own in OF_METHOD.items():
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


def test_undo_and_redo_bring_the_widgets_of_their_method(step):
    step.set(**OWN)
    step.remember()
    for method in ("DDPO", "MaPO"):
        step.choose(method)
        step.remember()
    for act, method in (("undo", "DDPO"), ("undo", "D3PO"), ("redo", "DDPO"), ("redo", "MaPO")):
        step.page.evaluate(f"() => {TRACKER}.{act}()")
        assert step.values["method"] == method and step.hidden == HIDDEN[method]
        assert step.values.items() >= OWN.items()


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
        return ["D3POTrainStep", "D3POTrainSettings"].map((type) => String(pasted.find((one) => one.type === type).id))
    }""",
        step.settings,
    )
    copy = TrainStep(step.page, *nodes, step.renderer)
    assert not {copy.node, copy.settings} & {step.node, step.settings}
    copy.js("(node) => { node.pos = [300, 60]; app.canvas.deselectAll() }")
    copy.drawn()
    assert copy.values == step.values and copy.hidden == HIDDEN["DDPO"]
    copy.choose("D3PO")
    assert copy.hidden == HIDDEN["D3PO"] and copy.values.items() >= OWN.items()
    hidden = step.js("(node) => node.widgets.filter((w) => w.hidden).length", node=step.settings)
    assert hidden == len(HIDDEN["DDPO"])


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
        const inside = ["D3POTrainStep", "D3POTrainSettings"].map((type) => box.subgraph.nodes.find((one) => one.type === type))
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


# --- warnings ---

WARNINGS = [
    "The preferred images become less likely too (winner log-ratio -0.0123 and falling) while the margin rises: "
    "the pictures may get worse. Use a method that holds on to the winner.",
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
    clear_toasts(step)


def clear_toasts(step):
    step.page.evaluate("""() => {
        const {toast} = app.extensionManager
        toast.dismissAll ? toast.dismissAll() : toast.removeAll()
    }""")
    step.page.locator(TOASTS).first.wait_for(state="detached")


def marks(step):
    if step.renderer == "canvas":
        return step.js("(node) => node.widgets.filter(({type}) => type === 'button').map(({label}) => label)")
    return [text.strip() for text in step.element.get_by_role("button", name="warning").all_inner_texts()]


def click_mark(step):
    if step.renderer == "canvas":
        step.click_widget("warnings")
    else:
        step.element.get_by_role("button", name="warning").click()


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
    clear_toasts(step)
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


def test_a_real_run_warns_and_its_mark_stays_over_one_from_the_cache_another_workflow_and_an_undo(step, host):
    """Ratios clamped this tightly are all at the clamp after an update or two."""
    graph = trained(
        dict(learning_rate=1e-2, weighting="paper", clip=0.01, epochs=10, seed=len(step.renderer))
    )
    step.page.evaluate(
        """async (graph) => {
        await app.loadApiJson(graph, "warning")
        for (const {widgets} of app.graph._nodes) {
            for (const widget of widgets ?? []) if (widget.name === "control_after_generate") widget.value = "fixed"
        }
    }""",
        graph,
    )
    step.node, step.settings = "train", "train settings"
    toasts = step.page.locator(TOASTS)
    assert "at the clamp" in run(step, host)["train"]["warnings"][-1]
    toasts.first.wait_for()
    assert "at the clamp" in toasts.inner_text() and marks(step) == ["⚠ 1 warning"]
    clear_toasts(step)
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
    assert step.values["epochs"] == 10 and marks(step) == ["⚠ 1 warning"] and toasts.count() == 0


def run(step, host):
    """Press Run; the outputs of the run, once the page has heard of them."""
    before = set(host.get("/history"))
    step.page.evaluate("() => app.queuePrompt(0)")
    outputs = next_entry(step.page, host, before)["outputs"]
    step.page.wait_for_timeout(500)
    return outputs
