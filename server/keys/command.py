"""`headrace keys`: adds, revokes, lists and checks the keys of a file."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from configs.knob import PREFIX
from server.keys.editing import held, text_or_new, with_key, without_key, write
from server.keys.entry import KeyEntry
from server.keys.key_file import KeyFileError, read_key_file
from server.keys.secret import digest_of, new_key, spelled

VARIABLE = PREFIX + "API_KEYS"
_LIMITS = ("requests_per_minute", "tokens_per_minute", "concurrent_requests")


def keys(arguments: Sequence[str]) -> int:
    """Add, revoke, list and check API keys in the file of `headrace serve --api-keys`.

    Returns:
        0; 1 if the file cannot be used or changed; 2 for wrong usage.
    """
    options = _parser().parse_args(arguments)
    if options.file is None:
        print(f"headrace keys: give the file as --file, or in {VARIABLE}", file=sys.stderr)
        return 2
    act: Callable[[argparse.Namespace], None] = options.act
    try:
        act(options)
    except KeyFileError as error:
        print(f"headrace keys: {error}", file=sys.stderr)
        return 1
    return 0


def _add(options: argparse.Namespace) -> None:
    key = new_key()
    fields = {"name": options.name, "hash": spelled(digest_of(key.encode())), **_asked(options)}
    with held(options.file):
        write(options.file, with_key(text_or_new(options.file), options.file, fields))
    print(
        f"{options.name} is in {options.file}. This is its key, which is shown once and kept nowhere:", file=sys.stderr
    )
    print(key)


def _asked(options: argparse.Namespace) -> dict[str, Any]:
    names = ("tenant", "weight", "highest_priority", "models", *_LIMITS, "cache_salt", "expires")
    fields = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    if options.admin:
        fields["admin"] = True
    return fields


def _revoke(options: argparse.Namespace) -> None:
    with held(options.file):
        write(options.file, without_key(text_or_new(options.file), options.file, options.name))
    print(f"{options.name} is no longer in {options.file}; servers that use it refuse the key within seconds")


def _list(options: argparse.Namespace) -> None:
    file, now = read_key_file(options.file), datetime.now(UTC)
    head = ("NAME", "TENANT", "WEIGHT", "REQUESTS/MIN", "TOKENS/MIN", "CONCURRENT", "MODELS", "ADMIN", "EXPIRES")
    rows = [head, *(_row(entry, file.weights[entry.owner], now) for entry in file.entries)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _row(entry: KeyEntry, weight: float, now: datetime) -> tuple[str, ...]:
    limits = (getattr(entry, name) for name in _LIMITS)
    expires = "never" if entry.expires is None else f"{entry.expires:%Y-%m-%d %H:%M %Z}"
    return (
        entry.name,
        entry.owner,
        f"{weight:g}",
        *("-" if limit is None else str(limit) for limit in limits),
        ",".join(entry.models or ["all"]),
        "yes" if entry.admin else "no",
        f"{expires}, over" if entry.expires is not None and entry.expires <= now else expires,
    )


def _check(options: argparse.Namespace) -> None:
    file, now = read_key_file(options.file), datetime.now(UTC)
    admins = sum(entry.admin for entry in file.entries)
    over = sum(entry.expires is not None and entry.expires <= now for entry in file.entries)
    print(f"{options.file} can be used: {len(file.entries)} keys, {admins} of them of admins, {over} expired")
    if os.stat(options.file).st_mode & 0o007:
        print(f"every user of this machine may read or change it: chmod 600 {options.file}")


def _days(text: str) -> datetime | str:
    """`30d` from now, or what the file itself may say."""
    if text.endswith("d") and text[:-1].isdigit():
        try:
            return (datetime.now(UTC) + timedelta(days=int(text[:-1]))).replace(microsecond=0)
        except OverflowError:
            pass  # refused as a date
    return text


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="headrace keys", description=keys.__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(required=True, metavar="add|revoke|list|check")

    def command(name: str, act: Callable[[argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        added.set_defaults(act=act)
        return added

    add = command("add", _add, "Make a key, write its hash into the file, and print it, once.")
    add.add_argument("name", help="its name, in logs, metrics and use")
    add.add_argument("--tenant", help="whose it is [its name]")
    add.add_argument("--weight", type=float, help="the tenant's share with --scheduling fair, 0.01 to 100 [1]")
    add.add_argument(
        "--highest-priority", type=int, help="least `priority` that requests may ask for, among everybody's"
    )
    add.add_argument("--models", nargs="+", help="names that it may use [all]")
    add.add_argument("--requests-per-minute", type=int, metavar="N", help="[no limit]")
    add.add_argument("--tokens-per-minute", type=int, metavar="N", help="of prompts and answers [no limit]")
    add.add_argument("--concurrent-requests", type=int, metavar="N", help="open at a time [no limit]")
    add.add_argument("--cache-salt", help="cached prefixes are shared among keys with the same one [with all without]")
    add.add_argument("--admin", action="store_true", help="it may watch, drain and restart engines, and see all use")
    add.add_argument(
        "--expires", type=_days, metavar="WHEN", help="a date, a time with its zone, or 30d from now [never]"
    )
    revoke = command("revoke", _revoke, "Take a key out of the file.")
    revoke.add_argument("name", help="of the key")
    listed = command("list", _list, "Show the keys of the file; the keys themselves are not in it.")
    checked = command("check", _check, "Say whether a server can use the file, and what is wrong with it.")
    for each in (add, revoke, listed, checked):
        each.add_argument("--file", default=os.environ.get(VARIABLE), help=f"the file of keys ({VARIABLE})")
    return parser
