"""Clients that ask without end, and note of each request how it went."""

import asyncio
import json
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import httpx

from tests.e2e.chaos.questions import Question, Refused, Said, check_stream

PATIENCE = 240.0
LEAVERS = 0.1  # of all requests


@dataclass
class Asked:
    """One request that has ended."""

    kind: str
    begun: float
    ended: float = 0.0
    outcome: str = ""  # "answered", "left", "connection lost", or what is wrong
    pause: float = 0.0  # the longest between two events of a stream

    @property
    def lost(self) -> bool:
        return self.outcome not in ("answered", "left", "connection lost")


@dataclass
class Clients:
    """Args:
    url: of the server, always the same.
    expected: what each question is answered undisturbed.
    reachable: waits for a server, after the HTTP process was killed.
    http_killed: whether it was, since then (monotonic stamp).
    """

    url: str
    expected: dict[Question, Said]
    reachable: Callable[[], Awaitable[None]]
    http_killed: Callable[[float], bool]
    asked: list[Asked] = field(default_factory=list)
    open: int = 0

    async def run(self, seed: int, over: asyncio.Event) -> None:
        """One client, until it is over."""
        draw = random.Random(seed)
        async with httpx.AsyncClient(timeout=PATIENCE, limits=httpx.Limits(max_keepalive_connections=0)) as client:
            while not over.is_set():
                await self.reachable()
                question = draw.choice(list(self.expected))
                leave_after = draw.randrange(1, 12) if draw.random() < LEAVERS else None
                await self._ask(client, question, leave_after, streams=leave_after is not None or draw.random() < 0.6)

    async def _ask(
        self, client: httpx.AsyncClient, question: Question, leave_after: int | None, *, streams: bool
    ) -> None:
        one = Asked(question.kind, time.monotonic())
        self.open += 1
        try:
            said = await (stream if streams else whole)(client, self.url, question, one, leave_after)
            wrong = None if said is None else said.differs(self.expected[question])
            one.outcome = "left" if said is None else "answered" if wrong is None else f"another answer: {wrong}"
        except httpx.TransportError as error:
            killed = self.http_killed(one.begun)
            one.outcome = "connection lost" if killed else f"connection lost, but nobody killed it: {error!r}"
        except (Refused, AssertionError, ValueError) as error:
            one.outcome = f"{type(error).__name__}: {error}"
        finally:
            self.open -= 1
            one.ended = time.monotonic()
            self.asked.append(one)


async def whole(client: httpx.AsyncClient, url: str, question: Question, one: Asked, _: object = None) -> Said:
    answer = await client.post(url + question.path, json=question.body)
    if answer.status_code != 200:
        raise Refused(f"{answer.status_code}: {answer.text}")
    said = Said.nothing(question.choices)
    said.add(answer.json())
    return said


async def stream(
    client: httpx.AsyncClient, url: str, question: Question, one: Asked, leave_after: int | None = None
) -> Said | None:
    """None: it has left."""
    body = {**question.body, "stream": True, "stream_options": {"include_usage": True}}
    lines: list[str] = []
    async with client.stream("POST", url + question.path, json=body) as answer:
        if answer.status_code != 200:
            raise Refused(f"{answer.status_code}: {(await answer.aread()).decode()}")
        before = time.monotonic()
        async for line in answer.aiter_lines():
            if line.startswith("data:"):
                now = time.monotonic()
                one.pause, before = max(one.pause, now - before), now
                lines.append(f"{line}\n\n")
                if leave_after is not None and len(lines) >= leave_after:
                    return None
    return check_stream(question, lines)


async def undisturbed(url: str, questions: list[Question]) -> dict[Question, Said]:
    """The answers while nothing happens, asked one by one for some and together for others, in both forms: they must agree."""
    found: dict[int, Said] = {}

    async def ask(index: int) -> None:
        question, one = questions[index], Asked("", 0.0)
        found[index] = await whole(client, url, question, one)
        streamed = await stream(client, url, question, one)
        assert streamed is not None
        assert (wrong := found[index].differs(streamed)) is None, f"{json.dumps(question.body)}: {wrong}"

    async with httpx.AsyncClient(timeout=PATIENCE) as client:
        for start in range(0, len(questions), 6):
            await asyncio.gather(*map(ask, range(start, min(start + 6, len(questions)))))
    return {question: found[index] for index, question in enumerate(questions)}
