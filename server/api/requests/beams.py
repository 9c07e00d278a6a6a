"""`use_beam_search`: what may be asked beside it, and what the engine is told.

None of the first stands in the published schemas: with one more alternative, schemathesis finds no way through that of a chat.
"""

import json
from typing import Any

from pydantic import BaseModel

from scheduler.types.beams import BeamParams, EarlyStopping
from server.errors import InvalidRequest, UnsupportedField
from server.schema.sampling import Sampling
from server.schema.shown import shown

# What may not be asked beside a search, with the values that ask for nothing: it finds the likeliest texts by the model's own
# distribution, and knows them at its end.
_BESIDE: dict[str, tuple[Any, ...]] = {
    "stream": (False,),
    "stop": ([],),
    "temperature": (0, 1),
    "top_p": (1,),
    "top_k": (0, -1),
    "min_p": (0,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (1,),
    "logit_bias": ({},),
    "bad_words": ([],),
    "allowed_token_ids": ([],),
    "response_format": ({"type": "text"},),
    "structured_outputs": (),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "tools": ([],),
    "functions": ([],),
    "thinking_token_budget": (),
}
_OWN: dict[str, Any] = {"length_penalty": 1, "early_stopping": False}
_STOPS: dict[bool | str, EarlyStopping] = {True: "always", False: "likely", "never": "never"}


def check_beams(body: Sampling) -> None:
    """Refuse what a search does not heed, or what only a search heeds.

    Raises:
        UnsupportedField: a field beside it that would change nothing.
        InvalidRequest: it is to generate nothing, or there is none.
    """
    if not body.use_beam_search:
        for field, neutral in _OWN.items():
            if (value := getattr(body, field)) != neutral:
                message = f"`{field}` needs `use_beam_search` to be true, got {shown(value)} without"
                raise InvalidRequest(message, param=field)
        return
    for field, neutral in _BESIDE.items():
        value = _plain(getattr(body, field, None))
        if value is not None and value not in neutral:
            allowed = " or ".join(map(json.dumps, neutral)) or "absent"
            message = f"`{field}` must be {allowed} with `use_beam_search`, got {shown(value)}"
            raise UnsupportedField(message, param=field)
    for field in ("max_tokens", "max_completion_tokens"):
        if getattr(body, field, None) == 0:
            raise InvalidRequest(f"`{field}` must be at least 1 with `use_beam_search`, got 0", param=field)


def _plain(value: Any) -> Any:
    """An object of a body as the client wrote it."""
    return value.model_dump(by_alias=True, exclude_unset=True) if isinstance(value, BaseModel) else value


def beams_of(body: Sampling, group: str, choice: int) -> BeamParams | None:
    """What one choice of a prompt is told of the search, whose `group` is the prompt's own; None if there is none."""
    if not body.use_beam_search:
        return None
    return BeamParams(
        group=group,
        rank=choice,
        answers=body.n,
        width=body.beams,
        length_penalty=body.length_penalty,
        early_stopping=_STOPS[body.early_stopping],
    )
