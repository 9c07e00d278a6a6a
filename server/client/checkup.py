"""`headrace doctor --url`: whether a running server does what it is there for, asked as any client would ask it."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from email.utils import parsedate_to_datetime
from importlib.metadata import version
from typing import TypeVar

from server.client.answers import ToldCompletion, ToldEngines, ToldState, ToldVersion
from server.client.api import Api, AskError, printable
from server.telemetry.doctor import Finding, lines_of

PATIENCE_SECONDS = 60.0  # for the one token, say behind a queue
_SKEW_SECONDS = 5.0  # the header `Date` has whole seconds
_SERVING = "serving"
_Told = TypeVar("_Told")


def examine_server(api: Api, clock: Callable[[], float] = time.time) -> list[Finding]:
    """Ask it. Costs the server one token.

    Args:
        api: the server.
        clock: this machine's, in seconds since 1970.
    """
    begun, date = time.monotonic(), None
    try:
        date = api.request("GET", "/live").headers.get("date")
    except AskError as error:
        if error.status is None:
            return [Finding("reached", str(error), "everything", fatal=True)]
    reached = Finding("reached", f"{api.url}, {1000 * (time.monotonic() - begun):.0f} ms")
    models = list(_models(api))
    state = [*_state(api, "/ready", "requests"), *_state(api, "/health", "answers, until the engine goes on")]
    findings = [reached, *_clock(date, clock), *_version(api), *state, *_engines(api), *models]
    return [replace(each, subject=_line(each.subject), detail=_line(each.detail)) for each in findings]


def verdict_of(findings: list[Finding]) -> str:
    """The findings as lines, and what is wrong."""
    wrong = [finding.subject for finding in findings if finding.lost]
    return f"{lines_of(findings)}\n\n" + (f"Something is wrong: {', '.join(wrong)}." if wrong else "It serves.")


def _clock(date: str | None, clock: Callable[[], float]) -> Iterator[Finding]:
    if date is None:
        return
    try:
        ahead = parsedate_to_datetime(date).timestamp() - clock()
    except (ValueError, OverflowError):
        yield Finding("clock", f"its header Date is none: {date}", "times that can be compared")
        return
    if abs(ahead) <= _SKEW_SECONDS:
        yield Finding("clock", "as this machine's")
        return
    detail = f"{abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} this machine's"
    yield Finding(
        "clock", detail, "times in logs, metrics and traces that can be compared; one of the two clocks is wrong"
    )


def _version(api: Api) -> Iterator[Finding]:
    try:
        found = str(_told(api, "/version", ToldVersion()).version)
    except AskError:
        yield Finding("version", "it does not say: it is not headrace, or an old one")
        return
    own = version("headrace")
    yield Finding("version", found if found == own else f"{found}; here {own} is installed")


def _state(api: Api, path: str, lost: str) -> Iterator[Finding]:
    """`/ready` or `/health`, in their own words."""
    try:
        said = _told(api, path, ToldState())
    except AskError as error:
        if error.status not in (401, 404):  # without a key the models say so; 404: of another kind of server
            yield Finding(path, str(error), lost, fatal=True)
        return
    doing = "" if said.steps is None else f", {said.doing}; {said.steps} steps so far"
    yield Finding(path, f"{said.status or 'yes'}{doing}")


def _engines(api: Api) -> Iterator[Finding]:
    try:
        engines = _told(api, "/v1/engines", ToldEngines([])).data
    except AskError as error:
        if error.status in (401, 403):
            yield Finding("engines", f"not shown: {error}")
        return
    for engine in engines:
        detail = f"{engine.state}: {engine.trouble}" if engine.trouble else str(engine.state)
        lost = "" if engine.state == "ready" and not engine.trouble else "what this engine would serve"
        yield Finding(engine.id, detail, lost)


def _models(api: Api) -> Iterator[Finding]:
    try:
        models = api.models()
    except AskError as error:
        yield Finding("models", str(error), "all that needs a key" if error.status == 401 else _SERVING, fatal=True)
        return
    if not models:
        yield Finding("models", "none", _SERVING, fatal=True)
    for model in models:
        yield Finding("model", model)
        yield _one_token(api, model)


def _one_token(api: Api, model: str) -> Finding:
    body = {"model": model, "prompt": "The", "max_tokens": 1, "temperature": 0}
    begun = time.monotonic()
    try:
        answer = api.read("/v1/completions", ToldCompletion, body)
    except AskError as error:
        return Finding("one token", str(error), _SERVING, fatal=True)
    except TypeError:
        return Finding("one token", "the answer is none of a completion", _SERVING, fatal=True)
    took = f"{answer.usage.completion_tokens} after {1000 * (time.monotonic() - begun):.0f} ms"
    queued = answer.timings and answer.timings.queue_ms
    return Finding("one token", took if queued is None else f"{took}, of which {queued:.0f} ms in the queue")


def _told(api: Api, path: str, nothing: _Told) -> _Told:
    """What a path says; `nothing` if that is of another kind."""
    try:
        return api.read(path, type(nothing))
    except TypeError:
        return nothing


def _line(text: str) -> str:
    return printable(text).replace("\n", " ")
