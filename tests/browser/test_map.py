"""The live map in a real browser, over real engines: blocks fill and free, time stops and goes back, keys, colours, a phone."""

import re
import threading

import httpx
import psutil
import pytest
from playwright.sync_api import expect

from tests.browser.conftest import PHONE
from tests.browser.live_server import LiveServer
from tests.e2e.server_process import ServerProcess

pytestmark = pytest.mark.processes

KEYS = {"api_key": ["ops-key", "shop-key"], "key_names": ["ops", "shop"], "admin_keys": ["ops"]}
LONG = "The river ran over the mountain and the old mill stood by it. " * 12
NONE, SOME = re.compile(r"^0 in use"), re.compile(r"^[1-9]\d* in use")


@pytest.fixture(scope="module")
def served():
    server = ServerProcess("--kv-blocks", "120", "--max-step-tokens", "64", "--kv-host-gib", "0.1")
    yield server
    assert server.stop() == 0, "".join(server.output)


@pytest.fixture
def asked(served):
    """Starts requests that begin alike; at the end of the test they are through."""
    threads = []

    def start(count=1, tokens=60):
        def ask(number):
            body = {"prompt": f"{LONG}{number}", "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
            httpx.post(f"{served.url}/v1/completions", json={**body, "user": f"tenant {number}"}, timeout=120)

        for number in range(count):
            threads.append(threading.Thread(target=ask, args=(number,)))
            threads[-1].start()

    def through():
        for thread in threads:
            thread.join()

    yield start, through
    through()


def figure(page, label):
    return page.locator(".figures div", has_text=label).locator("dd")


def test_blocks_fill_and_free_while_a_request_runs(served, asked, tab, picture):
    start, through = asked
    page = tab(f"{served.url}/map")
    counts, when = page.locator(".counts"), page.locator("#when")
    expect(counts).to_have_text(NONE)
    expect(page.locator(".chip[data-state=ready]")).to_be_visible()
    start(count=3)
    expect(counts).to_have_text(SOME)
    expect(figure(page, "running")).to_have_text("3")
    picture(page, "1280-map")
    page.locator(".blocks").hover(position={"x": 8, "y": 8})
    story = page.locator("#story")
    expect(story).to_contain_text("Block 0. It holds tokens 0 to 31")
    through()
    expect(counts).to_have_text(re.compile(r"^0 in use[1-9]\d* cached"))
    expect(figure(page, "running")).to_have_text("0")
    expect(story).to_contain_text("Block 0 is cached")
    expect(story).to_contain_text(re.compile(r"It has tokens 0 to 31 of \w{8}-0"))
    assert when.inner_text() == "live"


def test_time_stops_and_goes_back(served, asked, tab, picture):
    start, through = asked
    page = tab(f"{served.url}/map")
    counts, when = page.locator(".counts"), page.locator("#when")
    expect(counts).to_have_text(NONE)
    start(count=2, tokens=80)
    through()
    expect(counts).to_have_text(
        re.compile(r"^0 in use[1-9]\d* cached")
    )  # what came before may have been drawn too late to be seen
    page.keyboard.press("Space")
    expect(page.locator("#pause")).to_have_attribute("aria-label", "Back to now")
    expect(when).to_have_text(re.compile(r"ago$"))
    for _ in range(40):
        page.keyboard.press("ArrowLeft")
        if SOME.match(counts.inner_text()):
            break
    before = counts.inner_text()
    assert SOME.match(before), "the pictures of the request are kept"
    expect(figure(page, "running")).to_have_text(re.compile("[12]"))
    picture(page, "1280-map-held")
    page.wait_for_timeout(600)  # what comes meanwhile is not shown
    assert counts.inner_text() == before
    page.locator(".blocks").click(position={"x": 8, "y": 8})
    expect(page.locator("#rows-note")).to_contain_text("only ")
    page.keyboard.press("Escape")
    expect(page.locator("#rows-note")).to_have_text("")
    expect(page.get_by_role("button", name="Show all")).to_be_hidden()
    for _ in range(60):
        page.keyboard.press("ArrowRight")
    expect(when).to_have_text("live")
    expect(counts).to_have_text(NONE)
    page.locator("#seek").fill("0")
    expect(page.locator("#back")).to_be_disabled()
    page.keyboard.press("End")
    expect(when).to_have_text("live")


def test_it_fits_a_phone_in_the_dark(served, asked, tab, picture):
    start, _ = asked
    page = tab(f"{served.url}/map", viewport=PHONE, color_scheme="dark", has_touch=True)
    start(count=2, tokens=30)
    expect(page.locator(".counts")).to_have_text(SOME)
    assert page.evaluate("document.scrollingElement.scrollWidth") <= PHONE["width"]
    page.locator(".blocks").tap(position={"x": 8, "y": 8})
    expect(page.locator("#story")).to_contain_text("Block 0")
    box = page.locator("#story").bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= PHONE["width"]
    picture(page, "390-map")
    page.get_by_role("button", name="Show all").tap()
    expect(page.locator("#rows-note")).to_have_text("")
    expect(page.locator("#story")).to_be_hidden()
    assert page.evaluate("getComputedStyle(document.body).color") == page.evaluate(
        "getComputedStyle(document.documentElement).color"
    )
    page.get_by_label("Light colours").click()
    expect(page.locator("html")).to_have_attribute("data-theme", "light")


def test_engines_draw_only_while_somebody_looks(served, tab):
    page = tab(f"{served.url}/map")
    expect(page.locator(".counts")).to_have_text(NONE)
    assert len(watchers(served)) == 1
    page.context.close()
    for _ in range(200):
        if not watchers(served):
            return
        threading.Event().wait(0.05)
    raise AssertionError("the server goes on for a page that is closed")


def watchers(server):
    """Established connections of the server's port that a stream keeps open."""
    port = int(server.url.rpartition(":")[2])
    connections = psutil.Process(server.process.pid).net_connections("tcp")
    return [each for each in connections if each.status == "ESTABLISHED" and each.laddr.port == port]


def test_it_asks_for_a_key_and_says_which_one_will_do(tab):
    with LiveServer(**KEYS) as server:
        page = tab(f"{server.url}map")
        trouble = page.locator("#trouble")

        def attach(key):
            page.locator("#key").click()
            page.get_by_label("Key", exact=True).fill(key)
            page.keyboard.press("Enter")

        expect(trouble).to_contain_text("Send a valid API key")
        page.get_by_role("button", name="Attach a key").click()
        page.keyboard.press("Escape")
        attach("shop-key")
        expect(trouble).to_contain_text("those that admin_keys (--admin-keys) names may")
        attach("ops-key")
        expect(page.locator(".chip[data-state=ready]")).to_be_visible()
        expect(trouble).to_be_hidden()
        expect(page.locator(".away")).to_have_text("Nothing has come from the engine yet.")
