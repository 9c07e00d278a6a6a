"""What clients ask while processes are killed, and what an answer says, however it came."""

import json
import math
from dataclasses import dataclass
from typing import Any

from loadtest.client.sse_grammar import validate

PREFIX = (
    "In the valley the mill ran day and night, and what the river brought was ground before the evening came. " * 24
)
TOPICS = ("the weir", "a sluice", "the miller", "his wheel", "the spring flood", "a dry summer")
LOGPROB = 1e-3  # their last bits depend on how many rows a step has


@dataclass(frozen=True, eq=False)
class Question:
    """A request without `stream`; the answer to it is always the same."""

    kind: str
    path: str
    body: dict[str, Any]

    @property
    def choices(self) -> int:
        return self.body.get("n", 1) * (len(self.body["prompt"]) if isinstance(self.body.get("prompt"), list) else 1)


def questions() -> list[Question]:
    asked = []
    for number, topic in enumerate(TOPICS):
        text = f"What the old people told about {topic} was"
        seeded = {"temperature": 1.0, "seed": 100 + number}
        asked += [
            completion("greedy", text, max_tokens=48),
            completion("long answer", text, max_tokens=150),
            completion("seeded", text, max_tokens=40, top_p=0.9, **seeded),
            completion("prefix", f"{PREFIX} Then {topic}", max_tokens=24),
            completion("n=2 with logprobs", text, max_tokens=24, n=2, logprobs=2, **seeded),
            completion("penalties, stop", text, max_tokens=60, stop=["\n\n", " the end"], repetition_penalty=1.2),
            completion("several prompts", [text, f"{topic} is", f"About {topic}"], max_tokens=16),
            chat("chat", f"Tell me about {topic}.", max_tokens=40),
            chat("chat, seeded", f"A line about {topic}?", max_tokens=24, logprobs=True, top_logprobs=1, **seeded),
        ]
    return asked


def completion(kind: str, prompt: str | list[str], **body: Any) -> Question:
    return Question(kind, "/v1/completions", {"prompt": prompt, "temperature": 0, "ignore_eos": True, **body})


def chat(kind: str, content: str, **body: Any) -> Question:
    messages = [{"role": "user", "content": content}]
    return Question(kind, "/v1/chat/completions", {"messages": messages, "temperature": 0, **body})


@dataclass(eq=False)
class Said:
    """Of each choice the text, the end and the log probabilities; the tokens of the whole request."""

    texts: list[str]
    ends: list[str | None]
    logprobs: list[list[float]]
    tokens: tuple[int, int] = (0, 0)

    @classmethod
    def nothing(cls, choices: int) -> "Said":
        return cls([""] * choices, [None] * choices, [[] for _ in range(choices)])

    def add(self, body: dict[str, Any]) -> None:
        """A whole answer, or the next event of a stream."""
        for choice in body["choices"]:
            index, part = choice["index"], choice.get("delta") or choice.get("message") or choice
            self.texts[index] += part.get("content") or part.get("text") or ""
            self.ends[index] = choice["finish_reason"] or self.ends[index]
            told = choice.get("logprobs") or {}
            self.logprobs[index] += told.get("token_logprobs") or [
                entry["logprob"] for entry in told.get("content") or ()
            ]
        if usage := body.get("usage"):
            self.tokens = (usage["prompt_tokens"], usage["completion_tokens"])

    def differs(self, other: "Said") -> str | None:
        """In what; None: in nothing."""
        for name in ("texts", "ends", "tokens"):
            if (mine := getattr(self, name)) != (theirs := getattr(other, name)):
                return f"{name}: {mine} instead of {theirs}"
        for mine, theirs in zip(self.logprobs, other.logprobs, strict=True):
            close = len(mine) == len(theirs) and all(
                math.isclose(a, b, abs_tol=LOGPROB) for a, b in zip(mine, theirs, strict=True)
            )
            if not close:
                return f"logprobs: {mine} instead of {theirs}"
        return None


class Refused(Exception):
    """The server answered with an error."""


def check_stream(question: Question, lines: list[str]) -> Said:
    """What a stream said, whose form is checked.

    Raises:
        Refused: it ended with an error.
        AssertionError: it breaks the grammar of streams.
    """
    summary = validate(lines, choices=question.choices, include_usage=True)
    if summary.error is not None:
        raise Refused(f"in the stream: {summary.error}")
    said = Said.nothing(question.choices)
    for line in lines:
        if "[DONE]" not in line:
            said.add(json.loads(line.removeprefix("data:")))
    return said
