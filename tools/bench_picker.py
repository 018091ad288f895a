"""How long the picker takes from a key to the next pair drawn, in Chromium on the real frontend.

Two cases, in both renderers: one set of 33 candidates (528 pairs wait), and 60 sets of two (each pair has new
images). All images are 1024 x 1024. A time runs from the key's event to the frame after the one with both
images.
"""

import statistics
from contextlib import contextmanager

from playwright.sync_api import sync_playwright

from tests.web.conftest import QUIET, browser_path, sandbox
from tests.web.picker import Picker, open_page
from tools.host import ROOT, Host, link, make_base

SIZE, PAUSE = 1024, 150  # pixels; ms between an answer drawn and the next key
CASES = {
    "528 pairs of one set": dict(candidates=33, sets=1),
    "60 sets of one pair": dict(candidates=2, sets=60),
}
TIMED = """(root) => new Promise((done) => {
  root.addEventListener("keydown", async (event) => {
    const began = event.timeStamp
    await new Promise((next) => setTimeout(next))  // the widget's own listener comes first
    await Object.values(app.graph._nodes).find((node) => node.d3po).d3po.view.drawn
    requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now() - began)))
  }, {once: true, capture: true})
})"""


@contextmanager
def chromium():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path(), args=QUIET + sandbox())
        yield browser
        browser.close()


def key_times(picker, keys):
    """Milliseconds from each of `keys` presses to the next pair on screen."""
    times = []
    for _ in range(keys):
        picker.question()
        picker.page.wait_for_timeout(PAUSE)
        timer = picker.page.evaluate_handle(
            "(timed) => ({time: eval(timed)(document.querySelector('.d3po-root'))})", TIMED
        )
        picker.page.keyboard.press("1")
        times.append(timer.evaluate("(timer) => timer.time"))
    return times


def measure(repeats):
    base = make_base(ROOT / "bench_output" / "base")
    link(ROOT / "tests" / "host" / "probe", base / "custom_nodes" / "d3po-test-probe")
    with Host(base) as host, chromium() as browser:
        for renderer in ("canvas", "nodes 2.0"):
            for name, case in CASES.items():
                page = open_page(browser, host, renderer=renderer)
                picker = Picker.build(page, host, renderer=renderer, size=SIZE, **case)
                picker.run(timeout=300)
                picker.focus()
                times = key_times(picker, repeats)
                print(
                    f"{renderer}, {name}: median {statistics.median(times):.0f} ms, 95% within "
                    f"{sorted(times)[int(0.95 * len(times))]:.0f} ms, largest {max(times):.0f} ms, "
                    f"{len(times)} keys",
                    flush=True,
                )
                page.context.close()
