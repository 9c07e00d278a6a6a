"""Runs made by hand or drawn by seed."""

import random

import pytest

from loadtest.report.records import ErrorClass, LoadRun, Objective, RequestRecord


def answered(index: int, intended: float, *, ttft: float, gaps: tuple[float, ...] = (), **more) -> RequestRecord:
    """A whole answer whose first token comes `ttft` after the intended time, and the rest `gaps` apart."""
    at = round(intended + ttft, 6)  # as a file keeps times
    tokens = [(at, 1)]
    for gap in gaps:
        at = round(at + gap, 6)
        tokens.append((at, 1))
    fields = {
        "sent": intended,
        "finished": at,
        "status": 200,
        "finish_reason": "length",
        "asked_prompt": 10,
        "asked_output": len(tokens),
        "prompt_tokens": 10,
        "output_tokens": len(tokens),
        "tokens": tokens,
    }
    return RequestRecord(index=index, intended=intended, **fields | more)


def refused(index: int, intended: float, **more) -> RequestRecord:
    """A request that the server did not take."""
    fields = {"status": 429, "error": ErrorClass.STATUS, "detail": f"429: {index} requests wait"}
    return RequestRecord(
        index=index, intended=intended, sent=intended, asked_prompt=10, asked_output=5, **fields | more
    )


def run_of(records: list[RequestRecord], **more) -> LoadRun:
    fields = {"label": "hand-made", "target": "http://localhost/v1", "started": 1.7e9, "plan": {"seed": 0}}
    fields["duration"] = max([record.finished or record.intended for record in records], default=0.0)
    return LoadRun(records=records, **fields | more)


def drawn_run(seed: int = 0, requests: int = 400, slow: float = 1.0, **more) -> LoadRun:
    """Ten requests a second with lognormal latencies, in two classes; every fortieth is refused."""
    rng, at, records = random.Random(seed), 0.0, []
    for index in range(requests):
        at = round(at + rng.expovariate(10), 6)
        klass = rng.choice(["chat", "code"])
        if index % 40 == 39:
            records.append(refused(index, at, klass=klass))
            continue
        gaps = tuple(slow * rng.lognormvariate(-4, 0.3) for _ in range(rng.randint(0, 30)))
        ttft = slow * rng.lognormvariate(-1.5, 0.6)
        parts = {"queue_ms": ttft * 300, "prefill_ms": ttft * 700, "decode_ms": sum(gaps) * 1000}
        timings = {name: round(value, 3) for name, value in parts.items()}
        records.append(answered(index, at, ttft=ttft, gaps=gaps, klass=klass, timings=timings, cached_tokens=4))
    return run_of(records, **{"objectives": {"default": Objective(ttft=0.3, tpot=0.05)}} | more)


@pytest.fixture
def make():
    """The makers of runs and records."""

    class Makers:
        answered = staticmethod(answered)
        refused = staticmethod(refused)
        run_of = staticmethod(run_of)
        drawn_run = staticmethod(drawn_run)

    return Makers
