"""The nodes' and the widgets' words in every language, and that the host hands them out."""

import os
import re

import pytest

from d3po_core.training import metrics
from tools import locales
from tools.host import ROOT

VALUE = re.compile(r"\{\w+\}")


def test_english_is_what_the_nodes_say(object_info):
    """With D3PO_ACCEPT_WORDS=1 it is written anew, and what has changed is taken from the other languages."""
    now = locales.words(object_info)
    if os.environ.get("D3PO_ACCEPT_WORDS"):
        locales.accept(now)
    written, now = (locales.leaves(told) for told in (locales.read(locales.ENGLISH), now))
    changed = {path for path in written.keys() | now.keys() if written.get(path) != now.get(path)}
    assert not changed, (
        "words have changed: run this test with D3PO_ACCEPT_WORDS=1, then translate what is missing"
    )


@pytest.mark.parametrize("language", locales.languages())
def test_every_word_is_translated(language):
    english, own = (locales.leaves(locales.read(name)) for name in (locales.ENGLISH, language))
    missing = [f"{'.'.join(path)}: {text}" for path, text in english.items() if not own.get(path)]
    assert not missing, "\n".join(missing)
    assert own.keys() == english.keys()
    alike = [text for path, text in english.items() if own[path] == text and len(text.split()) > 4]
    assert not alike


@pytest.mark.parametrize("language", locales.languages())
def test_every_word_of_the_widgets_is_translated(language):
    own = locales.widgets(language)
    assert own.keys() == locales.widgets(locales.ENGLISH).keys()
    wrong = {
        text: said for text, said in own.items() if sorted(VALUE.findall(text)) != sorted(VALUE.findall(said))
    }
    assert not wrong and all(own.values())


def test_the_widgets_say_what_is_translated():
    page = "".join(path.read_text("utf-8") for path in (ROOT / "web").glob("*.js"))
    page = re.sub(r'" \+\s+"', "", page)
    english = locales.widgets(locales.ENGLISH)
    gone = [text for text in english if f'"{text}"' not in page]
    assert set(gone) == {metrics.SCORE, metrics.MARGIN}  # the server's
    assert all(text == said for text, said in english.items())


@pytest.mark.parametrize("language", [locales.ENGLISH, *locales.languages()])
def test_the_frontend_takes_it_as_it_is(language):
    for text in locales.leaves(locales.read(language)).values():
        assert not set(re.sub(r"\{'[{}@|]'\}", "", text)) & set("{}@|")


def test_the_host_hands_out_all_languages(host):
    told = host.get("/i18n")
    for language in (locales.ENGLISH, *locales.languages()):
        assert locales.read(language).items() <= told[language]["nodeDefs"].items()
        assert told[language]["d3po"] == locales.widgets(language)
