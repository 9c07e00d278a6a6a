"""Knobs of what the server says about its requests: the log of requests, the black box, traces, the canary.

They are declared as those of `configs/declaration.py` are.
"""

import os
from collections.abc import Mapping
from typing import Literal

from pydantic import Field
from pydantic.config import JsonDict

from configs.declaration import Text
from configs.http_declaration import HttpDeclaration

WATCHING: JsonDict = {"section": "watching"}
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


class Observability(HttpDeclaration):
    """These, after the others."""

    log_format: Literal["text", "json"] = Field(
        "text",
        description="Form of all lines of the log, of the server and of its engines: text, or a JSON object a line.",
        json_schema_extra=WATCHING,
    )
    canary: float = Field(
        0.0,
        ge=0,
        le=10080,
        description="Minutes between two checks by the canary: a fixed greedy prompt, whose tokens must stay those of the start, "
        "with its KV computed, found, loaded from a tier and handed over. 0: none.",
        json_schema_extra=WATCHING,
    )
    log_content: bool = Field(
        False,
        description="Write prompts and answers into the lines of the access log, and into traces. Without it no word of them is.",
        json_schema_extra=WATCHING,
    )
    log_blocks: bool = Field(
        False,
        description="Write salted hashes of a prompt's blocks of 32 tokens, and of its session (`x-session-id`), into its line of "
        "the access log, so that a trace made of it shares what the prompts shared. They tell no word, and nothing across starts.",
        json_schema_extra=WATCHING,
    )
    otlp_endpoint: Text | None = Field(
        None,
        description="Where traces are sent by OTLP over HTTP, as in `http://127.0.0.1:4318`. If absent, the standard's variables "
        "say so (`OTEL_EXPORTER_OTLP_ENDPOINT`), and without them there are no traces. Needs the extra `tracing`.",
        json_schema_extra=WATCHING,
    )
    trace_ratio: float = Field(
        1.0,
        ge=0,
        le=1,
        description="Share of requests that are traced, of those whose client does not say by its `traceparent` whether they are.",
        json_schema_extra=WATCHING,
    )
    black_box_requests: int = Field(
        256,
        ge=0,
        le=65536,
        description="Latest requests that `GET /v1/requests/{id}` can explain, or fewer if they take more than 32 MiB. 0: none.",
        json_schema_extra=WATCHING,
    )

    def traced_by(self, environment: Mapping[str, str] = os.environ) -> str | None:
        """What asks for traces: the knob, or a variable of the standard; None if nothing does, or the standard's switch is off."""
        if environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
            return None
        if self.otlp_endpoint is not None:
            return "otlp_endpoint"
        return next((name for name in _ENDPOINTS if environment.get(name)), None)
