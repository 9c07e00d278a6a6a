"""A plugin for openai-python's own API tests, which are written for a mock that takes anything: it gives them what is really there.

Ids and names that they make up are replaced by real ones. What the server refuses of a request (each "with all params" has made-up
values and fields of every service of OpenAI's) is left out, field by field, until it is taken; an endpoint that it does not have
is a test skipped. Both are told at the end, in lines of JSON, so that nothing is left out that is not expected to be.
"""

import functools
import json
import os
import re

import httpx2
import pytest
from openai import APIStatusError, _base_client

BASE = os.environ["TEST_API_BASE_URL"]
MODEL = os.environ["TEST_API_MODEL"]
LINE = {"custom_id": "a", "method": "POST", "url": "/v1/responses", "body": {"input": "a", "max_output_tokens": 16}}
MADE_UP = {
    "file_id": "file",
    "input_file_id": "file",
    "batch_id": "batch",
    "response_id": "response",
    "resp_677efb5139a88190b512bc3fef8e535d": "response",
    "previous_response_id": "response",
    "resp_123": "response",
}
MOST = 40  # fields left out of one request
left_out = set()
kept = {}


def _post(path, **body):
    answer = httpx2.post(f"{BASE}{path}", timeout=300, **body)
    answer.raise_for_status()
    return answer.json()["id"]


def _made(kind, ends=False):
    """A new one, and its id. `ends`: it will be cancelled or deleted."""
    if kind == "response":
        return _post("/responses", json={"input": "a", "max_output_tokens": 16, "background": ends})
    if kind == "batch":
        body = {"input_file_id": _made("file"), "endpoint": "/v1/responses", "completion_window": "24h"}
        return _post("/batches", json=body)
    upload = {"file": ("lines.jsonl", json.dumps(LINE).encode())}
    return _post("/files", files=upload, data={"purpose": "batch"})


def _real(kind, ends):
    """The id of one that is there; a new one where the request is its end."""
    if ends or kind not in kept:
        made = _made(kind, ends)
        if ends:
            return made
        kept[kind] = made
    return kept[kind]


def _with_real_names(options, cast_to):
    if options.url.endswith("/content") and cast_to is not str:  # asked of a mock of their own
        return options
    ends = options.method == "delete" or options.url.endswith("/cancel")
    parts = [_real(MADE_UP[part], ends) if part in MADE_UP else part for part in options.url.split("/")]
    changes = {"url": "/".join(MODEL if part == "gpt-6-astra" else part for part in parts)}
    if isinstance(options.json_data, dict) and not options.files:
        body = {
            name: _real(MADE_UP[value], False) if isinstance(value, str) and value in MADE_UP else value
            for name, value in options.json_data.items()
        }
        if "model" in body:
            body["model"] = MODEL
        if options.url in ("/responses", "/responses/input_tokens"):
            body = {"input": "string"} | body  # the mock does not miss it
        if "tools" in body:  # nor does it mind both forms
            body = {name: value for name, value in body.items() if name not in ("functions", "function_call")}
        changes["json_data"] = body
    return options.model_copy(update=changes)


def _without(fields, path):
    """The JSON without what stands at a path; None if nothing does."""
    first, *others = path
    if isinstance(fields, list) and first.isdigit() and int(first) < len(fields):
        inner = _without(fields[int(first)], others) if others else None
        return [*fields[: int(first)], *([] if inner is None else [inner]), *fields[int(first) + 1 :]]
    if not isinstance(fields, dict) or first not in fields:
        return None
    rest = {name: value for name, value in fields.items() if name != first}
    inner = _without(fields[first], others) if others else None
    return rest if inner is None else {**rest, first: inner}


def _reduced(options, error):
    """The request without the field that was refused; None where that is not the trouble."""
    if error.status_code in (404, 405) and error.code in ("not_found", "method_not_allowed"):
        path = re.sub(r"[a-z]+[-_][\w]{8,}|completion_id|ft:[^/]+", "{id}", options.url)
        pytest.skip(f"not served: {options.method.upper()} {path}")
    if error.status_code != 400 or not error.param:
        return None
    path = re.findall(r"[^.\[\]]+", error.param)
    for name in ("json_data", "params"):
        fields = getattr(options, name)
        less = _without(dict(fields), path) if isinstance(fields, dict) else None
        if less is not None:
            left_out.add((options.url.partition("/")[2].partition("/")[0], error.param, error.code))
            return options.model_copy(update={name: less})
    return None


def _asked(original):
    @functools.wraps(original)
    def request(self, cast_to, options, **more):
        options = _with_real_names(options, cast_to)
        for _ in range(MOST):
            try:
                return original(self, cast_to, options.model_copy(), **more)
            except APIStatusError as error:
                if (less := _reduced(options, error)) is None:
                    raise
                options = less
        raise AssertionError("too much is refused")

    return request


def _asked_async(original):
    @functools.wraps(original)
    async def request(self, cast_to, options, **more):
        options = _with_real_names(options, cast_to)
        for _ in range(MOST):
            try:
                return await original(self, cast_to, options.model_copy(), **more)
            except APIStatusError as error:
                if (less := _reduced(options, error)) is None:
                    raise
                options = less
        raise AssertionError("too much is refused")

    return request


def pytest_configure(config):
    _base_client.SyncAPIClient.request = _asked(_base_client.SyncAPIClient.request)
    _base_client.AsyncAPIClient.request = _asked_async(_base_client.AsyncAPIClient.request)


def pytest_terminal_summary(terminalreporter):
    def told(kind):
        return terminalreporter.stats.get(kind, [])

    skipped = {}
    for report in told("skipped"):
        reason = report.longrepr[2].removeprefix("Skipped: ")
        skipped[reason] = skipped.get(reason, 0) + 1
    failed = [f"{each.nodeid}: {each.longrepr.reprcrash.message[:600]}" for each in [*told("failed"), *told("error")]]
    line = {"passed": len(told("passed")), "skipped": skipped, "failed": failed, "left_out": sorted(left_out)}
    terminalreporter.write_line(json.dumps(line))
