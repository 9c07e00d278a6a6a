"""The file of `--api-keys`: YAML, read strictly.

Each problem names the file, the line, the key, the field, what it must be and what it is.
"""

import os
import re
import stat
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml
from pydantic import ValidationError

from configs.loader import ConfigError, nearest
from server.keys.entry import DOMAINS, SECRETS, KeyEntry
from server.schema.shown import shown

_MOST_LEVELS = 8  # a list in fields in a list in fields are four
_MOST_BYTES = 64 * 2**20
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # in C ten times as fast, which 10,000 keys notice


class KeyFileError(ConfigError):
    """It cannot be used. The text has one line for each problem."""


@dataclass(frozen=True, slots=True)
class KeyFile:
    """What a file says.

    Attributes:
        entries: the keys, in the file's order.
        lines: of each the first of its lines, and the one behind its last, counted from 0.
    """

    entries: tuple[KeyEntry, ...]
    lines: tuple[tuple[int, int], ...] = field(default=(), compare=False)

    @property
    def weights(self) -> dict[str, float]:
        """Of each tenant."""
        weights = dict.fromkeys((entry.owner for entry in self.entries), 1.0)
        return weights | {entry.owner: entry.weight for entry in self.entries if entry.weight is not None}


def read_key_file(path: str, taken: Collection[str] = ()) -> KeyFile:
    """What the file says.

    Args:
        path: of the file.
        taken: names that keys and tenants may not have: those of `--api-key`.

    Raises:
        KeyFileError: with all problems.
    """
    return parse_key_file(text_of(path), path, taken)


def text_of(path: str) -> str:
    """The text of the file.

    Raises:
        KeyFileError: it cannot be read.
    """
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):  # who opens a pipe waits for its writer
            raise KeyFileError(f"{path}: is no regular file")
        if status.st_size > _MOST_BYTES:
            raise KeyFileError(f"{path}: must have at most {_MOST_BYTES} bytes, has {status.st_size}")
        with open(path, encoding="utf-8") as file:
            return file.read()
    except OSError as error:
        raise KeyFileError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise KeyFileError(f"{path}: must be UTF-8, byte {error.start} is not") from None


def parse_key_file(text: str, path: str, taken: Collection[str] = ()) -> KeyFile:
    """`read_key_file` for its text."""
    reading = _KeyReading(path)
    nodes = list(reading.nodes(text))
    read = [reading.entry(node, number) for number, node in enumerate(nodes)]
    pairs = [(entry, node) for entry, node in zip(read, nodes, strict=True) if entry is not None]
    reading.compare(pairs, taken)
    if reading.problems:
        raise KeyFileError("\n".join(reading.problems))
    lines = tuple((node.start_mark.line, _line_behind(node)) for node in nodes)
    return KeyFile(tuple(entry for entry, _ in pairs), lines)


class _KeyReading:
    """One reading of a file, and what is wrong with it."""

    def __init__(self, path: str) -> None:
        self.problems: list[str] = []
        self._path = path
        self._constructor = yaml.SafeLoader("")

    def _complain(self, node: Any, what: str, name: str | None = None) -> None:
        of = "" if name is None else f" (key {name})"
        self.problems.append(f"{self._path}, line {node.start_mark.line + 1}{of}: {what}")

    def nodes(self, text: str) -> Iterator[Any]:
        """The node of each key."""
        try:
            _check_depth(text)
            root = yaml.compose(text, _LOADER)
        except yaml.YAMLError as error:
            self.problems.append(f"{self._path}: is no YAML: {_place(error)}")
            return
        if not isinstance(root, yaml.MappingNode):
            found = "nothing" if root is None else _kind(root)
            self.problems.append(f"{self._path}: must hold `keys:` and a list of keys, holds {found}")
            return
        fields = self._fields(root, None)
        for name, (node, _) in fields.items():
            if name != "keys":
                self._complain(node, f"unknown field `{name}`; the file has one, `keys`")
        if "keys" not in fields:
            self.problems.append(f"{self._path}: must hold `keys:` and a list of keys; for none `keys: []`")
            return
        _, keys = fields["keys"]
        if not isinstance(keys, yaml.SequenceNode):
            self._complain(keys, f"`keys` must be a list, for none `[]`, got {_kind(keys)}")
            return
        yield from keys.value

    def entry(self, node: Any, number: int) -> KeyEntry | None:
        """A key, or None if something is wrong with it."""
        if not isinstance(node, yaml.MappingNode):
            self._complain(node, f"`keys[{number}]` must be fields of a key, got {_kind(node)}")
            return None
        before = len(self.problems)
        fields = self._fields(node, number)
        values = {name: self._value(value) for name, (_, value) in fields.items()}
        shown_name = values.get("name")
        name = shown_name if isinstance(shown_name, str) else f"number {number + 1}"
        try:
            entry = KeyEntry.model_validate(values)
        except ValidationError as error:
            for at in dict.fromkeys(str(detail["loc"][0]) for detail in error.errors(include_url=False)):
                place = fields[at][1] if at in fields else node
                self._complain(place, _wrong(at, values), name[:64])
            return None
        return entry if len(self.problems) == before else None

    def _fields(self, node: Any, number: int | None) -> dict[str, tuple[Any, Any]]:
        """Name and value nodes of a mapping."""
        found: dict[str, tuple[Any, Any]] = {}
        for key, value in node.value:
            name = str(key.value)
            if name in found:
                of = "" if number is None else f"keys[{number}]."
                self._complain(key, f"`{of}{name}` is given twice")
            found[name] = key, value
        return found

    def _value(self, node: Any) -> Any:
        try:
            return self._constructor.construct_object(node, deep=True)
        except Exception:  # PyYAML lets out what it stumbles over: `!!bool maybe` is a KeyError
            return _Unreadable()

    def compare(self, pairs: list[tuple[KeyEntry, Any]], taken: Collection[str]) -> None:
        """Refuse what keys may not have in common."""
        names: dict[str, int] = {}
        hashes: dict[bytes, str] = {}
        weights: dict[str, tuple[str, float]] = {}
        for entry, node in pairs:
            if entry.name in names:
                self._complain(node, f"`name` must be its own, line {names[entry.name]} has it, too", entry.name)
            names.setdefault(entry.name, node.start_mark.line + 1)
            if entry.hash in hashes:
                self._complain(node, f"`hash` must be its own, key {hashes[entry.hash]} has it, too", entry.name)
            hashes.setdefault(entry.hash, entry.name)
            for what, name in (("name", entry.name), ("tenant", entry.owner)):
                if name in taken:
                    self._complain(node, f"`{what}` must not be {name}: a key of --api-key has that name", entry.name)
                    break
            if entry.weight is not None:
                other, weight = weights.setdefault(entry.owner, (entry.name, entry.weight))
                if weight != entry.weight:
                    what = f"`weight` of tenant {entry.owner} must be {weight:g}, as key {other} has it, got {entry.weight:g}"
                    self._complain(node, what, entry.name)


class _Unreadable:
    """What is no value of YAML, such as a day that no month has."""

    def __repr__(self) -> str:
        return "something that YAML cannot read"


def _wrong(name: str, values: Mapping[str, Any]) -> str:
    """What is wrong with this field."""
    if name not in DOMAINS:
        hint = ": the file has hashes of keys, see `headrace keys add`" if name in ("key", "api_key") else ""
        return f"unknown field `{name}`{hint or '.' + nearest(name, DOMAINS)}"
    if name not in values:
        return f"`{name}` is missing; it must be {DOMAINS[name]}"
    value = values[name]
    if name in SECRETS:
        got = f"{len(value)} characters" if isinstance(value, str) else f"{type(value).__name__}"
    else:
        got = shown(value) if isinstance(value, str | int | float | list | dict | None) else str(value)
    return f"`{name}` must be {DOMAINS[name]}, got {got}"


def _line_behind(node: Any) -> int:
    """The line behind what a node says. Where a block ends by the next one's indent, the parser counts comments between to it."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        return _line_behind(last[1] if isinstance(last, tuple) else last)
    behind: int = node.end_mark.line + (node.end_mark.column > 0)
    return behind


def _check_depth(text: str) -> None:
    """Refuse a deep text before it is composed: that takes stack for each level, without a limit, and would end the process."""
    depth = 0
    for event in yaml.parse(text, _LOADER):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _MOST_LEVELS:
            mark: Any = event.start_mark
            raise yaml.MarkedYAMLError(problem=f"more than {_MOST_LEVELS} levels", problem_mark=mark)


def _kind(node: Any) -> str:
    kind = {"mapping": "fields", "sequence": "a list"}.get(node.id)
    return kind or f"{shown(node.value)}"


def _place(error: yaml.YAMLError) -> str:
    """What is wrong and where, without what YAML quotes of the file."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or type(error).__name__
    problem = re.sub(r"'.*'|\".*\"", "..", problem)
    return problem if mark is None else f"{problem}, line {mark.line + 1}, column {mark.column + 1}"
