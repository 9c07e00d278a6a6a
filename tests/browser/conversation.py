"""What tests of the playground do on it, and what they read there."""

from playwright.sync_api import expect

RICH = """# A mill

It has **two** wheels, *one* shaft and `one` [headrace](https://example.org/a_(b)).
A second line with snake_case_name and 2 * 3 * 4.

1. first
2. second
   - inner

> quoted

```python
def mill(x):
    return x * 2
```

| a | b |
| :-: | --: |
| 1 | 2 |

---
https://example.org/end.
"""


def send(page, text):
    page.get_by_label("Message").fill(text)
    page.get_by_role("button", name="Send").click()


def answer(page, number=-1):
    return page.locator(".answer").nth(number)


def ended(page, number=-1):
    """The answer, when it is complete."""
    expect(answer(page, number)).to_have_attribute("aria-busy", "false")
    return answer(page, number)


def figure(page, name):
    return ended(page).locator(f".meta div:has(dt:text-is('{name}')) dd").inner_text()


def texts(scripted):
    """The prompts that the engine got; a token is a byte, and two more begin and end turns."""
    return [bytes(token for token in request.prompt_ids if token < 256).decode() for request in scripted.bodies()]


def eventually(page, condition):
    """Wait for what the browser's leaving brings about in the server; the suite's own time-out is the limit."""
    while not condition():
        page.wait_for_timeout(20)
