"""Changes of the file of keys: lines are added and taken out, all else stays as it is, comments included."""

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from server.keys.key_file import KeyFile, KeyFileError, parse_key_file, text_of

_EMPTY = """# API keys of headrace, by their hashes: docs/keys.md. `headrace keys` adds and revokes; servers take up what changes.
keys: []
"""


@contextlib.contextmanager
def held(path: str) -> Iterator[None]:
    """Nobody else changes the file meanwhile. What is locked is its folder: the file itself is replaced.

    Raises:
        KeyFileError: there is no such folder.
    """
    try:
        folder = os.open(Path(path).resolve().parent, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise KeyFileError(f"{path}: its folder cannot be opened: {error.strerror}") from None
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def text_or_new(path: str) -> str:
    """The text of the file; of one without keys, if there is none."""
    return text_of(path) if os.path.exists(path) else _EMPTY


def with_key(text: str, path: str, fields: Mapping[str, Any]) -> str:
    """The text with one more key behind the others.

    Raises:
        KeyFileError: the text cannot be used, or not with this key; or its `keys` are not a list of lines.
    """
    before = parse_key_file(text, path)
    lines = text.splitlines(keepends=True)
    if before.entries:
        at, indent = before.lines[-1][1], _indent(lines, before, path)
    else:
        at = next(number for number, line in enumerate(lines) if line.startswith("keys:")) + 1
        indent, comment = "  ", lines[at - 1].partition("#")[2]
        lines[at - 1] = "keys:" + (f"  #{comment}" if comment else "\n")
    if at and not lines[at - 1].endswith("\n"):
        lines[at - 1] += "\n"
    shown = yaml.safe_dump([dict(fields)], sort_keys=False, allow_unicode=True, width=10**6)
    lines[at:at] = [indent + line for line in shown.splitlines(keepends=True)]
    changed = "".join(lines)
    after = parse_key_file(changed, path)
    if after.entries[:-1] != before.entries:
        raise KeyFileError(f"{path}: the key cannot be added without changing others; write it by hand:\n{shown}")
    return changed


def without_key(text: str, path: str, name: str) -> str:
    """The text without this key, and without the comments between its lines.

    Raises:
        KeyFileError: the text cannot be used, or has no such key; or its `keys` are not a list of lines.
    """
    before = parse_key_file(text, path)
    names = [entry.name for entry in before.entries]
    if name not in names:
        raise KeyFileError(f"{path}: has no key {name}; it has {', '.join(names) or 'none'}")
    at, lines = names.index(name), text.splitlines(keepends=True)
    indent = _indent(lines, before, path)
    first, behind = before.lines[at]
    lines[first:behind] = []
    if len(names) == 1:
        number = next(number for number, line in enumerate(lines) if line.startswith("keys:"))
        lines[number] = lines[number].replace("keys:", "keys: []", 1)
    changed = "".join(lines)
    left = [entry for entry in before.entries if entry.name != name]
    if not indent or list(parse_key_file(changed, path).entries) != left:
        raise KeyFileError(f"{path}: the key cannot be taken out without changing others; do it by hand")
    return changed


def _indent(lines: list[str], file: KeyFile, path: str) -> str:
    """What stands before the `-` of a key."""
    line = lines[file.lines[-1][0]]
    indent, dash, _ = line.partition("-")
    if not dash or indent.strip():
        raise KeyFileError(f"{path}: `keys` must be a list of lines that begin with `-`, for a change of it")
    return indent


def write(path: str, text: str) -> None:
    """Replace the file at once: readers see the old one or the new one. A new one is for its owner alone (mode 600), another keeps
    its mode and its owner.

    Raises:
        KeyFileError: it cannot be written.
    """
    place = Path(path).resolve()  # a link stays one
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{place.name}.", dir=place.parent)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                _take_after(place, file.fileno())
                os.fsync(file.fileno())
            os.replace(temporary, place)
        except BaseException:
            os.unlink(temporary)
            raise
        folder = os.open(place.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise KeyFileError(f"{path}: cannot be written: {error.strerror}") from None


def _take_after(place: Path, descriptor: int) -> None:
    if not place.exists():
        return
    status = place.stat()
    os.fchmod(descriptor, status.st_mode & 0o777)
    if (status.st_uid, status.st_gid) != (os.geteuid(), os.getegid()):
        with contextlib.suppress(PermissionError):  # then it is the writer's
            os.fchown(descriptor, status.st_uid, status.st_gid)
