"""Typed look-ups in a model's description, so that a damaged file is refused by the name of its key."""

import json
import reprlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from configs.model.source import ModelError

MAX_LAYERS = 4096  # more than any model has; a damaged header must not make a list of millions


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in the file at `path`.

    Raises:
        ModelError: the file is unreadable or does not hold an object.
    """
    content = _parsed(path)
    if not isinstance(content, dict):
        raise ModelError(f"{path} does not hold a JSON object.")
    return content


def read_json_array(path: Path) -> list[Any]:
    """The JSON array in the file at `path`.

    Raises:
        ModelError: the file is unreadable or does not hold an array.
    """
    content = _parsed(path)
    if not isinstance(content, list):
        raise ModelError(f"{path} does not hold a JSON array.")
    return content


def _parsed(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"cannot read {path}: {error}.") from error


class Fields:
    """Typed look-ups in a description. A missing or null value takes the default; without one it is a ModelError.

    Args:
        values: by their keys in the file.
        where: names the file in errors.
        keys: the file's own keys for values that are asked for under other names.
    """

    def __init__(self, values: dict[str, Any], where: str, keys: Mapping[str, str] | None = None) -> None:
        self.values = values
        self._where = where
        self._keys = keys or {}
        self._read = set[str]()  # keys that were looked up

    def key(self, name: str) -> str:
        """What the file calls a value."""
        return self._keys.get(name, name)

    def value(self, key: str, default: Any = None) -> Any:
        """The value of any type: `default` only if the key is missing, so that a null is told from it."""
        self._read.add(self.key(key))
        return self.values.get(self.key(key), default)

    def integer(self, key: str, default: int | None = None) -> int:
        """A whole number."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not abs(value) < 2**64:
            raise ModelError(f"{self._where}: {self.key(key)} is {reprlib.repr(value)}, not a whole number of 64 bits.")
        return value

    def layers(self, key: str) -> int:
        """A number of layers, small enough to make a list of."""
        count = self.integer(key)
        if not 1 <= count <= MAX_LAYERS:
            raise ModelError(f"{self._where}: {self.key(key)} is {count}; it must be between 1 and {MAX_LAYERS}.")
        return count

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
            raise ModelError(f"{self._where}: {self.key(key)} is {value!r}, not a finite number.")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise ModelError(f"{self._where}: {self.key(key)} is {value!r}, not true or false.")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        """A string."""
        value = self._get(key, default)
        if not isinstance(value, str):
            raise ModelError(f"{self._where}: {self.key(key)} is {value!r}, not a string.")
        return value

    def tokens(self, key: str) -> tuple[int, ...]:
        """One token id, several, or none."""
        value = self.value(key)
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if any(isinstance(token, bool) or not isinstance(token, int) for token in ids):
            raise ModelError(f"{self._where}: {self.key(key)} is {value!r}, not a token id or a list of them.")
        return tuple(dict.fromkeys(ids))

    def must_be(self, key: str, *accepted: Any) -> None:
        """Refuse a feature that is not implemented: an absent or null value is fine, else one of `accepted`."""
        value = self.value(key)
        if value is not None and value not in accepted:
            raise ModelError(
                f"{self._where}: {self.key(key)}={value!r} is not implemented; "
                f"supported: {', '.join(repr(item) for item in accepted) or 'leaving it out'}."
            )

    def refuse_unread(self, neutral: Mapping[str, tuple[Any, ...]]) -> None:
        """Refuse features that the file asks for and nobody has looked up, by their keys with the values that change nothing."""
        for key, accepted in neutral.items():
            if key not in self._read:
                self.must_be(key, *accepted)

    def refusal(self, why: str) -> ModelError:
        """An error about this description, for the caller to raise."""
        return ModelError(f"{self._where}: {why}.")

    def _get(self, key: str, default: Any) -> Any:
        value = self.value(key)
        if value is None:
            value = default
        if value is None:
            raise ModelError(f"{self._where}: {self.key(key)} is missing.")
        return value
