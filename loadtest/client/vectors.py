"""Answers of `/v1/embeddings`: one JSON object with a vector, and no tokens in time."""

from math import isfinite
from typing import Any

from loadtest.client.judge import Expected, Raw, count_of, problem_of
from loadtest.client.streams import json_value
from loadtest.report.records import ErrorClass, RequestRecord


def judge_vector(record: RequestRecord, raw: Raw, expected: Expected) -> None:
    """Complete `record` from the answer's body: a vector of finite numbers, and as many prompt tokens as the prompt has."""
    if record.status is None or record.error is ErrorClass.CONNECT:
        return
    if record.status != 200:
        record.error, record.detail = ErrorClass.STATUS, problem_of(raw.body)
        return
    if record.error is not None:
        return
    answer = json_value(raw.body)
    if vector_of(answer) is None:
        record.error, record.detail = ErrorClass.STREAM, f"no vector: {problem_of(raw.body)}"
        return
    usage = answer.get("usage")
    record.prompt_tokens = count_of(usage.get("prompt_tokens")) if isinstance(usage, dict) else None
    if record.prompt_tokens is None:
        record.violations.append("no usage")
    elif expected.prompt_tokens is not None and record.prompt_tokens != expected.prompt_tokens:
        record.violations.append(
            f"usage counts {record.prompt_tokens} prompt tokens; the prompt has {expected.prompt_tokens}"
        )


def vector_of(answer: Any) -> list[float] | None:
    """The one vector of an answer; None if it has none, several, or one that is empty or not finite."""
    data = answer.get("data") if isinstance(answer, dict) else None
    if not isinstance(data, list) or len(data) != 1 or not isinstance(data[0], dict):
        return None
    vector = data[0].get("embedding")
    if not isinstance(vector, list) or not vector:
        return None
    sound = all(isinstance(each, int | float) and not isinstance(each, bool) and isfinite(each) for each in vector)
    return vector if sound else None
