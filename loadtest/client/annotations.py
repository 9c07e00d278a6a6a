"""Marks a run in Grafana, so that whoever looks at a dashboard sees when the load began and ended.

By its HTTP API (`/api/annotations`): a mark is made when the run begins, and becomes a region when it ends. What goes wrong with it
is said on stderr, and never costs the run.
"""

import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx

TAG = "headrace-loadtest"  # by which the dashboards find the marks
_PATIENCE = 5.0  # seconds; the load waits so long at most before it begins


@dataclass(frozen=True, slots=True)
class Grafana:
    """Where marks go. `url` may hold `user:password@`; `token` is that of a service account with the role Editor."""

    url: str
    token: str | None = None

    def client(self) -> httpx.AsyncClient:
        """A client that is allowed to mark."""
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        return httpx.AsyncClient(base_url=self.url.rstrip("/"), headers=headers, timeout=_PATIENCE)


@dataclass(slots=True)
class Mark:
    """The mark of one run. `outcome` is added to its text at the end."""

    outcome: str = ""


@asynccontextmanager
async def marked(grafana: Grafana | None, text: str) -> AsyncIterator[Mark]:
    """Mark the time that the block takes, if there is a Grafana. Raises nothing on its account."""
    mark = Mark()
    if grafana is None:
        yield mark
        return
    async with grafana.client() as client:
        body = {"text": text, "tags": [TAG, "running"], "time": _now()}
        begun = await _said(client, "POST", "/api/annotations", body)
        try:
            yield mark
        finally:
            if begun is not None and "id" in begun:
                body = {"text": f"{text}: {mark.outcome}" if mark.outcome else text, "tags": [TAG], "timeEnd": _now()}
                await _said(client, "PATCH", f"/api/annotations/{begun['id']}", body)


async def _said(client: httpx.AsyncClient, method: str, path: str, body: dict[str, Any]) -> dict[str, Any] | None:
    """What Grafana answers; None if it is no answer, and stderr says why."""
    try:
        answer = await client.request(method, path, json=body)
        answer.raise_for_status()
        said = answer.json()
    except httpx.HTTPStatusError as error:  # its own text has the URL, which may hold a password
        problem = f"HTTP {error.response.status_code}"
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        problem = type(error).__name__
    else:
        return said if isinstance(said, dict) else None
    print(f"The run is not marked in Grafana: {method} {path}: {problem}", file=sys.stderr)
    return None


def _now() -> int:
    return round(1000 * time.time())
