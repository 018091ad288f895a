"""Chromium on the real ComfyUI and its frontend. Most tests share a page; each begins on a fresh workflow."""

import os
import shutil

import pytest
from playwright.sync_api import sync_playwright

from tests.web.picker import Picker, complaints, open_page
from tests.web.train_step import TrainStep
from tools.host import FRONTEND_WANTED

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge")
NO_BROWSER = (
    "no Chromium was found for the browser tests. Install one, for example by `apt-get install chromium`, or "
    "name it in CHROMIUM_PATH"
)
# Without these Chromium calls home, over and over where there is no network.
QUIET = [
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def browser_path():
    """The system's Chromium, or None."""
    return os.environ.get("CHROMIUM_PATH") or next(filter(None, map(shutil.which, BROWSERS)), None)


def sandbox():
    """Chromium's sandbox does not work for root."""
    return ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []


@pytest.fixture(scope="session")
def browser():
    if browser_path() is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(NO_BROWSER)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path(), args=QUIET + sandbox())
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def shared_page(browser, host):
    page = open_page(browser, host)
    yield page
    page.context.close()


@pytest.fixture
def new_page(browser, host):
    """Make a page with a browser profile of its own, or in the profile of another page."""
    opened = []

    def make(beside=None, **options):
        page = open_page(browser, host, beside, **options)
        opened.append(page if beside else page.context)
        return page

    yield make
    for page_or_context in opened:
        page_or_context.close()


# on another frontend than the host's own, a newer one, what it begins with
@pytest.fixture(params=["nodes 2.0"] if os.environ.get(FRONTEND_WANTED) else ["canvas", "nodes 2.0"])
def renderer(request):
    return request.param


@pytest.fixture
def page(shared_page):
    return shared_page


@pytest.fixture
def picker(page, host):
    """Build a workflow around a picker on the shared page, in the canvas renderer unless told."""

    def build(**options):
        return Picker.build(page, host, **options)

    yield build
    host.interrupt()
    assert not complaints(page)


@pytest.fixture
def step(page, renderer):
    yield TrainStep.build(page, renderer)
    problems = complaints(page)
    page.evaluate("() => { app.canvas.setGraph(app.rootGraph); app.canvas.ds.reset() }")
    assert not problems
