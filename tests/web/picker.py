"""The picker as a user meets it: a page object over the widget in the real frontend."""

import json
import os
import time
from pathlib import Path
from urllib.parse import parse_qs, urlparse

from tools.host import FRONTEND_WANTED

PICTURES = os.environ.get("D3PO_SCREENSHOTS")
VIEWPORT = {"width": 1500, "height": 1000}
READY = "() => window.app?.extensionManager && window.app.canvas && window.app.graph"
# the host's own animations while a run goes on, which drawn by the processor take up to half of it
STILL = ".animate-pulse, .animate-spin { animation: none !important }"
ADD_STYLE = """(text) => {
  document.head.append(Object.assign(document.createElement("style"), {textContent: text}))
}"""
COPY = """(node) => {
  app.canvas.selectNode(node)
  app.canvas.copyToClipboard()
  app.canvas.pasteFromClipboard({connectInputs: true})
  return String(app.graph._nodes.at(-1).id)
}"""
SEED_GOES_UP = """() => {
  const widgets = app.graph.getNodeById(1).widgets
  widgets.find((widget) => widget.name === "control_after_generate").value = "increment"
}"""
BLANK = {"nodes": [], "links": [], "version": 0.4, "last_node_id": 0, "last_link_id": 0}
BUILD = """async ({blank, seed, candidates, sets, size, properties, values}) => {
  await app.loadGraphData(blank)
  const [source, picker, preview] = [
    "TestCandidates", "D3POPairPreference", "PreviewImage"
  ].map((type, i) => {
    const node = LiteGraph.createNode(type)
    app.graph.add(node)
    node.pos = [[40, 120], [330, 120], [1030, 120]][i]
    return node
  })
  const set = (node, values) => Object.entries(values).forEach(([name, value]) =>
    { node.widgets.find((widget) => widget.name === name).value = value })
  set(source, {seed, candidates, sets, size, control_after_generate: "fixed"})
  set(picker, values)
  Object.assign(picker.properties, properties)
  source.connect(0, picker, 0)
  source.connect(1, picker, 1)
  picker.connect(1, preview, 0)
  app.canvas.ds.reset()
  app.extensionManager.workflow.activeWorkflow.changeTracker.captureCanvasState()
  return {picker: String(picker.id), preview: String(preview.id), source: String(source.id)}
}"""


def open_page(browser, host, beside=None, renderer="canvas", **options):
    """A page of the frontend once it can be used; what it complains of gathers in `page.problems`."""
    context = beside.context if beside else browser.new_context(viewport=VIEWPORT, **options)
    page = context.new_page()
    page.set_default_navigation_timeout(120_000)
    page.problems = []
    page.on("pageerror", lambda error: page.problems.append(f"{error}\n{error.stack}"))
    page.on(
        "console",
        lambda message: (
            page.problems.append(f"{message.text} {message.location}") if message.type == "error" else None
        ),
    )
    host.post("/settings", {"Comfy.TutorialCompleted": True})  # else a newcomer is shown the templates
    page.goto(host.url)
    wait_until_ready(page)
    set_renderer(page, renderer)
    return page


def keep(page, *name):
    """Keep a picture of the page for a look by eye, where these are wanted."""
    if PICTURES:
        folder = Path(__file__).resolve().parents[1] / "screenshots" / os.environ.get(FRONTEND_WANTED, "")
        folder.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=folder / ("_".join(name).replace(" ", "_") + ".png"))


def complaints(page):
    """What the page has complained of since the last time that concerns the pack.

    Some tests restart the host under open pages: that there is no connection then is no fault."""
    told = [text for text in page.problems if "d3po" in text.lower() and "net::ERR_" not in text]
    page.problems.clear()
    return told


def wait_until_ready(page):
    page.wait_for_function(READY, timeout=120_000)
    page.wait_for_function(
        "() => app.extensionManager.workflow.activeWorkflow?.changeTracker", timeout=60_000
    )
    page.evaluate(ADD_STYLE, STILL)  # Playwright's own fails where the page is refused a request meanwhile


def set_setting(page, name, value):
    page.evaluate("([name, value]) => app.extensionManager.setting.set(name, value)", [name, value])


def set_renderer(page, renderer):
    set_setting(page, "Comfy.VueNodes.Enabled", renderer != "canvas")


def next_entry(page, host, before, timeout=180):
    """The history entry of the first run to end after those in `before`. A page hears of results earlier."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        history = host.get("/history")
        if new := [prompt for prompt in history if prompt not in before]:
            return history[new[0]]
        page.wait_for_timeout(50)
    raise TimeoutError("no run ended")


class Picker:
    """One picker node on a page. `node` is its execution id."""

    ROOT = ".d3po-root:not(.d3po-compare)"

    def __init__(self, page, host, node, **others):
        self.page, self.host, self.node = page, host, node
        self.others = others

    @classmethod
    def build(
        cls,
        page,
        host,
        renderer="canvas",
        seed=0,
        candidates=3,
        sets=1,
        size=64,
        picks="",
        when_missing="stop here",
        time_limit=0,
        **properties,
    ):
        set_renderer(page, renderer)
        page.keyboard.press("Escape")
        ids = page.evaluate(
            BUILD,
            dict(
                blank=BLANK,
                seed=seed,
                candidates=candidates,
                sets=sets,
                size=size,
                properties=properties,
                values={"picks": picks, "when_missing": when_missing, "time_limit": time_limit},
            ),
        )
        picker = cls(page, host, ids.pop("picker"), **ids)
        picker.root.wait_for()
        return picker

    # --- the graph ---

    def js(self, expression, argument=None):
        """Evaluate a function of (the node, argument)."""
        return self.page.evaluate(
            f"""([id, argument]) => {{
            const path = id.split(":")
            let graph = app.rootGraph
            for (const part of path.slice(0, -1)) graph = graph.getNodeById(part).subgraph
            return ({expression})(graph.getNodeById(path.at(-1)), argument)
        }}""",
            [self.node, argument],
        )

    def copied(self):
        """The Picker of a copy of the node, with the same wires into it."""
        return Picker(self.page, self.host, self.js(COPY))

    def let_the_seed_go_up(self):
        """From run to run."""
        self.js(SEED_GOES_UP)

    def run(self, wait=True, timeout=180):
        """Press Run; with `wait` until the run has ended and the page has heard of it, its history entry."""
        before = set(self.host.get("/history"))
        self.page.evaluate("() => app.queuePrompt(0)")
        if wait:
            return self.next_run(before, timeout)

    def next_run(self, before, timeout=180):
        """The history entry of the first run that ends after those in `before`."""
        entry = next_entry(self.page, self.host, before, timeout)
        self.settle()
        return entry

    def queue(self):
        """What the server runs and what waits to run."""
        queue = self.host.get("/queue")
        return [[entry[1] for entry in queue[name]] for name in ("queue_running", "queue_pending")]

    def until(self, condition, timeout=90):
        """Wait until a Python condition holds."""
        deadline = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < deadline, f"it never came: {self.text}"
            self.page.wait_for_timeout(20)

    def settle(self):
        """Wait until the widget has shown all that the server told."""
        self.page.evaluate(
            "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
        )
        self.drawn()

    @property
    def value(self):
        """The picks by set, as the workflow carries them."""
        return json.loads(self.js("(node) => node.widgets[0].value") or "{}").get("sets", {})

    @property
    def sets(self):
        return self.js(
            "(node) => node.d3po.sets().map(({set, candidates, waiting}) => ({set, candidates, waiting}))"
        )

    # --- the widget ---

    @property
    def root(self):
        return self.page.locator(self.ROOT).first

    def part(self, name):
        return self.root.locator(f".d3po-{name}")

    @property
    def text(self):
        return self.root.inner_text()

    def drawn(self):
        self.js("(node) => node.d3po.view.drawn")

    def question(self):
        """Wait until a question can be answered; the candidates on screen, from left to right."""
        self.page.wait_for_selector(self.ROOT)
        self.page.wait_for_function(
            """(selector) => {
            const root = document.querySelector(selector),
              images = [...root.querySelectorAll(".d3po-pane img")]
            return ["pair", "best", "star", "thumb"].includes(root.dataset.kind) && images.length
              && images.every((i) => i.complete && i.naturalWidth) && !root.querySelector(".d3po-loading")
        }""",
            arg=self.ROOT,
        )
        self.drawn()
        return self.shown()

    def shown(self):
        names = [
            parse_qs(urlparse(src).query)["filename"][0]
            for src in self.root.locator(".d3po-pane img").evaluate_all(
                "(images) => images.map((image) => image.src)"
            )
        ]
        images = self.js(
            "(node) => node.d3po.sets().flatMap("
            "(entry) => entry.images.map((image, i) => [image.filename, i]))"
        )
        return [dict(map(tuple, images))[name] for name in names]

    @property
    def kind(self):
        return self.root.get_attribute("data-kind")

    def press(self, *keys):
        for key in keys:
            self.page.keyboard.press(key)
            self.drawn()

    def focus(self):
        self.root.focus()

    def click(self, name):
        self.root.locator(f"[data-act='{name}']").click()
        self.drawn()

    def click_pane(self, index):
        self.root.locator(".d3po-pane").nth(index).click()
        self.drawn()

    def answer_as(self, prefer):
        """Answer every pair by a function of two candidates: "1" left, "2" right or another key."""
        asked = []
        while self.kind == "pair":
            left, right = self.question()
            asked.append((left, right))
            before = self.value
            self.press(prefer(left, right))
            assert self.value != before, "the key did not answer"
        return asked
