"""`GET /v1/usage`: what keys have used, by hour or day. A key sees its own; an admin's sees all."""

import base64
import binascii
import json
import re
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

from starlette.datastructures import QueryParams

from server.api.endpoint import Call, GetEndpoint
from server.api.requests.query import parameter, whole_number
from server.api.tenants import administers, ensure_administers
from server.errors import InvalidRequest, NotFound
from server.keys.usage import HOUR
from server.keys.usage_store import Row, UsageQuery
from server.schema.shown import shown
from server.schema.usage import UsagePage, UsageRow

BUCKETS = {"hour": HOUR, "day": 24 * HOUR}
MOST_ROWS = 1000
_PARAMETERS = ("start", "end", "bucket", "limit", "page", "key", "model")
_DEFAULT_DAYS = 7
_LATEST = 2**40  # seconds; a row behind it would be in the year 36812


async def _usage(call: Call) -> UsagePage:
    accounts, tenant = call.context.accounts, call.tenant
    if accounts is None:
        raise NotFound("What keys use is not counted; start with --api-keys, or with --api-key and --usage-db.")
    query = query_of(call.request.query_params, time.time())
    if not administers(tenant, call.context.settings):
        if query.key not in (None, tenant.key):
            ensure_administers(tenant, call.context.settings, "see the use of other keys")
        query = replace(query, key=tenant.key)
    rows = await accounts.book.read(query)
    shown_rows = rows[: query.most - 1]
    more = len(rows) > len(shown_rows)
    return UsagePage(
        data=[_row(row, query.bucket) for row in shown_rows],
        has_more=more,
        next_page=_page(shown_rows[-1]) if more else None,
    )


def query_of(given: QueryParams, now: float) -> UsageQuery:
    """What the parameters ask for: one row more than are shown.

    Args:
        given: of the request.
        now: Unix seconds.

    Raises:
        InvalidRequest: names the parameter, what it must be, and the value.
    """
    for name in given:
        if name not in _PARAMETERS:
            known = ", ".join(f"`{known}`" for known in _PARAMETERS)
            raise InvalidRequest(f"unknown parameter {shown(name)}; known are {known}", param=name[:100])
        if len(given.getlist(name)) > 1:
            raise InvalidRequest(f"`{name}` must be given once, got it {len(given.getlist(name))} times", param=name)
    word = given.get("bucket", "day")
    if word not in BUCKETS:
        raise InvalidRequest(f"`bucket` must be hour or day, got {shown(word)}", param="bucket")
    bucket = BUCKETS[word]
    end = _moment("end", given["end"]) if "end" in given else int(now) + 1
    start = _moment("start", given["start"]) if "start" in given else max(0, end - _DEFAULT_DAYS * BUCKETS["day"])
    if start >= end:
        raise InvalidRequest(f"`start` must be before `end` ({end}), got {start}", param="start")
    return UsageQuery(
        start=start // bucket * bucket,
        end=end,
        bucket=bucket,
        most=whole_number(given, "limit", 100, MOST_ROWS) + 1,
        key=given.get("key"),
        model=given.get("model"),
        after=_after(given["page"]) if "page" in given else None,
    )


def _moment(name: str, text: str) -> int:
    """Unix seconds, also of a date or a time as ISO 8601 writes it; without a zone it is UTC."""
    if re.fullmatch(r"[0-9]{1,13}", text) and int(text) <= _LATEST:
        return int(text)
    try:
        moment = datetime.fromisoformat(text.replace(" ", "+"))  # a plus in an address stands for a space
    except ValueError:
        what = "must be Unix seconds, or a date or time as in 2027-01-31 or 2027-01-31T12:00:00Z"
        raise InvalidRequest(f"`{name}` {what}, got {shown(text)}", param=name) from None
    return max(0, int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()))


def _page(row: Row) -> str:
    return base64.urlsafe_b64encode(json.dumps(row[:3]).encode()).decode()


def _after(page: str) -> tuple[int, str, str]:
    try:
        match json.loads(base64.b64decode(page, b"-_", validate=True)):
            case [int(hour), str(key), str(model)] if 0 <= hour <= _LATEST:
                (key + model).encode()  # half a surrogate pair is no text
                return hour, key, model
    except (binascii.Error, ValueError, RecursionError):
        pass
    raise InvalidRequest(f"`page` must be the `next_page` of an answer, got {shown(page)}", param="page")


def _row(row: Sequence[int | str], bucket: int) -> UsageRow:
    start, key, model, requests, errors, limited, prompt, cached, completion = row
    return UsageRow.model_validate(
        {
            "start_time": start,
            "end_time": int(start) + bucket,
            "key": key,
            "model": model or None,
            "requests": requests,
            "errors": errors,
            "limited": limited,
            "prompt_tokens": prompt,
            "cached_tokens": cached,
            "completion_tokens": completion,
        }
    )


ENDPOINT = GetEndpoint(
    path="/v1/usage",
    tag="accounts",
    summary="What keys have used, by hour or day, key and model: a key's own, with an admin's key everybody's",
    answer=_usage,
    answers=UsagePage,
    errors=(400, 401, 403, 404),
    parameters=(
        parameter("start", "Unix seconds or ISO 8601; 7 days before `end` if absent.", type="string"),
        parameter("end", "The same, exclusive; now if absent.", type="string"),
        parameter("bucket", "What a row stands for, in UTC; `day` if absent.", type="string", enum=list(BUCKETS)),
        parameter("limit", "Rows of a page; 100 if absent.", type="integer", minimum=1, maximum=MOST_ROWS),
        parameter("page", "`next_page` of the page before.", type="string"),
        parameter("key", "This key alone, by its name.", type="string"),
        parameter("model", "This model alone.", type="string"),
    ),
)
