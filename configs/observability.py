"""Knobs of what the server says about its requests: the log of requests, the black box, traces, the canary.

They are declared as those of `configs/declaration.py` are.
"""

from typing import Literal

from pydantic import Field
from pydantic.config import JsonDict

from configs.http_declaration import HttpDeclaration

WATCHING: JsonDict = {"section": "watching"}


class Observability(HttpDeclaration):
    """All knobs, each valid by itself."""

    log_format: Literal["text", "json"] = Field(
        "text",
        description="Form of all lines of the log, of the server and of its engines: text, or a JSON object a line.",
        json_schema_extra=WATCHING,
    )
    log_content: bool = Field(
        False,
        description="Write prompts and answers into the lines of the access log, and into traces. Without it no word of them is.",
        json_schema_extra=WATCHING,
    )
    black_box_requests: int = Field(
        256,
        ge=0,
        le=65536,
        description="Latest requests that `GET /v1/requests/{id}` can explain. 0: none.",
        json_schema_extra=WATCHING,
    )
