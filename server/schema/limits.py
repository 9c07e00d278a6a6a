"""Bounds an operator may set, each with the field it bounds: one table serves the check and the published schema."""

from dataclasses import dataclass
from typing import Literal

from configs.settings import Settings
from server.errors import InvalidRequest
from server.schema.base import Body


@dataclass(frozen=True, slots=True)
class Limit:
    """`field` may be, or hold, at most what the setting says; None is no bound."""

    field: str
    setting: str
    of: Literal["value", "entries"]


LIMITS = (
    Limit("max_tokens", "max_output_tokens", "value"),
    Limit("max_completion_tokens", "max_output_tokens", "value"),
    Limit("max_output_tokens", "max_output_tokens", "value"),
    Limit("n", "max_n", "value"),
    Limit("best_of", "max_n", "value"),
    Limit("logprobs", "max_logprobs", "value"),
    Limit("top_logprobs", "max_logprobs", "value"),
    Limit("prompt_logprobs", "max_logprobs", "value"),
    Limit("prompt", "max_prompts", "entries"),
    Limit("input", "max_inputs", "entries"),
    Limit("documents", "max_inputs", "entries"),
    Limit("text_1", "max_inputs", "entries"),
    Limit("text_2", "max_inputs", "entries"),
    Limit("stop", "max_stop", "entries"),
    Limit("stop_sequences", "max_stop", "entries"),
    Limit("stop_token_ids", "max_stop", "entries"),
    Limit("bad_words", "max_bad_words", "entries"),
    Limit("logit_bias", "max_logit_bias", "entries"),
    Limit("allowed_token_ids", "max_logit_bias", "entries"),
)
# By name: of fields that mean something else in a body that says so (`Body.LIMITED`).
OTHERWISE = {"items": Limit("input", "max_items", "entries")}


def limits_of(body: type[Body]) -> list[Limit]:
    """Those of the fields that a body has."""
    own, names = body.LIMITED, body.names()
    return [OTHERWISE[own[limit.field]] if limit.field in own else limit for limit in LIMITS if limit.field in names]


def check_limits(request: Body, settings: Settings) -> None:
    """Refuse what exceeds an operator's bound.

    Raises:
        InvalidRequest: with the field, the limit and the value.
    """
    for limit in limits_of(type(request)):
        value = getattr(request, limit.field)
        if value is None or isinstance(value, str | bool):
            continue  # absent, a text prompt of /tokenize, or chat's boolean logprobs
        most: int | None = getattr(settings, limit.setting)
        if most is None:
            continue
        size = value if limit.of == "value" else len(value)
        if size > most:
            what = "must be" if limit.of == "value" else "must have"
            unit = "" if limit.of == "value" else " entries"
            raise InvalidRequest(f"`{limit.field}` {what} at most {most}{unit}, got {size}", param=limit.field)
