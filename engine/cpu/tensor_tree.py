"""Dataclasses of tensors, as bytes that name where each tensor lies: JSON, as nothing here unpickles.

A tensor is `{"spot": [start, type, shape]}`, a dataclass `{"class": its name, "fields": {..}}`, a mapping `{"items": {..}}`;
lists, numbers, texts and None are JSON's own. What reads it is told which classes there may be.
"""

import json
import mmap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Spot(NamedTuple):
    """Where a tensor lies; `dtype` is the name of a type of torch's."""

    start: int
    dtype: str
    shape: tuple[int, ...]

    @classmethod
    def of(cls, tensor: Tensor, start: int) -> "Spot":
        """The spot of such a tensor."""
        return cls(start, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))


def tensor_at(memory: mmap.mmap, spot: Spot) -> Tensor:
    """The tensor that lies there; a view of the memory.

    Raises:
        ValueError: torch has no such type, or the memory ends before it does.
    """
    dtype = getattr(torch, spot.dtype, None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"torch has no type {spot.dtype!r}")
    count = torch.Size(spot.shape).numel()
    return torch.frombuffer(memory, dtype=dtype, count=count, offset=spot.start).view(spot.shape)


def map_tensors(value: Any, function: Callable[[Any], Any], *, of: type = Tensor) -> Any:
    """The same of dataclasses, mappings and lists, with `function` of each tensor in place of it (of each `of`, if it is given)."""
    if isinstance(value, of):
        return function(value)
    if is_dataclass(value) and not isinstance(value, type):
        return type(value)(
            **{each.name: map_tensors(getattr(value, each.name), function, of=of) for each in fields(value)}
        )
    if isinstance(value, Mapping):
        return {name: map_tensors(each, function, of=of) for name, each in value.items()}
    if isinstance(value, list):
        return [map_tensors(each, function, of=of) for each in value]
    return value


def tensors_of(value: object) -> list[Tensor]:
    """All tensors in it."""
    found: list[Tensor] = []
    map_tensors(value, found.append)
    return found


def encode(value: object, spot_of: Callable[[Tensor], Spot]) -> bytes:
    """The structure of a value as bytes.

    Args:
        value: of dataclasses, mappings, lists, tensors, numbers, texts and None.
        spot_of: says where a tensor lies, and sees to it that it does.

    Raises:
        TypeError: it holds something else.
    """
    return json.dumps(_plain(value, spot_of), separators=(",", ":")).encode()


def decode(data: bytes, classes: Mapping[str, type], memory: mmap.mmap) -> Any:
    """The value of these bytes, with tensors that are views of the memory. What was one tensor is one again, and so is a dataclass.

    Raises:
        ValueError: it is not such a structure, or names a class that is not among these.
    """
    return _Reader(classes, memory).read(json.loads(data))


def _plain(value: object, spot_of: Callable[[Tensor], Spot]) -> Any:
    match value:
        case None | bool() | int() | float() | str():
            return value
        case Tensor():
            return {"spot": spot_of(value)}
        case list():
            return [_plain(each, spot_of) for each in value]
        case Mapping():
            return {"items": {name: _plain(each, spot_of) for name, each in value.items()}}
    if is_dataclass(value) and not isinstance(value, type):
        plain = {each.name: _plain(getattr(value, each.name), spot_of) for each in fields(value)}
        return {"class": type(value).__name__, "fields": plain}
    raise TypeError(f"a {type(value).__name__} is neither a dataclass nor a tensor, list, mapping, number or text")


@dataclass(slots=True)
class _Reader:
    classes: Mapping[str, type]
    memory: mmap.mmap
    tensors: dict[Spot, Tensor]
    objects: dict[str, Any]

    def __init__(self, classes: Mapping[str, type], memory: mmap.mmap) -> None:
        self.classes, self.memory, self.tensors, self.objects = classes, memory, {}, {}

    def read(self, plain: Any) -> Any:
        match plain:
            case list():
                return [self.read(each) for each in plain]
            case {"spot": [int(start), str(dtype), list(shape)]}:
                spot = Spot(start, dtype, tuple(shape))
                if spot not in self.tensors:
                    self.tensors[spot] = tensor_at(self.memory, spot)
                return self.tensors[spot]
            case {"items": dict(items)}:
                return {name: self.read(each) for name, each in items.items()}
            case {"class": str(name), "fields": dict(values)}:
                return self._object(name, values)
            case dict():
                raise ValueError(f"not a part of a structure of tensors: {sorted(plain)}")
        return plain

    def _object(self, name: str, values: dict[str, Any]) -> Any:
        if name not in self.classes:
            raise ValueError(
                f"a structure of tensors names the class {name!r}, which is none of {sorted(self.classes)}"
            )
        key = json.dumps([name, values])
        if key not in self.objects:
            self.objects[key] = self.classes[name](**{field: self.read(each) for field, each in values.items()})
        return self.objects[key]
