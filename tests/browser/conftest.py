"""Tests in a real browser: Debian's chromium, or the one that CHROMIUM names, driven by Playwright. `make browser-check` runs them.

Without Playwright nothing here is collected, and without chromium all of it is skipped.
"""

import os
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.browser.live_server import LiveServer

collect_ignore_glob = [] if find_spec("playwright") else ["test_*.py"]
WIDE, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
PATIENCE = 60_000  # milliseconds


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses
def pytest_collection_modifyitems(items):
    """Mark all tests of this folder."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="module")  # no longer: its event loop counts as running, and other tests could not run one
def chromium():
    """A browser without windows."""
    from playwright.sync_api import expect, sync_playwright

    path = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if path is None:
        pytest.skip("there is no chromium on the PATH, and CHROMIUM names none")
    options = ["--no-sandbox"] if os.geteuid() == 0 else []  # its sandbox needs a user that is not root
    expect.set_options(timeout=PATIENCE)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=options)
        yield browser
        browser.close()


@pytest.fixture
def tab(chromium):
    """Opens a page; afterwards no script has failed and the policy has refused nothing."""
    wrong, contexts = [], []

    def open_tab(url, viewport=WIDE, **options):
        context = chromium.new_context(viewport=viewport, **options)
        context.set_default_timeout(PATIENCE)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda message: wrong.append(message.text) if "Content Security" in message.text else None)
        page.goto(url)
        return page

    yield open_tab
    for context in contexts:
        context.close()
    assert not wrong


@pytest.fixture
def picture(request):
    """Takes a picture of a page into the folder that PICTURES names, if it does."""
    folder = os.environ.get("PICTURES")

    def take(page, name):
        if folder:
            page.wait_for_timeout(300)  # for transitions to end
            page.screenshot(path=Path(folder) / f"{name}.png")

    return take


@pytest.fixture
def scripted():
    """A server whose engine says what the test tells it."""
    with LiveServer() as server:
        yield server
