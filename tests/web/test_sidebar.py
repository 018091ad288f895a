"""The tab in the sidebar: the runs on disk, and what can be done with them."""

import pytest

from d3po_core.runs.store import load_record
from tests.host.graphs import loop, unique
from tests.web.picker import BLANK, complaints, keep, set_setting
from tests.web.test_learning import LOAD
from tests.web.test_warnings import TOASTS, clear_toasts

TAB = ".d3po-sidebar"
TOGGLE = "() => app.extensionManager.sidebarTab.toggleSidebarTab('d3po')"
DRAWN = """(place) => { const images = [...place.querySelectorAll("img")]
  return images.length && images.every((one) => one.complete && one.naturalWidth) }"""


@pytest.fixture
def tab(page):
    """The tab, on an empty workflow; it is closed again."""
    page.evaluate("(blank) => app.loadGraphData(blank)", BLANK)
    page.evaluate(TOGGLE)
    shown = page.locator(TAB)
    shown.get_by_role("button", name="Runs", exact=True).click()  # another test may have left the other half
    yield shown
    clear_toasts(page)
    page.evaluate(TOGGLE)
    shown.wait_for(state="detached")
    set_setting(page, "Comfy.ColorPalette", "dark")
    assert not complaints(page)


def card(tab, run):
    return tab.locator(".d3po-run").filter(has=tab.page.get_by_text(run, exact=True))


def drawn(place):
    place.page.wait_for_function(DRAWN, arg=place.element_handle(), timeout=60_000)


def told(page, words):
    """Wait for a notice of these words."""
    page.locator(TOASTS).filter(has_text=words).first.wait_for()
    clear_toasts(page)


@pytest.mark.frontend
def test_a_run_is_seen_applied_branched_taken_back_and_deleted(tab, page, host):
    runs, run, new = host.base / "output" / "d3po" / "runs", unique("seen"), unique("branch")
    for seed in (401, 402):  # the tab sees each come by itself
        page.evaluate(LOAD, loop(run, dict(vae=["loader", 2]), seed=seed))
        page.evaluate("() => app.queuePrompt(0)")
        one = card(tab, run)
        one.get_by_text(f"{seed - 400} step").wait_for(timeout=180_000)
    clear_toasts(page)
    page.evaluate("(blank) => app.loadGraphData(blank)", BLANK)
    assert "2 rounds · 2 steps" in one.inner_text()
    assert tab.locator(".d3po-run").first.inner_text() == one.inner_text(), "the newest comes first"
    one.locator("summary").focus()
    page.keyboard.press("Enter")
    drawn(one)
    said = one.inner_text()
    assert "2 sets, 4 candidates" in said and "SD15" in said and "1, 2" in said
    look_at_pictures(page, one)
    keep(page, "sidebar", "dark")
    set_setting(page, "Comfy.ColorPalette", "light")
    page.wait_for_timeout(300)
    keep(page, "sidebar", "light")

    one.get_by_role("button", name="apply").click()
    told(page, "wire your model through it")
    (loader,) = page.evaluate("() => app.graph.serialize().nodes")
    assert loader["type"] == "LoraLoaderModelOnly" and f"d3po/{run}.safetensors" in loader["widgets_values"]
    keep(page, "sidebar", "applied")
    one.get_by_role("button", name="apply").click()
    told(page, "wire your model through it")
    first, second = page.evaluate("() => app.graph.serialize().nodes.map(({pos, size}) => [pos[0], size[0]])")
    assert second[0] >= sum(first), "beside what is selected"

    one.get_by_role("button", name="branch").click()
    page.keyboard.type(new)
    one.get_by_role("combobox").select_option("1")
    one.get_by_role("button", name="start the branch").click()
    told(page, "begins at step 1")
    card(tab, new).wait_for()
    assert load_record(runs / new)["step"] == 1

    one.get_by_role("button", name="undo last round").click()
    told(page, "from step 2 to step 1")
    one.get_by_text("1 round · 1 step").wait_for()

    one.get_by_role("button", name="delete").click()
    dialog = page.get_by_role("dialog")
    assert f"{run}, 1 step" in dialog.inner_text()
    keep(page, "sidebar", "delete")
    dialog.get_by_role("button", name="Cancel").click()
    assert (runs / run).exists()
    one.get_by_role("button", name="delete").click()
    dialog.get_by_role("button", name="Delete").click()
    told(page, "deleted")
    one.wait_for(state="detached")
    assert not (runs / run).exists() and (runs / new).exists()


def look_at_pictures(page, one):
    one.locator(".d3po-pair").first.click()
    expanded = page.locator("dialog[open]")
    drawn(expanded)
    assert expanded.locator(".d3po-pane").count() == 8
    keep(page, "sidebar", "pictures")
    page.keyboard.press("Escape")
    expanded.wait_for(state="detached")
    assert page.locator(TAB).is_visible()
