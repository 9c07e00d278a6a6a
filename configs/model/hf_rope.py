"""Rotary settings of a `config.json`, in both forms: `rope_theta` with `rope_scaling`, and `rope_parameters` (transformers 5).

A file that several tools have written may hold them twice, in both forms or in two spellings of one key. Where the copies agree
they are read as transformers does; where they do not, nobody can know which is meant, and a refusal names the keys.
"""

import logging
import math
from typing import Any

from configs.model.config import LinearScaling, Llama3Scaling, RopeScaling, YarnScaling
from configs.model.fields import Fields
from configs.model.source import ModelError

log = logging.getLogger("headrace.engine")

_WHERE = "config.json"
_FORMS = ("rope_parameters", "rope_scaling")
_ALWAYS = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
_LENGTH = "original_max_position_embeddings"
_READ = {  # by type, beside what all of them read
    "default": set[str](),
    "linear": {"factor"},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor", _LENGTH},
    "yarn": {"factor", _LENGTH, "beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim", "truncate"},
}
_THETA = 10000.0  # where a file gives none

Rotation = tuple[float, RopeScaling | None]  # base of the frequencies, and what is done to them


def read_rope(fields: Fields, max_position: int) -> Rotation:
    """The rotary settings of a file whose `max_position_embeddings` is `max_position`.

    Raises:
        ModelError: settings that contradict each other, that are not implemented, or that lack a value.
    """
    given = {form: fields.values[form] for form in _FORMS if fields.values.get(form)}
    found = {form: _rotation(fields, form, raw, max_position) for form, raw in given.items()}
    if len(set(found.values())) > 1:
        raise _contradiction(given)
    return next(iter(found.values()), (fields.number("rope_theta", _THETA), None))


def read_rotary_dim(fields: Fields, default: float | None, head_dim: int) -> int | None:
    """How many dimensions of each head a file says are rotated; None: all.

    Args:
        fields: of the file, after `read_rope`.
        default: the rotated part where the file does not say it; None: its class reads no such factor.
        head_dim: dimensions of a head.

    Raises:
        ModelError: factors that contradict each other, or that the class does not read.
    """
    places = {"partial_rotary_factor": fields}
    places |= {
        f"{form}.partial_rotary_factor": Fields(fields.values[form], f"{_WHERE} {form}")
        for form in _FORMS
        if fields.values.get(form)
    }
    _agree({key: place.values.get("partial_rotary_factor") for key, place in places.items()})
    if default is None:
        for place in places.values():
            place.must_be("partial_rotary_factor", 1)
        return None
    factors = [
        place.number("partial_rotary_factor")
        for place in places.values()
        if place.value("partial_rotary_factor") is not None
    ]
    rotary_dim = int(head_dim * (factors[0] if factors else default))
    return None if rotary_dim == head_dim else rotary_dim


def _rotation(fields: Fields, form: str, raw: Any, max_position: int) -> Rotation:
    if not isinstance(raw, dict):
        raise ModelError(f"{_WHERE}: {form} is {raw!r}, not an object.")
    if any(isinstance(value, dict) for value in raw.values()):
        raise ModelError(f"{_WHERE}: {form} has settings per layer type, which are not implemented.")
    rope = Fields(raw, f"{_WHERE} {form}")
    for key in ("rope_theta", _LENGTH):
        _agree({f"{form}.{key}": raw.get(key), key: fields.values.get(key)})
    _agree({f"{form}.{key}": raw.get(key) for key in ("rope_type", "type")})
    kind = rope.text("rope_type", rope.text("type", "default"))
    if kind not in _READ:
        raise ModelError(f"{_WHERE}: {form}: the type {kind!r} is not implemented; known: {', '.join(_READ)}.")
    unread = {key for key, value in raw.items() if value is not None} - _ALWAYS - _READ[kind]
    if unread:
        log.warning("%s: %s: the type %r does not read %s", _WHERE, form, kind, ", ".join(sorted(unread)))
    return rope.number("rope_theta", fields.number("rope_theta", _THETA)), _scaling(kind, rope, fields, max_position)


def _agree(values: dict[str, Any]) -> None:
    """Refuse different values of one setting, given by their keys; null is no value."""
    given = {key: value for key, value in values.items() if value is not None}
    if any(value != other for value in given.values() for other in given.values()):
        raise _contradiction(given)


def _contradiction(given: dict[str, Any]) -> ModelError:
    said = " and ".join(f"{key}={value!r}" for key, value in given.items())
    return ModelError(f"{_WHERE}: {said} contradict each other; remove what is not meant.")


def _scaling(kind: str, rope: Fields, fields: Fields, max_position: int) -> RopeScaling | None:
    original = rope.integer(_LENGTH, fields.integer(_LENGTH, max_position))
    if kind == "linear":
        return LinearScaling(rope.number("factor"))
    if kind == "llama3":
        low, high = rope.number("low_freq_factor"), rope.number("high_freq_factor")
        return Llama3Scaling(rope.number("factor"), low, high, original)
    return _yarn(rope, original, max_position) if kind == "yarn" else None


def _yarn(rope: Fields, original: int, max_position: int) -> YarnScaling:
    factor = rope.number("factor", max_position / max(1, original))
    mscale, mscale_all = rope.number("mscale", 0.0), rope.number("mscale_all_dim", 0.0)
    default = yarn_magnitude(factor)
    if mscale and mscale_all:
        default = yarn_magnitude(factor, mscale) / yarn_magnitude(factor, mscale_all)
    return YarnScaling(
        factor=factor,
        original_max_position=original,
        beta_fast=rope.number("beta_fast", 32.0) or 32.0,
        beta_slow=rope.number("beta_slow", 1.0) or 1.0,
        attention_factor=rope.number("attention_factor", default),
        truncate="truncate" not in rope.values
        or rope.flag("truncate", default=False),  # null is false, as in transformers
    )


def yarn_magnitude(factor: float, mscale: float = 1.0) -> float:
    """YaRN's correction of the attention temperature, applied to cos and sin (arXiv 2309.00071, section 3.4)."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0
