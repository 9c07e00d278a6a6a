"""What a model writes, in a real browser: Markdown is shown as what it means, and HTML as the text that it is."""

import pytest
from playwright.sync_api import expect

from tests.browser.conversation import RICH, answer, ended, send

pytestmark = pytest.mark.processes

EVIL = """<img src=x onerror="document.title='hacked'"> <script>document.title='hacked'</script>
<svg onload="document.title='hacked'"></svg> <iframe srcdoc="<script>parent.document.title='hacked'</script>"></iframe>

[a](javascript:document.title='hacked') ![b](x"onerror="document.title='hacked') [c](data:text/html,<script>1</script>)
<a href="javascript:document.title='hacked'">d</a> **<b onclick=alert(1)>e</b>** `<i>f</i>`

```html"><img src=x onerror=document.title='hacked'>
</code></pre><script>document.title='hacked'</script>
```

| <img src=x onerror=document.title='hacked'> | b |
| --- | --- |
| </table><script>document.title='hacked'</script> | [g](JaVaScRiPt:alert(1)) |
"""


@pytest.mark.parametrize("scores", [False, True])
@pytest.mark.parametrize("mode", ["Chat", "Completion"])
def test_a_hostile_answer_is_text(scripted, tab, picture, mode, scores):
    scripted.reply = EVIL
    page = tab(scripted.url)
    page.get_by_label("Token probabilities").set_checked(scores)
    page.get_by_role("radio", name=mode).check()
    page.locator("#prompt").fill(EVIL)
    page.get_by_label("Max tokens").fill("2000")
    page.get_by_role("button", name="Send").click()
    whole = ended(page)
    if scores:
        whole.get_by_role("button", name="Probabilities").click()
    picture(page, f"1280-hostile-{mode}")
    expect(whole.locator(".text")).to_contain_text("<script>document.title='hacked'</script>")
    assert page.title() == "headrace"
    bad = "img, script, iframe, svg, object, a[href^='javascript' i], a[href^='data' i], [onclick], [onerror], [onload]"
    assert page.locator("#log").locator(bad).count() == 0
    assert page.locator("script").count() == 1


def test_markdown_is_shown_as_what_it_means(scripted, tab, picture):
    scripted.reply = RICH
    page = tab(scripted.url)
    send(page, "Show me")
    text = ended(page).locator(".text")
    expect(text.locator("h3")).to_have_text("A mill")
    expect(text.locator("strong")).to_have_text("two")
    expect(text.locator("em")).to_have_text("one")
    expect(text.locator("p code")).to_have_text("one")
    expect(text.get_by_role("link").first).to_have_attribute("href", "https://example.org/a_(b)")
    expect(text.get_by_role("link").last).to_have_attribute("href", "https://example.org/end")
    assert all("noopener" in link.get_attribute("rel") for link in text.get_by_role("link").all())
    expect(text.locator("ol > li")).to_have_count(2)
    expect(text.locator("ol > li ul > li")).to_have_text("inner")
    expect(text.locator("blockquote")).to_have_text("quoted")
    expect(text.locator("pre")).to_have_text("def mill(x):\n    return x * 2")
    expect(text.locator("td")).to_have_text(["1", "2"])
    expect(text.locator("p").first).to_contain_text("snake_case_name and 2 * 3 * 4.")
    picture(page, "1280-markdown")


def test_blocks_that_are_complete_keep_their_nodes_while_the_text_grows(scripted, tab):
    scripted.reply = "```\nfirst\n```\nThen a paragraph."
    page = tab(scripted.url)
    scripted.let(18)
    send(page, "Hi")
    expect(answer(page).locator("p")).to_have_text("Then")
    page.evaluate("document.querySelector('.text pre').dataset.mine = 'yes'")
    scripted.let(100)
    expect(ended(page).locator("p")).to_have_text("Then a paragraph.")
    expect(page.locator(".text pre")).to_have_attribute("data-mine", "yes")


def test_a_model_that_repeats_itself_does_not_stop_the_page(scripted, tab):
    """Backtracking over a run of backticks once took a minute for each picture of it."""
    scripted.reply = "so " + "`" * 2000
    page = tab(scripted.url)
    page.get_by_label("Max tokens").fill("3000")
    send(page, "Go on")
    expect(ended(page).locator(".text")).to_have_text(scripted.reply)
