"""A train step and its settings as a user meets them: a page object over both nodes in the real frontend."""

import json

from tests.web.picker import BLANK, keep, set_renderer

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
    "DiffusionNFT": EITHER | {"nft_beta", "kl_weight"},
    "supervised": EITHER,
    "taste guidance": EITHER,
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
    "DiffusionNFT": CLEAN | {"dpo_beta"},
    "supervised": {"clip", "beta", "dpo_beta"},
    "taste guidance": CLEAN | {"dpo_beta"},
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
# of a widget's middle on the screen, in the canvas renderer
PLACE_OF_WIDGET = """([id, name]) => {
    const node = app.canvas.graph.getNodeById(id), {scale, offset} = app.canvas.ds
    const {y} = node.widgets.find((widget) => widget.name === name)
    const box = app.canvas.canvas.getBoundingClientRect()
    return [box.x + (node.pos[0] + node.size[0] / 2 + offset[0]) * scale,
            box.y + (node.pos[1] + y + 10 + offset[1]) * scale]
}"""
TRACKER = "app.extensionManager.workflow.activeWorkflow.changeTracker"


class TrainStep:
    """A train step and its settings on a page. Their graph may be a subgraph, which is then on screen."""

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
        self.page.mouse.click(*self.js(f"(node, name) => ({PLACE_OF_WIDGET})([node.id, name])", name))

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
        """Names of the settings on screen, in order. Newer frontends show only the name of a linked one."""
        self.drawn()
        if self.renderer == "canvas":
            return self.js(
                """(node) => {
                const isShown = node.isWidgetRowVisible ?? node.isWidgetVisible
                return node.widgets.filter((one) => isShown.call(node, one)).map(({name}) => name)
            }""",
                node=self.settings,
            )
        labels = (
            ".lg-node-widget [data-testid='widget-layout-field-label'], "
            "[data-widget-name]:not(.lg-node-widget)"
        )
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
            "(node) => node.widgets.filter(({hidden, options}) => !hidden && options.advanced)"
            ".map(({name}) => name)",
            node=self.settings,
        )
        return OF_SOME - set(self.shown) - set(folded if self.renderer != "canvas" else [])

    @property
    def height(self):
        """(of the settings, the least that they can have)."""
        return self.js("(node) => [node.size[1], node.computeSize()[1]]", node=self.settings)

    def sent(self):
        """The saved workflow, and the inputs of its only train step in the API prompt that the page makes."""
        saved, made = self.page.evaluate(
            "async () => [JSON.stringify(app.rootGraph.serialize()), (await app.graphToPrompt()).output]"
        )
        return json.loads(saved), train_step(made)

    def shoot(self, name):
        self.drawn()
        keep(self.page, name, self.renderer)


def train_step(prompt):
    """The values of an API prompt's only train step and of the settings that are wired to it."""
    (inputs,) = [node["inputs"] for node in prompt.values() if node["class_type"] == "D3POTrainStep"]
    assert prompt[inputs["settings"][0]]["class_type"] == "D3POTrainSettings"
    values = inputs | prompt[inputs["settings"][0]]["inputs"]
    return {name: value for name, value in values.items() if name != "settings"}
