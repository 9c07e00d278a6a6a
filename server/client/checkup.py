"""`headrace doctor --url`: whether a running server does what it is there for, asked as any client would ask it."""

import time
from collections.abc import Callable, Iterator
from email.utils import parsedate_to_datetime
from importlib.metadata import version
from typing import Any

from server.client.api import Api, AskError
from server.telemetry.doctor import Finding, lines_of

PATIENCE_SECONDS = 60.0  # for the one token, say behind a queue
_SKEW_SECONDS = 5.0  # the header `Date` has whole seconds
_SERVING = "serving"


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
    return [reached, *_clock(date, clock), *_version(api), *state, *_engines(api), *models]


def verdict_of(findings: list[Finding]) -> str:
    """The findings as lines, and what is wrong."""
    wrong = [finding.subject for finding in findings if finding.lost]
    return f"{lines_of(findings)}\n\n" + (f"Something is wrong: {', '.join(wrong)}." if wrong else "It serves.")


def _clock(date: str | None, clock: Callable[[], float]) -> Iterator[Finding]:
    if date is None:
        return
    ahead = parsedate_to_datetime(date).timestamp() - clock()
    if abs(ahead) <= _SKEW_SECONDS:
        yield Finding("clock", "as this machine's")
        return
    detail = f"{abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} this machine's"
    yield Finding(
        "clock", detail, "times in logs, metrics and traces that can be compared; one of the two clocks is wrong"
    )


def _version(api: Api) -> Iterator[Finding]:
    try:
        found = str(_json(api, "/version").get("version"))
    except AskError:
        yield Finding("version", "it does not say: it is not headrace, or an old one")
        return
    own = version("headrace")
    yield Finding("version", found if found == own else f"{found}; here {own} is installed")


def _state(api: Api, path: str, lost: str) -> Iterator[Finding]:
    """`/ready` or `/health`, in their own words."""
    try:
        said = _json(api, path)
    except AskError as error:
        if error.status not in (401, 404):  # without a key the models say so; 404: of another kind of server
            yield Finding(path, str(error), lost, fatal=True)
        return
    doing = f", {said['doing']}; {said['steps']} steps so far" if "steps" in said else ""
    yield Finding(path, f"{said.get('status', 'yes')}{doing}")


def _engines(api: Api) -> Iterator[Finding]:
    try:
        engines = _json(api, "/v1/engines").get("data", [])
    except AskError as error:
        if error.status in (401, 403):
            yield Finding("engines", f"not shown: {error}")
        return
    for engine in engines:
        state, trouble = engine.get("state"), engine.get("trouble")
        detail = f"{state}: {trouble}" if trouble else str(state)
        lost = "" if state == "ready" and not trouble else "what this engine would serve"
        yield Finding(str(engine.get("id") or engine.get("name") or "engine"), detail, lost)


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
        answer = api.request("POST", "/v1/completions", body).json()
        tokens, timings = answer["usage"]["completion_tokens"], answer.get("timings") or {}
    except AskError as error:
        return Finding("one token", str(error), _SERVING, fatal=True)
    except (ValueError, KeyError, TypeError):
        return Finding("one token", "the answer is none of a completion", _SERVING, fatal=True)
    took = f"{tokens} after {1000 * (time.monotonic() - begun):.0f} ms"
    waited = f", of which {timings['queue_ms']:.0f} ms in the queue" if "queue_ms" in timings else ""
    return Finding("one token", took + waited)


def _json(api: Api, path: str) -> dict[str, Any]:
    """The object at a path; an empty one if it is none."""
    try:
        said = api.request("GET", path).json()
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}
