"""The playground over a real engine: an answer, a prefix that is found again, and programs that ask the same."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from playwright.sync_api import expect

from tests.browser.conversation import ended, figure, send
from tests.e2e.server_process import ServerProcess

pytestmark = pytest.mark.processes

KEY = "wheel-key"
QUESTION = 'What\'s a "water wheel"? Answer in one line:\n\\o/ $HOME `x` — größer'


@pytest.fixture(scope="module")
def served():
    server = ServerProcess("--kv-blocks", "200", "--api-key", KEY)
    yield server
    assert server.stop() == 0, "".join(server.output)


@pytest.fixture
def page(served, tab):
    page = tab(served.url + "/")
    page.get_by_role("button", name="Attach a key").click()
    page.get_by_label("Key", exact=True).fill(KEY)
    page.keyboard.press("Enter")
    expect(page.locator("#model option")).to_have_text(["SmolLM2-135M-Instruct"])
    return page


def test_a_conversation_finds_its_beginning_again(page, picture):
    page.get_by_label("Temperature", exact=True).fill("0")
    page.get_by_label("Max tokens").fill("60")
    send(page, "Write three facts about rivers as a list.")
    ended(page)
    page.get_by_label("Token probabilities").check()
    send(page, "And which of them is the most surprising?")
    expect(page.locator(".answer")).to_have_count(2)
    prompt, cached = figure(page, "Prompt").removesuffix(" cached").split(" tokens, ")
    assert 0 < int(cached) < int(prompt)
    page.locator(".token").nth(3).hover()
    shares = [float(text.strip("<% ")) for text in page.get_by_role("tooltip").locator("li span").all_inner_texts()]
    assert len(shares) == 5 and shares == sorted(shares, reverse=True) and 0 < sum(shares) < 101
    picture(page, "1280-real")


def run(arguments, **options):
    environment = {**os.environ, "API_KEY": KEY}
    return subprocess.run(
        arguments, env=environment, capture_output=True, text=True, timeout=120, check=True, **options
    ).stdout


def streamed(events):
    """The text of the server-sent events that curl printed."""
    chunks = [json.loads(line.removeprefix("data: ")) for line in events.splitlines() if line.startswith("data: {")]
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    return "".join(choice.get("text") or choice.get("delta", {}).get("content") or "" for choice in choices)


def told(language, program):
    if language == "curl":
        return streamed(run(["bash", "-c", program]))
    if language == "Python":
        return run([sys.executable, "-"], input=program).removesuffix("\n")
    if shutil.which("node") is None:
        pytest.skip("there is no node on the PATH")
    return run(["node", "--input-type=module", "-"], input=program).removesuffix("\n")


@pytest.mark.parametrize("mode", ["Chat", "Completion"])
def test_programs_ask_the_same(page, mode):
    page.get_by_role("radio", name=mode).check()
    page.get_by_text("More sampling").click()
    fields = {"Seed": "7", "Max tokens": "12", "Temperature": "0.7", "Top k": "40", "Repetition penalty": "1.05"}
    for label, value in fields.items():
        page.get_by_label(label, exact=True).fill(value)
    page.get_by_role("textbox", name="Stop").fill("END")
    page.get_by_label("Token probabilities").check()
    page.locator("#prompt").fill(QUESTION)
    page.get_by_role("button", name="Send").click()
    ended(page).get_by_role("button", name="Probabilities").click()
    ended(page).get_by_role("button", name="Code").click()
    answer = page.evaluate("document.querySelector('.text').textContent").removeprefix(QUESTION)
    answers = {}
    for language in ("curl", "Python", "JavaScript"):
        page.get_by_role("tab", name=language).click()
        answers[language] = told(language, page.locator("#snippet").inner_text())
    assert answers["curl"] and answers == dict.fromkeys(answers, answers["curl"])
    if mode == "Completion":  # of a chat answer the page shows what its Markdown means
        assert answers["curl"] == answer
