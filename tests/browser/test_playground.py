"""The playground in a real browser: asking, watching, stopping, refusals, keys, keyboard, colours, a phone."""

import re

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import PHONE
from tests.browser.conversation import RICH, answer, ended, eventually, figure, send, texts
from tests.browser.live_server import LiveServer

pytestmark = pytest.mark.processes


def test_an_answer_is_watched_as_it_streams(scripted, tab, picture):
    page = tab(scripted.url)
    scripted.let(0)
    picture(page, "1280-welcome")
    send(page, "Hi")
    expect(page.get_by_role("button", name="Stop")).to_be_visible()
    expect(page.locator(".asked")).to_have_text("Hi")
    for steps, seen in ((5, "Hello"), (2, "Hello, "), (100, "Hello, wörld!")):
        scripted.let(steps)
        expect(answer(page).locator(".text")).to_have_text(seen)
    assert figure(page, "Answer") == "15 tokens" and figure(page, "Prompt") == "21 tokens, 10 cached"
    assert re.fullmatch(r"[\d.]+ m?s", figure(page, "First token"))
    assert re.fullmatch(r"[\d,.]+ tokens/s", figure(page, "Speed"))
    expect(page.get_by_role("status")).to_have_text("The answer is complete.")
    assert page.title() == "headrace"


def test_the_conversation_goes_on_with_what_was_answered(scripted, tab):
    page = tab(scripted.url)
    page.get_by_label("System prompt").fill("Be kind.")
    send(page, "Hi")
    ended(page)
    send(page, "And you?")
    expect(page.locator(".answer")).to_have_count(2)
    ended(page)
    assert texts(scripted)[-1] == "system\nBe kind.\nuser\nHi\nassistant\nHello, wörld!\nuser\nAnd you?\nassistant\n"
    page.get_by_role("button", name="New").click()
    expect(page.locator(".answer")).to_have_count(0)
    send(page, "Again")
    ended(page)
    assert texts(scripted)[-1] == "system\nBe kind.\nuser\nAgain\nassistant\n"


def test_stopping_ends_the_request_and_keeps_what_came(scripted, tab):
    page = tab(scripted.url)
    scripted.let(5)
    send(page, "Hi")
    expect(answer(page).locator(".text")).to_have_text("Hello")
    page.get_by_role("button", name="Stop").click()
    assert figure(page, "End") == "stopped by you" and figure(page, "Answer") == "5 tokens"
    expect(page.get_by_role("status")).to_have_text("Stopped.")
    eventually(page, lambda: scripted.aborted() == [scripted.bodies()[-1].request_id])
    scripted.let(float("inf"))
    page.keyboard.press("Escape")  # means nothing now
    send(page, "Go on")
    ended(page)
    assert "assistant\nHello\nuser\nGo on" in texts(scripted)[-1]


def test_parameters_reach_the_engine(scripted, tab):
    page = tab(scripted.url)
    page.get_by_text("More sampling").click()
    values = {"Max tokens": "7", "Temperature": "0.5", "Top p": "0.9", "Top k": "5", "Min p": "0.1"}
    values |= {"Presence penalty": "0.2", "Frequency penalty": "-0.3", "Repetition penalty": "1.1", "Seed": "42"}
    for label, value in values.items():
        page.get_by_label(label, exact=True).fill(value)
    page.get_by_label("Stop", exact=False).last.fill("END\\n\nwheel")
    send(page, "Hi")
    assert figure(page, "End") == "at max tokens"
    sampling = scripted.bodies()[-1].sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p, sampling.top_k) == (7, 0.5, 0.9, 5)
    assert (sampling.min_p, sampling.presence_penalty, sampling.frequency_penalty) == (0.1, 0.2, -0.3)
    assert (sampling.repetition_penalty, sampling.seed) == (1.1, 42)
    page.get_by_label("Temperature, slider").fill("1.5")
    expect(page.get_by_label("Temperature", exact=True)).to_have_value("1.5")
    page.get_by_role("button", name="Defaults").click()
    expect(page.get_by_label("Temperature, slider")).to_have_value("1")
    send(page, "Hi")
    ended(page)
    assert scripted.bodies()[-1].sampling.temperature == 1.0 and scripted.bodies()[-1].sampling.top_k == 0


@pytest.mark.parametrize("value", ["99999", "many", "-1"])
def test_a_refusal_is_a_sentence_that_leads_to_its_field(scripted, tab, picture, value):
    page = tab(scripted.url)
    field = page.get_by_label("Max tokens")
    field.fill(value)
    send(page, "Hi")
    alert = ended(page).get_by_role("alert")
    expect(alert).to_contain_text("max_tokens")
    expect(alert).to_contain_text(value)
    expect(field).to_have_attribute("aria-invalid", "true")
    picture(page, f"1280-refused{value}")
    alert.get_by_role("button", name="Go to the field").click()
    expect(field).to_be_focused()
    field.fill("5")
    expect(field).not_to_have_attribute("aria-invalid", "true")
    page.get_by_role("button", name="Try again").click()
    expect(ended(page).locator(".text")).to_have_text("Hello")
    expect(page.locator(".answer")).to_have_count(1)


def test_a_seed_that_javascript_cannot_hold_is_not_sent_as_another(scripted, tab):
    page = tab(scripted.url)
    page.get_by_label("Seed").fill("9007199254740993")
    send(page, "Hi")
    expect(ended(page).get_by_role("alert")).to_contain_text("Seed is too large for this page")
    assert not scripted.bodies()


@pytest.mark.parametrize("mode", ["Chat", "Completion"])
def test_probabilities_are_shown_by_pointing_and_by_the_keyboard(scripted, tab, picture, mode):
    scripted.reply = "wörld"
    page = tab(scripted.url)
    page.get_by_role("radio", name=mode).check()
    page.get_by_label("Token probabilities").check()
    page.locator("#prompt").fill("Hi")
    page.get_by_role("button", name="Send").click()
    tokens = ended(page).locator(".token")
    expect(tokens).to_have_text(["w", "·", "ö", "r", "l", "d", "<|im_end|>"])
    tokens.first.hover()
    tip = page.get_by_role("tooltip")
    expect(tip.locator("li code")).to_have_text(["x", "w", "y", "z", "{"])
    expect(tip.locator("li.chosen")).to_have_text("w60.7 %")
    picture(page, f"1280-probabilities-{mode}")
    page.mouse.move(5, 5)
    expect(tip).to_be_hidden()
    tokens.first.focus()
    page.keyboard.press("ArrowRight")
    expect(tip.locator("li.chosen code")).to_have_text("\\xc3")
    page.keyboard.press("End")
    expect(tip.locator("li.chosen code")).to_have_text("<|im_end|>")
    page.keyboard.press("Escape")
    expect(tip).to_be_hidden()
    ended(page).get_by_role("button", name="Probabilities").click()
    expect(ended(page).locator(".text")).to_contain_text("wörld")


def test_a_text_is_continued(scripted, tab, picture):
    scripted.reply = "\n\n<b>a wheel</b>"
    page = tab(scripted.url)
    page.get_by_role("radio", name="Completion").check()
    expect(page.get_by_label("System prompt")).to_be_hidden()
    page.get_by_label("Text to continue").fill("The mill has")
    page.get_by_label("Max tokens").fill("100")
    page.get_by_role("button", name="Send").click()
    expect(ended(page).locator(".text")).to_have_text("The mill has\n\n<b>a wheel</b>")
    assert texts(scripted) == ["The mill has"]
    picture(page, "1280-completion")
    ended(page).get_by_role("button", name="Again").click()
    expect(page.locator(".answer")).to_have_count(2)
    page.get_by_role("radio", name="Chat").check()
    expect(page.locator(".answer")).to_have_count(0)


def test_prices_make_a_cost(scripted, tab):
    page = tab(scripted.url)
    send(page, "Hi")
    ended(page)
    expect(page.locator(".meta dt", has_text="Cost")).to_have_count(0)
    page.get_by_text("Prices").click()
    for label, price in (("Prompt", "10"), ("Prompt, cached", "1"), ("Output", "100")):
        page.get_by_label(label, exact=True).fill(price)
    ended(page).get_by_role("button", name="Again").click()
    expect(page.locator(".answer")).to_have_count(1)
    assert float(figure(page, "Cost")) == pytest.approx((11 * 10 + 10 * 1 + 15 * 100) / 1e6, rel=0.01)


def test_what_the_server_tells_of_a_request_stands_below_its_answer(scripted, tab):
    page = tab(scripted.url)
    send(page, "Hi")
    expect(ended(page).locator(".story li").first).to_be_visible()
    name = scripted.bodies()[-1].request_id.rpartition("-")[0]
    story = page.request.get(f"{scripted.url}v1/requests/{name}").json()
    assert ended(page).locator(".story li").all_inner_texts() == story["summary"]
    page.route("**/v1/requests/*", lambda route: route.fulfill(json={"summary": ["<b>One</b>.", "Two."]}))
    send(page, "Hi")
    expect(answer(page, 1).locator(".story li")).to_have_text(["<b>One</b>.", "Two."])
    page.unroute("**/v1/requests/*")
    page.route("**/v1/requests/*", lambda route: route.fulfill(status=404, json={"error": {"message": "no"}}))
    send(page, "Hi")
    expect(page.locator(".answer")).to_have_count(3)
    ended(page)
    expect(page.locator(".story:visible")).to_have_count(2)
    expect(page.get_by_role("alert")).to_have_count(0)


def test_a_key_is_attached_and_kept_in_this_tab_alone(tab, picture):
    with LiveServer(api_key=["wheel-key"]) as server:
        page = tab(server.url)
        alert = page.get_by_role("alert")
        expect(alert).to_contain_text("This server asks for an API key.")
        picture(page, "1280-key-needed")
        alert.get_by_role("button", name="Attach a key").click()
        page.get_by_label("Key", exact=True).fill("wrong")
        page.keyboard.press("Enter")
        expect(alert).to_contain_text("asks for an API key")
        send(page, "Hi")
        expect(ended(page).get_by_role("alert")).to_contain_text("Send a valid API key")
        ended(page).get_by_role("button", name="Attach a key").click()
        picture(page, "1280-key")
        page.get_by_label("Key", exact=True).fill("wheel-key")
        page.get_by_role("button", name="Attach", exact=True).click()
        expect(page.locator("#model option")).to_have_text(["small", "org/small"])
        page.get_by_role("button", name="Try again").click()
        expect(ended(page).locator(".text")).to_have_text("Hello, wörld!")
        ended(page).get_by_role("button", name="Code").click()
        for language in ("curl", "Python", "JavaScript"):
            page.get_by_role("tab", name=language).click()
            expect(page.locator("#snippet")).to_contain_text("API_KEY")
            assert "wheel-key" not in page.content()
        stored = page.evaluate("[JSON.stringify(sessionStorage), JSON.stringify(localStorage), document.cookie]")
        assert "wheel-key" in stored[0] and "wheel-key" not in "".join(stored[1:])
        page.keyboard.press("Escape")
        page.reload()
        expect(page.get_by_role("button", name="API key: attached")).to_be_visible()
        page.get_by_role("button", name="API key: attached").click()
        page.get_by_role("button", name="Remove").click()
        expect(page.get_by_role("button", name="Attach an API key")).to_be_visible()
        assert "wheel-key" not in page.evaluate("JSON.stringify(sessionStorage)")


def test_it_is_used_by_keyboard_alone(scripted, tab):
    page = tab(scripted.url)
    expect(page.locator("#prompt")).to_be_focused()
    page.keyboard.type("Hi")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("there")
    page.keyboard.press("Enter")
    ended(page)
    assert texts(scripted)[-1] == "user\nHi\nthere\nassistant\n"
    scripted.let(3)
    page.keyboard.type("Hi")
    page.keyboard.press("Enter")
    expect(answer(page).locator(".text")).to_have_text("Hel")
    page.keyboard.press("Escape")
    assert figure(page, "End") == "stopped by you"
    reached = set()
    for _ in range(80):
        page.keyboard.press("Tab")
        reached.add(
            page.evaluate(
                "document.activeElement.id || document.activeElement.textContent || document.activeElement.name"
            )
        )
    assert {
        "key",
        "theme",
        "model",
        "system",
        "field-max_tokens",
        "field-seed",
        "fresh",
        "code",
        "Again",
        "Copy",
    } <= reached
    page.locator("input[name=mode]").first.focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#prompt")).to_have_attribute("placeholder", "A text to go on with")
    page.locator("#theme").focus()
    page.keyboard.press("Enter")
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")
    page.locator("#code").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.get_by_role("tab", name="curl").focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#snippet")).to_contain_text("from openai import OpenAI")
    page.keyboard.press("Escape")
    expect(page.locator("#code")).to_be_focused()


def paper(page):
    return page.evaluate("getComputedStyle(document.documentElement).backgroundColor")


@pytest.mark.parametrize(("system", "other"), [("light", "dark"), ("dark", "light")])
def test_colours_are_the_system_s_until_chosen(scripted, tab, picture, system, other):
    colours = {"light": "rgb(247, 248, 247)", "dark": "rgb(16, 23, 26)"}
    page = tab(scripted.url, color_scheme=system)
    assert paper(page) == colours[system]
    page.emulate_media(color_scheme=other)
    assert paper(page) == colours[other]
    page.emulate_media(color_scheme=system)
    page.get_by_role("button", name=f"{other.capitalize()} colours").click()
    assert paper(page) == colours[other]
    page.reload()
    assert paper(page) == colours[other]
    page.get_by_role("button", name=f"{system.capitalize()} colours").click()
    assert paper(page) == colours[system]


def overflow(page):
    """How much wider than the window the page is."""
    return page.evaluate("document.documentElement.scrollWidth - window.innerWidth")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_all_of_it_without_scrolling_sideways(scripted, tab, picture, scheme):
    scripted.reply = RICH + "\n```\n" + "long " * 100 + "\n```\n" + "unbroken" * 60
    page = tab(scripted.url, PHONE, color_scheme=scheme, has_touch=True, is_mobile=True)
    assert overflow(page) == 0
    picture(page, f"390-welcome-{scheme}")
    expect(page.get_by_label("System prompt")).to_be_hidden()
    page.get_by_role("button", name="Settings").tap()
    expect(page.get_by_label("System prompt")).to_be_visible()
    assert overflow(page) == 0
    picture(page, f"390-settings-{scheme}")
    page.get_by_label("Max tokens").fill("2000")
    page.get_by_label("Token probabilities").check()
    page.get_by_role("button", name="Close").tap()
    expect(page.get_by_label("System prompt")).to_be_hidden()
    send(page, "unbroken" * 20)
    page.locator(".token").first.tap()
    ended(page)
    assert overflow(page) == 0
    picture(page, f"390-probabilities-{scheme}")
    ended(page).get_by_role("button", name="Probabilities").tap()
    assert overflow(page) == 0
    picture(page, f"390-answer-{scheme}")
    ended(page).get_by_role("button", name="Code").last.tap()
    assert overflow(page) == 0
    picture(page, f"390-code-{scheme}")


def test_a_server_that_has_gone_is_told_of(tab):
    server = LiveServer()
    with server:
        page = tab(server.url)
        expect(page.locator("#model option").first).to_be_attached()
    send(page, "Hi")
    expect(ended(page).get_by_role("alert")).to_contain_text("The server does not answer.")


def test_nothing_but_this_server_is_asked(scripted, tab):
    page = tab("about:blank")
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(scripted.url)
    send(page, "![a](https://example.org/pixel.png)")
    ended(page)
    assert asked and all(url.startswith(scripted.url) or url.startswith("data:") for url in asked)
