"""`use_beam_search`: what may be asked beside it, and what the engine is told."""

import json
from typing import Any

from pydantic import BaseModel

from scheduler.types.beams import BeamParams, EarlyStopping
from server.errors import InvalidRequest, UnsupportedField
from server.schema.beams import BESIDE, OWN
from server.schema.sampling import Sampling
from server.schema.shown import shown

_STOPS: dict[bool | str, EarlyStopping] = {True: "always", False: "likely", "never": "never"}


def check_beams(body: Sampling) -> None:
    """Refuse what a search does not heed, or what only a search heeds.

    Raises:
        UnsupportedField: a field beside it that would change nothing.
        InvalidRequest: it is to generate nothing, or there is none.
    """
    if not body.use_beam_search:
        for field, neutral in OWN.items():
            if (value := getattr(body, field)) != neutral:
                message = f"`{field}` needs `use_beam_search` to be true, got {shown(value)} without"
                raise InvalidRequest(message, param=field)
        return
    for field, neutral in BESIDE.items():
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
