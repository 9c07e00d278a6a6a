"""Rotary settings of a `config.json`, in both forms: `rope_theta` with `rope_scaling`, and `rope_parameters` (transformers 5).

A file that several tools have written may hold them twice, in both forms or in two spellings of one key. Where the copies agree
they are read as transformers does; where they do not, nobody can know which is meant, and a refusal names the keys.
"""

import logging
import math
from dataclasses import dataclass
from typing import Any

from configs.model.config import LinearScaling, Llama3Scaling, RopeScaling, Rotation, YarnScaling
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
# Of longrope, which early files of Phi-3 call `yarn` or `su`: transformers goes by the class, and the type alone would mislead.
_EACH_FREQUENCY = ("short_factor", "long_factor")
_THETA = 10000.0  # where a file gives none
_LAYER_TYPES = ("full_attention", "sliding_attention")


@dataclass(frozen=True, slots=True)
class WindowRope:
    """How a class rotates layers with a sliding window, if otherwise than the others: nothing scales them.

    Attributes:
        key: of their base of the frequencies; None: no key of old files says it.
        default: the base where a file gives none.
    """

    key: str | None
    default: float


Rotations = tuple[Rotation, Rotation | None]  # of all layers, and what layers with a sliding window have otherwise


def read_rope(fields: Fields, max_position: int, theta: float = _THETA, window: WindowRope | None = None) -> Rotations:
    """The rotary settings of a file whose `max_position_embeddings` is `max_position`.

    Args:
        fields: of the file.
        max_position: where the file does not say what a scaling stretches.
        theta: the base where the file gives none.
        window: of a class that has settings of their own for layers with a sliding window.

    Raises:
        ModelError: settings that contradict each other, that are not implemented, or that lack a value.
    """
    given = {form: fields.values[form] for form in _FORMS if fields.values.get(form)}
    if window is not None and any(_by_layer_type(raw) for raw in given.values()):
        found: dict[str, Rotations] = {
            form: _of_layer_types(fields, form, max_position, theta, window) for form, raw in given.items()
        }
        default: Rotations = (Rotation(theta), Rotation(window.default))
    else:
        sliding = None
        if window is not None:
            sliding = Rotation(fields.number(window.key, window.default) if window.key else window.default)
        found = {form: (_rotation(fields, form, raw, max_position, theta), sliding) for form, raw in given.items()}
        default = (Rotation(fields.number("rope_theta", theta)), sliding)
    if len(set(found.values())) > 1:
        raise _contradiction(given)
    return next(iter(found.values()), default)


def _by_layer_type(raw: Any) -> bool:
    return isinstance(raw, dict) and any(kind in raw for kind in _LAYER_TYPES)


def _of_layer_types(fields: Fields, form: str, max_position: int, theta: float, window: WindowRope) -> Rotations:
    """The settings under `full_attention` and `sliding_attention`, of which either may be left out or null."""
    raw = fields.values[form]
    if not isinstance(raw, dict) or raw.keys() - set(_LAYER_TYPES):
        raise ModelError(f"{_WHERE}: {form} is {raw!r}, not an object with settings for {' and '.join(_LAYER_TYPES)}.")
    full, sliding = (raw.get(kind) or {} for kind in _LAYER_TYPES)
    other = Fields(fields.values, _WHERE, {"rope_theta": window.key or "rope_theta"})
    return (
        _rotation(fields, f"{form}.{_LAYER_TYPES[0]}", full, max_position, theta),
        _rotation(other, f"{form}.{_LAYER_TYPES[1]}", sliding, max_position, window.default),
    )


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


def _rotation(fields: Fields, form: str, raw: Any, max_position: int, theta: float) -> Rotation:
    if not isinstance(raw, dict):
        raise ModelError(f"{_WHERE}: {form} is {raw!r}, not an object.")
    if any(isinstance(value, dict) for value in raw.values()):
        raise ModelError(f"{_WHERE}: {form} has settings per layer type, which are not implemented.")
    rope = Fields(raw, f"{_WHERE} {form}")
    for key in ("rope_theta", _LENGTH):
        _agree({f"{form}.{key}": raw.get(key), fields.key(key): fields.values.get(fields.key(key))})
    _agree({f"{form}.{key}": raw.get(key) for key in ("rope_type", "type")})
    kind = rope.text("rope_type", rope.text("type", "default"))
    if kind not in _READ:
        raise ModelError(f"{_WHERE}: {form}: the type {kind!r} is not implemented; known: {', '.join(_READ)}.")
    if factors := sorted(key for key in _EACH_FREQUENCY if raw.get(key) is not None):
        raise ModelError(
            f"{_WHERE}: {form}: {' and '.join(factors)} for each frequency are not implemented (longrope)."
        )
    unread = {key for key, value in raw.items() if value is not None} - _ALWAYS - _READ[kind]
    if unread:
        log.warning("%s: %s: the type %r does not read %s", _WHERE, form, kind, ", ".join(sorted(unread)))
    base = rope.number("rope_theta", fields.number("rope_theta", theta))
    return Rotation(base, _scaling(kind, rope, fields, max_position))


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
