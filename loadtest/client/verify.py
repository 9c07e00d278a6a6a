"""Asks again for a sample of answers, without streaming and one at a time: text, finish reason and usage must be the stream's.

Meaningful only for greedy requests (temperature 0) to a server whose answers do not depend on what runs beside them.
"""

from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

import httpx

from loadtest.client.streams import StreamedAnswer, whole_answer
from loadtest.client.target import Known, Target, request_body
from loadtest.report.records import RequestRecord


def sampled(records: Sequence[RequestRecord], many: int, seed: int) -> list[RequestRecord]:
    """A random sample of at most `many` records that have a complete answer, by index."""
    whole = [record for record in records if record.ok]
    chosen = Random(f"{seed} verify").sample(whole, min(many, len(whole)))
    return sorted(chosen, key=lambda record: record.index)


async def verify(
    client: httpx.AsyncClient,
    target: Target,
    known: Known,
    again: Mapping[int, tuple[RequestRecord, str, StreamedAnswer]],
    *,
    patience: float,
) -> None:
    """Ask again; each difference becomes a violation in its record.

    Args:
        client: sends the requests.
        target, known: as in the run.
        again: by index, each record with its prompt and what its stream said.
        patience: seconds that an answer may take.
    """
    for record, text, streamed in again.values():
        body = request_body(target, known, text, record.asked_output, stream=False)
        try:
            answer = await client.post(target.url, json=body, timeout=patience)
            whole = whole_answer(answer.raise_for_status().json())
        except (httpx.HTTPError, ValueError) as error:
            record.violations.append(f"verify: no answer without streaming: {error or type(error).__name__}")
            continue
        record.violations += [f"verify: {difference}" for difference in differences(streamed, whole)]


def differences(streamed: StreamedAnswer, whole: StreamedAnswer) -> list[str]:
    """Where the unstreamed answer differs from the stream, a sentence for each."""
    found: list[str] = []
    if streamed.text != whole.text:
        same = next(
            (place for place, (a, b) in enumerate(zip(streamed.text, whole.text, strict=False)) if a != b),
            min(len(streamed.text), len(whole.text)),
        )
        lengths = f"{len(streamed.text)} and {len(whole.text)} characters"
        found.append(f"another text from character {same} on ({lengths})")
    if streamed.finish_reason != whole.finish_reason:
        found.append(f"finish reason {whole.finish_reason!r}, not {streamed.finish_reason!r}")
    for name in ("prompt_tokens", "completion_tokens"):
        before, after = _used(streamed.usage, name), _used(whole.usage, name)
        if before != after:
            found.append(f"{name} {after}, not {before}")
    return found


def _used(usage: Mapping[str, Any] | None, name: str) -> Any:
    return (usage or {}).get(name)
