"""The settings of one server: the declared knobs, and what one of them means for another.

A knob that nothing would read is refused here if the settings alone show it (`configs/needs.py`), and named in a warning if it
depends on the machine (`Settings.unread_on`). No other file refuses one knob because of another.
"""

import ipaddress
import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, Self

from pydantic import model_validator

from configs.derived import Derived
from configs.needs import ADDRESS, SHARES, Contradiction, unread
from configs.roles import MOST_ENGINES, parse_role
from configs.weights import parse_weight

# As browsers send them. An origin may be that of an extension, or `null`.
_HOST = r"(\[[0-9a-fA-F:.]+\]|[^\[\]:/?#@*\s\x80-\U0010ffff]+)"
_ROOT_PATH = re.compile(r"(/(?!\.{1,2}(/|$))[A-Za-z0-9._~-]+)+")
_HOST_NAME = re.compile(_HOST)
_ORIGIN = re.compile(rf"null|[a-zA-Z][a-zA-Z0-9+.-]*://{_HOST}(:\d+)?/?")


class ContradictionError(ValueError):
    """Settings that contradict each other. `found` has all contradictions, the text a line for each."""

    def __init__(self, found: list[Contradiction]) -> None:
        super().__init__("\n".join(contradiction.text for contradiction in found))
        self.found = found


class Settings(Derived):
    """Validated settings of one server.

    Raises (pydantic's `ValidationError`):
        a value outside its bounds, or settings that contradict each other (a `ContradictionError` in its context).
    """

    @model_validator(mode="before")
    @classmethod
    def _count_roles(cls, data: Any) -> Any:
        """An item of `roles` may name several, with commas between them. If `engines` is not given, it is as many as they name."""
        if not isinstance(data, dict) or not data.get("roles"):
            return data
        try:
            roles = [each.strip() for item in data["roles"] for each in item.split(",")]
        except (TypeError, AttributeError):
            return data  # refused as a value
        try:
            named = sum(count for _, count in map(parse_role, roles))
        except ValueError:
            named = 0
        counted = {"engines": named} if 0 < named <= MOST_ENGINES else {}  # others are refused for what `roles` says
        return {**counted, **data, "roles": roles}

    @model_validator(mode="after")
    def _refuse_contradictions(self) -> Self:
        found = [
            *unread(self),
            *_contradictory_gpus(self),
            *_contradictory_roles(self),
            *_contradictory_tenants(self),
            *_contradictory_lengths(self),
            *_contradictory_room(self),
            *_never_sent(self),
        ]
        if found:
            raise ContradictionError(found)
        return self

    def for_engine(self) -> str:
        """As JSON for an engine's command line, which is public: without the keys, and without what is said about keys.

        What was not set stays unset.
        """
        return self.model_dump_json(exclude_unset=True, exclude=_ABOUT_KEYS)


_ABOUT_KEYS = {"api_key", "key_names", "api_keys", "usage_db", "isolate_keys", "priority_keys", "admin_keys"}

# Two ways to say one thing: by a stronger source (a flag) the one replaces what a weaker one (a file) says by the other.
RIVALS: dict[str, tuple[str, ...]] = {
    "kv_blocks": SHARES,
    **dict.fromkeys(SHARES, ("kv_blocks",)),
    "uds": ADDRESS,
    **dict.fromkeys(ADDRESS, ("uds",)),
}


def _contradictory_gpus(settings: Settings) -> Iterator[Contradiction]:
    """What Ray reserves, and what engines use."""
    gpus, ranks = settings.gpus_per_engine, settings.tensor_parallel
    if settings.ray is None:
        return
    if (gpus or ranks > 1) and gpus != ranks:
        text = f"gpus_per_engine is {gpus}, but tensor_parallel is {ranks}: give equal numbers"
        yield Contradiction(("gpus_per_engine", "tensor_parallel"), text)
    elif not gpus and settings.device == "cuda":
        text = f"device is cuda, but gpus_per_engine is 0: set gpus_per_engine {ranks}"
        yield Contradiction(("device", "gpus_per_engine"), text)


def _contradictory_roles(settings: Settings) -> Iterator[Contradiction]:
    roles = dict(map(parse_role, settings.roles))
    named = sum(count for _, count in map(parse_role, settings.roles))
    if named > MOST_ENGINES:
        yield Contradiction(
            ("roles",), f"roles names {named} engines, and there can be at most {MOST_ENGINES}: give fewer"
        )
    elif roles and named != settings.engines:
        text = (
            f"roles names {named} engines, but engines is {settings.engines}: give equal numbers, or leave engines out"
        )
        yield Contradiction(("roles", "engines"), text)
    for phase, other in (("prefill", "decode"), ("decode", "prefill")):
        if set(roles) == {other}:
            text = f"roles has only {other} engines, so that none is meant for {phase}: add {phase}:1 or mixed:1"
            yield Contradiction(("roles",), text)


def _contradictory_tenants(settings: Settings) -> Iterator[Contradiction]:
    keys, names = len(settings.api_key), settings.key_names
    if keys and names and len(names) != keys:
        text = f"key_names has {len(names)} names for the {keys} keys of api_key: give one for each"
        yield Contradiction(("key_names", "api_key"), text)
        return
    known = settings.tenants
    for name in ("priority_keys", "admin_keys"):
        for tenant in getattr(settings, name):
            if keys and tenant not in known:
                text = f"{name} names {tenant!r}, but the keys of api_key belong to {', '.join(known)}"
                yield Contradiction((name, "api_key"), text)
    for tenant, _ in map(parse_weight, settings.tenant_weights):
        if known and tenant not in known:
            text = f"tenant_weights names {tenant!r}, but the keys of api_key belong to {', '.join(known)}"
            yield Contradiction(("tenant_weights", "api_key"), text)
        elif settings.api_keys is not None and tenant not in known:
            text = f"tenant_weights names {tenant!r}, but the weights of keys in the file of api_keys are given there, as `weight`"
            yield Contradiction(("tenant_weights", "api_keys"), text)


def _contradictory_lengths(settings: Settings) -> Iterator[Contradiction]:
    """Lengths that are all given, of which one leaves another without effect."""
    lengths = {name: getattr(settings, name) for name in ("default_max_tokens", "max_output_tokens", "max_model_len")}
    for (name, value), (limit, most) in pairwise((name, value) for name, value in lengths.items() if value is not None):
        if value > most:
            yield Contradiction(
                (name, limit), f"{name} is {value}, but {limit} allows {most}: give one that is allowed"
            )


def _contradictory_room(settings: Settings) -> Iterator[Contradiction]:
    """Room for all resumable streams, or all files, that is not even enough for one."""
    if settings.max_file_bytes > settings.max_stored_bytes:
        text = f"max_file_bytes is {settings.max_file_bytes}, but max_stored_bytes allows {settings.max_stored_bytes}: give one "
        yield Contradiction(("max_file_bytes", "max_stored_bytes"), f"{text}that is allowed")
    one, all_of_them = settings.resume_bytes, settings.resume_total_bytes
    if settings.resume_seconds and one > all_of_them:
        text = f"resume_bytes is {one}, but resume_total_bytes allows {all_of_them}: give one that is allowed"
        yield Contradiction(("resume_bytes", "resume_total_bytes"), text)


def _never_sent(settings: Settings) -> Iterator[Contradiction]:
    """Names, origins and paths that no client sends in this form, so that they would allow nothing."""
    if settings.root_path and (
        not _ROOT_PATH.fullmatch(settings.root_path) or f"{settings.root_path}/".startswith("/v1/")
    ):
        text = f"root_path is {settings.root_path!r}: give a path as `/llm`, without a slash at its end, and not `/v1`"
        yield Contradiction(("root_path",), text)
    for address in settings.forwarded_allow_ips:
        if address != "*" and not _is_network(address):
            text = f"forwarded_allow_ips has {address!r}: give an address or a network as `10.0.0.0/8`, or `*`"
            yield Contradiction(("forwarded_allow_ips",), text)
    for host in settings.allowed_hosts:
        if host != "*" and not _HOST_NAME.fullmatch(host):
            text = f"allowed_hosts has {host!r}: give a name as `llm.example` or `[2001:db8::1]`, without scheme and port, or `*`"
            yield Contradiction(("allowed_hosts",), text)
    for origin in settings.cors_origins:
        if origin != "*" and not _ORIGIN.fullmatch(origin):
            text = (
                f"cors_origins has {origin!r}: give an origin as in `https://chat.example:8443`, without a path, or `*`"
            )
            yield Contradiction(("cors_origins",), text)


def _is_network(text: str) -> bool:
    try:
        ipaddress.ip_network(text)
    except ValueError:
        return False
    return True
