"""The page in another language."""

import re

import pytest

from tests.web.picker import Picker
from tools import locales

WORDS = """(root) => [root, ...root.querySelectorAll("*")].flatMap((element) => [
  ...[...element.childNodes].filter((node) => node.nodeType === Node.TEXT_NODE).map((node) => node.data),
  ...["title", "aria-label"].map((name) => element.getAttribute(name) ?? "")
]).map((text) => text.trim()).filter(Boolean)"""
ENGLISH = re.compile(r"[A-Za-z]{2,}")


@pytest.fixture
def chinese(host):
    host.post("/settings", {"Comfy.Locale": "zh"})
    yield locales.widgets("zh"), locales.read("zh")
    host.post("/settings", {"Comfy.Locale": "en"})


def test_nodes_and_the_picker_speak_the_pages_language(host, new_page, chinese):
    words, nodes = chinese
    one = Picker.build(new_page(), host, sets=2)
    title = one.page.evaluate("(id) => app.graph.getNodeById(Number(id)).title", one.node)
    assert title == nodes["D3POPairPreference"]["display_name"]
    assert words["Press Run: the candidates will be shown here."] in one.root.inner_text()
    one.run()
    one.focus()
    one.question()
    one.press("?", "1", "1", "1")
    one.until(lambda: words["set {n} of {sets}"].replace("{n}", "2").replace("{sets}", "2") in one.text)
    said = one.root.evaluate(WORDS)
    assert words["hold to flip"] in said and words["the left one"] in said
    assert not [text for text in said if ENGLISH.search(text)]
