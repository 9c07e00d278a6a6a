"""Knobs of what the server says about its requests: the log of requests, the black box, traces, the canary.

They are declared as those of `configs/declaration.py` are.
"""

from pydantic import Field
from pydantic.config import JsonDict

from configs.http_declaration import HttpDeclaration

WATCHING: JsonDict = {"section": "watching"}


class Observability(HttpDeclaration):
    """All knobs, each valid by itself."""

    black_box_requests: int = Field(
        256,
        ge=0,
        le=65536,
        description="Latest requests that `GET /v1/requests/{id}` can explain. 0: none.",
        json_schema_extra=WATCHING,
    )
