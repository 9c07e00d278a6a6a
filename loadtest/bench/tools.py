"""How often a model calls the tool that a plain question is about, and how its calls are formed: 20 questions, three tools, `auto`.

    headrace serve Qwen2.5-Coder-1.5B-Instruct.gguf
    python -m loadtest.bench.tools                        # asks http://127.0.0.1:8000

Each question is asked as one answer and as a stream, greedily: both must say the same. Ends with 1 if a call is not well formed.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

_WORDS = {"type": "string"}
TOOLS: Mapping[str, Mapping[str, Any]] = {
    "get_weather": {"city": _WORDS, "unit": {"enum": ["celsius", "fahrenheit"]}},
    "calculate": {"expression": _WORDS},
    "send_email": {"to": _WORDS, "subject": _WORDS, "body": _WORDS},
}
ABOUT = {
    "get_weather": "Get the current weather in a city",
    "calculate": "Evaluate an arithmetic expression",
    "send_email": "Send an email",
}
REQUIRED = {"get_weather": ["city"], "calculate": ["expression"], "send_email": ["to", "subject", "body"]}
QUESTIONS = {
    "What is the weather in Paris?": "get_weather",
    "How warm is it in Tokyo right now, in celsius?": "get_weather",
    "Do I need an umbrella in London today?": "get_weather",
    "Is it raining in Seattle?": "get_weather",
    "Compare the weather in Oslo and in Rome.": "get_weather",
    "What's the temperature in New York in fahrenheit?": "get_weather",
    "Will I be cold in Moscow today?": "get_weather",
    "What is 23 * 47?": "calculate",
    "Work out (1234 + 4321) / 5 for me.": "calculate",
    "How much is 17 percent of 2350?": "calculate",
    "What's the square of 129?": "calculate",
    "Add 3.75, 12.5 and 8.25.": "calculate",
    "How many seconds are in 37 hours?": "calculate",
    "Write to anna@example.com that the meeting is moved to Friday.": "send_email",
    "Send bob@example.com an email: the report is ready.": "send_email",
    "Email my boss (boss@example.com) that I am ill today.": "send_email",
    "Tell carol@example.com by email that her parcel \"B-7\" has arrived.": "send_email",
    "Say hello.": "",
    "What is a haiku?": "",
    "Name three colours.": "",
}  # fmt: skip


@dataclass(slots=True)
class Said:
    """One answer: its text, its calls, how it ended."""

    text: str = ""
    calls: list[list[str]] = field(default_factory=list)
    reason: str = ""


def offered() -> Iterator[dict[str, Any]]:
    """The tools in OpenAI's JSON."""
    for name, properties in TOOLS.items():
        parameters = {"type": "object", "properties": properties, "required": REQUIRED[name]}
        function = {"name": name, "description": ABOUT[name], "parameters": parameters}
        yield {"type": "function", "function": function}


def fault(name: str, arguments: str) -> str | None:
    """What is wrong with a call; None if it is well formed."""
    if name not in TOOLS:
        return f"calls {name}, which is not there"
    try:
        given = json.loads(arguments)
    except ValueError as error:
        return f"arguments are not JSON: {error}"
    missing = [key for key in REQUIRED[name] if key not in given]
    if missing:
        return f"lacks {', '.join(missing)}"
    odd = [key for key in TOOLS[name] if key in given and not isinstance(given[key], str)]
    return f"{', '.join(odd)} must be text" if odd else None


def whole(client: httpx.Client, body: dict[str, Any]) -> Said:
    """The answer without streaming.

    Raises:
        httpx.HTTPError: the request was refused, or the server left.
    """
    answer = client.post("/v1/chat/completions", json=body)
    answer.raise_for_status()
    (choice,) = answer.json()["choices"]
    calls = [each["function"] for each in choice["message"].get("tool_calls") or ()]
    said = choice["message"]["content"] or ""
    return Said(said, [[each["name"], each["arguments"]] for each in calls], choice["finish_reason"])


def streamed(client: httpx.Client, body: dict[str, Any]) -> Said:
    """The answer as its deltas add up.

    Raises:
        httpx.HTTPError: the request was refused, or the server left.
    """
    said = Said()
    with client.stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as answer:
        answer.raise_for_status()
        for line in answer.iter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            for choice in json.loads(line[6:])["choices"]:
                said.reason = choice["finish_reason"] or said.reason
                said.text += choice["delta"].get("content") or ""
                for call in choice["delta"].get("tool_calls", ()):
                    if "id" in call:
                        said.calls.append([call["function"]["name"], ""])
                    said.calls[call["index"]][1] += call["function"]["arguments"]
    return said


def main(argv: Sequence[str] | None = None) -> int:
    """Ask, and print a line for each question and the sums."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--tool-choice", default="auto", choices=["auto", "required"])
    parser.add_argument("--max-tokens", type=int, default=200)
    options = parser.parse_args(argv)
    calls = faults = right = alike = 0
    with httpx.Client(base_url=options.url, timeout=600) as client:
        for question, tool in QUESTIONS.items():
            body = {
                "messages": [{"role": "user", "content": question}],
                "tools": list(offered()),
                "tool_choice": options.tool_choice,
                "temperature": 0,
                "max_tokens": options.max_tokens,
            }
            said, again = whole(client, body), streamed(client, body)
            wrong = [each for call in said.calls if (each := fault(*call)) is not None]
            calls, faults = calls + len(said.calls), faults + len(wrong)
            right += {name for name, _ in said.calls} == ({tool} if tool else set())
            alike += said == again
            shown = "; ".join(f"{name}{arguments}" for name, arguments in said.calls) or repr(said.text[:90])
            print(f"{question}\n    {said.reason}: {shown}{''.join(f'  WRONG: {each}' for each in wrong)}", flush=True)
    print(
        f"{calls} calls, {calls - faults} well formed; the tool meant in {right} of {len(QUESTIONS)}; streamed alike: {alike}"
    )
    return int(faults > 0 or alike < len(QUESTIONS))


if __name__ == "__main__":
    sys.exit(main())
