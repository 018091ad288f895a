"""Datasets in the sidebar: judged without a run while more is recorded, and looked through."""

import pytest

from tests.host.graphs import unique
from tests.host.test_datasets import saved
from tests.host.test_sidebar_datasets import candidates
from tests.web.datasets_panel import IDLE, DatasetsPanel
from tests.web.picker import Picker, complaints, keep, set_setting, wait_until_ready

THEMES = ("dark", "light")


@pytest.fixture
def sidebar(page, host):
    one = DatasetsPanel(page, host, unique("likes"))
    host.run(candidates(one.dataset, 2, seed=31))
    yield one
    problems = complaints(page)
    if one.root.count():
        page.keyboard.press("Escape")
        one.root.wait_for(state="detached")
    if one.panel.is_visible():
        one.toggle()
    assert not problems


def themed(page, name):
    """Pictures of the page in both themes, for a look by eye."""
    for theme in THEMES:
        set_setting(page, "Comfy.ColorPalette", theme)
        page.wait_for_timeout(100)
        keep(page, name, theme)
    set_setting(page, "Comfy.ColorPalette", "dark")


@pytest.mark.frontend
def test_sets_are_judged_while_more_are_recorded(sidebar, host, page):
    beside = Picker.build(page, host, candidates=2, seed=5)
    beside.run()
    sidebar.open()
    sidebar.reads(sidebar.card, "2 sets · 2 to judge")
    themed(page, "datasets_list")
    sidebar.act(sidebar.card, "judge")
    sidebar.question()
    for seed in (32, 33):
        host.queue(saved(sidebar.dataset, seed=seed, steps=20))
    sidebar.root.locator(".d3po-mode").select_option("best")
    for key in "12":
        assert sidebar.question() == 3
        sidebar.press(key)
    sidebar.sets_judged(2)
    sidebar.reads(sidebar.root, "All judged", "queued")
    themed(page, "datasets_waiting")
    for _ in range(2):
        assert sidebar.question() == 2
        sidebar.press("1")
    sidebar.sets_judged(4)
    sidebar.reads(sidebar.root, "All judged. Queue more runs")
    assert len(beside.sets) == 1 and not beside.value
    idle = page.evaluate(IDLE)
    assert len(idle) == 3 and idle[0] < 2 < 60 > max(idle)


def test_what_cannot_be_saved_is_kept_and_sent_again(sidebar, page):
    sidebar.open()
    sidebar.act(sidebar.card, "judge")
    sidebar.root.locator(".d3po-mode").select_option("stars")
    sidebar.question()
    page.route("**/d3po/datasets/judge", lambda route: route.abort())
    sidebar.press("5", "3", "1")
    sidebar.reads(sidebar.root, "Not saved yet", "set 2 of 2")
    assert sidebar.judged.popitem()[1] == []
    page.reload()
    wait_until_ready(page)
    page.unroute("**/d3po/datasets/judge")
    sidebar.sets_judged(1)
    sidebar.open()
    sidebar.reads(sidebar.card, "2 sets · 1 to judge")
    sidebar.act(sidebar.card, "judge")
    sidebar.question()
    sidebar.press("4", "s", "2")
    sidebar.sets_judged(2)
    sidebar.press("u")
    sidebar.sets_judged(1)
    assert sidebar.kind == "star"
    sidebar.press("1")
    sidebar.sets_judged(2)


@pytest.mark.frontend
def test_a_dataset_is_looked_through(sidebar, host, page):
    host.run(saved(sidebar.dataset, prompts=["50% cat", "a dog"], seed=4))
    sidebar.open()
    sidebar.act(sidebar.card, "browse")
    cards = sidebar.panel.locator("article[data-name]")
    counts = lambda number: sidebar.until(lambda: cards.count() == number)
    counts(4)
    sidebar.panel.get_by_label("Search in prompts").fill("50%")
    counts(1)
    sidebar.act(cards.first, "again")
    sidebar.root.locator(".d3po-mode").select_option("best")
    sidebar.question()
    sidebar.press("1")
    sidebar.reads(sidebar.root, "Close this view")
    (best,) = [said[0]["ranking"][0] for said in sidebar.judged.values() if said]
    sidebar.press("e")
    sidebar.reads(cards.first, f"me: {best + 1} >", "judge again", "50% cat")
    assert cards.first.locator(".d3po-best").inner_text() == f"{best + 1} ✓"
    sidebar.panel.get_by_label("Search in prompts").fill("")
    counts(4)
    themed(page, "datasets_browse")
    sidebar.panel.get_by_label("Which sets").select_option("judged")
    counts(1)
    sidebar.act(cards.first, "withdraw")
    counts(0)
    sidebar.reads(sidebar.panel, "No set fits.")
    assert sidebar.judged and not any(sidebar.judged.values())
    sidebar.act(sidebar.panel, "back")
    sidebar.reads(sidebar.card, "4 sets · 4 to judge")
    assert page.evaluate("() => document.activeElement.dataset.act") == "browse"
