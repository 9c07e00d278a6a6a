"""The settings of one server: the declared knobs, and what one of them means for another.

A knob that nothing would read is refused here if the settings alone show it, and named in a warning if it depends on the
machine (`Settings.unread_on`). No other file refuses one knob because of another.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, Self

from pydantic import model_validator

from configs.declaration import Declaration
from configs.roles import MOST_ENGINES, parse_role
from configs.weights import parse_weight

Kind = Literal["cpu", "cuda"]

# As browsers send them. An origin may be that of an extension, or `null`.
_HOST = r"(\[[0-9a-fA-F:.]+\]|[^\[\]:/?#@*\s\x80-\U0010ffff]+)"
_HOST_NAME = re.compile(_HOST)
_ORIGIN = re.compile(rf"null|[a-zA-Z][a-zA-Z0-9+.-]*://{_HOST}(:\d+)?/?")


@dataclass(frozen=True, slots=True)
class Contradiction:
    """Settings of which one makes another meaningless. `text` names them all and says what to change."""

    names: tuple[str, ...]
    text: str


class ContradictionError(ValueError):
    """Settings that contradict each other. `found` has all contradictions, the text a line for each."""

    def __init__(self, found: list[Contradiction]) -> None:
        super().__init__("\n".join(contradiction.text for contradiction in found))
        self.found = found


class Settings(Declaration):
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
            *_unread(self),
            *_contradictory_roles(self),
            *_contradictory_tenants(self),
            *_contradictory_lengths(self),
            *_contradictory_room(self),
            *_never_sent(self),
        ]
        if found:
            raise ContradictionError(found)
        return self

    def asks_for(self, name: str) -> bool:
        """Whether this knob was set, and to something that has an effect: `false`, 0, `auto` and none ask for nothing."""
        value = getattr(self, name)
        nothing = not value or value == "auto" or (name in _COUNTS and value == 1)
        return name in self.model_fields_set and not nothing

    def unread_on(self, kind: Kind) -> list[str]:
        """Sentences about knobs that are set but that an engine on such a device does not read, for a warning at its start."""
        return [
            f"{name} is set, but device {self.device} turned out to be {kind}, which does not read it"
            for name, reader in _READERS.items()
            if reader != kind and self.asks_for(name)
        ]

    @property
    def tenants(self) -> list[str]:
        """The owner of each key of `api_key`, in the same order."""
        return self.key_names or [f"key{number + 1}" for number in range(len(self.api_key))]

    @property
    def shares(self) -> dict[str, float]:
        """The weight of each tenant that has a key; none where no keys are required."""
        weights = dict(map(parse_weight, self.tenant_weights))
        return {name: weights.get(name, 1.0) for name in self.tenants}

    @property
    def _no_key_has_priorities(self) -> bool:
        """Whether there are keys, and none may write a priority: with `throughput` tenants have no places of their own to order."""
        tenants_order_nothing = self.scheduling == "throughput" and self.priority_scope == "tenant"
        return bool(self.api_key) and tenants_order_nothing and not self.priority_keys

    @property
    def engine_names(self) -> list[str]:
        """Names of the engines, as they label metrics."""
        return ["engine"] if self.engines == 1 else [f"engine-{number}" for number in range(self.engines)]

    @property
    def engine_roles(self) -> dict[str, str]:
        """What each engine is meant for, by its name: `mixed`, `prefill` or `decode`."""
        given = [role for role, count in map(parse_role, self.roles) for _ in range(count)]
        return dict(zip(self.engine_names, given or ["mixed"] * self.engines, strict=True))

    @property
    def phase_slos(self) -> tuple[float, float] | None:
        """ttft_slo_ms and decode_slo_ms in seconds if roles switch by them, else None."""
        if self.role_switching == "off" or self.ttft_slo_ms is None or self.decode_slo_ms is None:
            return None
        return self.ttft_slo_ms / 1000, self.decode_slo_ms / 1000

    @property
    def router(self) -> str:
        """The routing that has an effect: without cached prefixes there is nothing to be aware of."""
        return self.routing if self.prefix_caching or self.routing != "prefix-aware" else "least-work"

    @property
    def keeps(self) -> bool:
        """Whether the engines share what is below their devices: then a process beside them keeps it."""
        return self.engines > 1 and (self.kv_host_gib > 0 or self.kv_disk_path is not None)

    def for_engine(self) -> str:
        """As JSON for an engine's command line, which is public: without the keys, and without what is said about keys.

        What was not set stays unset.
        """
        return self.model_dump_json(exclude_unset=True, exclude=_ABOUT_KEYS)


@dataclass(frozen=True, slots=True)
class _Need:
    """`names` have no effect unless `met`, which depends on `partner`.

    `because` completes "NAME is set, but ..."; `fix` is what to do instead of leaving NAME out.
    """

    names: tuple[str, ...]
    partner: str
    met: Callable[[Settings], bool]
    because: str
    fix: str


def _readers() -> Iterator[tuple[str, str]]:
    """Each knob that one kind of device alone reads, and that kind."""
    for name, info in Settings.model_fields.items():
        extra = info.json_schema_extra
        if isinstance(extra, dict) and "read_by" in extra:
            yield name, str(extra["read_by"])


_READERS = dict(_readers())


def read_by(kind: Kind) -> tuple[str, ...]:
    """Names of the knobs that only this kind of device reads."""
    return tuple(name for name, reader in _READERS.items() if reader == kind)


FAST_BLOCK_UNIT = 16  # tokens: the C++ kernels take block sizes that are multiples of it

_ABOUT_KEYS = {"api_key", "key_names", "isolate_keys", "priority_keys", "admin_keys"}
_TIERS = ("kv_host_gib", "kv_disk_path")
_SHARES = ("kv_memory_fraction", "gpu_memory_fraction")
_COUNTS = ("engines", "tensor_parallel")

# Two ways to say one thing: by a stronger source (a flag) the one replaces what a weaker one (a file) says by the other.
RIVALS: dict[str, tuple[str, ...]] = {"kv_blocks": _SHARES, **dict.fromkeys(_SHARES, ("kv_blocks",))}

_NEEDS = (
    _Need(
        read_by("cuda"), "device", lambda self: self.device != "cpu", "device cpu does not read it", "set device cuda"
    ),
    _Need(
        read_by("cpu"), "device", lambda self: self.device != "cuda", "device cuda does not read it", "set device cpu"
    ),
    _Need(
        ("cpu_precision",),
        "block_size",
        lambda self: self.cpu_precision != "fast" or self.block_size % FAST_BLOCK_UNIT == 0,
        f"the C++ kernels need a block_size that is a multiple of {FAST_BLOCK_UNIT}",
        f"set block_size {2 * FAST_BLOCK_UNIT}",
    ),
    _Need(
        ("allow_long_max_model_len",),
        "max_model_len",
        lambda self: self.max_model_len is not None,
        "without max_model_len no more than the model's own limit is asked for",
        "set max_model_len",
    ),
    _Need(
        _SHARES,
        "kv_blocks",
        lambda self: self.kv_blocks is None,
        "kv_blocks already says how large the KV pool is",
        "leave kv_blocks out",
    ),
    _Need(
        ("kv_disk_gib",),
        "kv_disk_path",
        lambda self: self.kv_disk_path is not None,
        "without kv_disk_path there is no such tier",
        "set kv_disk_path",
    ),
    _Need(
        (*_TIERS, "eviction", "gpu_shared_prefixes", "isolate_keys"),
        "prefix_caching",
        lambda self: self.prefix_caching,
        "with prefix_caching off no KV is kept by its content (--no-prefix-caching)",
        "set prefix_caching",
    ),
    _Need(
        ("scheduling",),
        "prefix_caching",
        lambda self: self.prefix_caching or self.scheduling != "throughput",
        "throughput orders requests by shared prefixes, and with prefix_caching off none are kept",
        "set prefix_caching",
    ),
    _Need(
        ("routing", "decode_slo_ms"),
        "engines",
        lambda self: self.engines > 1,
        "a single engine gets every request",
        "set engines 2 or more",
    ),
    _Need(
        ("routing",),
        "prefix_caching",
        lambda self: self.prefix_caching or self.routing != "prefix-aware",
        "with prefix_caching off there are no prefixes to be aware of",
        "set prefix_caching",
    ),
    _Need(
        ("decode_slo_ms",),
        "routing",
        lambda self: self.router == "prefix-aware",
        "only prefix-aware routing looks at the time between tokens",
        "set routing prefix-aware",
    ),
    _Need(
        ("roles",),
        "kv_host_gib",
        lambda self: "prefill" not in dict(map(parse_role, self.roles)) or self.asks_for("kv_host_gib"),
        "a prefill engine hands KV over by way of the host's tier, and there is none",
        "set kv_host_gib",
    ),
    _Need(
        ("ttft_slo_ms", "role_switching"),
        "roles",
        lambda self: {"prefill", "decode"} <= set(dict(map(parse_role, self.roles))),
        "without prefill and decode engines no role can switch",
        "set roles prefill:1,decode:1",
    ),
    _Need(
        ("ttft_slo_ms",),
        "decode_slo_ms",
        lambda self: self.phase_slos is not None,
        "roles switch, unless role_switching is off, only by bounds of both phases",
        "set decode_slo_ms, and leave role_switching at auto",
    ),
    _Need(
        ("preemption",),
        "kv_host_gib",
        lambda self: self.preemption != "swap" or any(map(self.asks_for, _TIERS)),
        "swap saves KV to a tier, and there is none",
        "set kv_host_gib or kv_disk_path",
    ),
    _Need(
        ("protect_kv",),
        "kv_host_gib",
        lambda self: any(map(self.asks_for, _TIERS)),
        "KV is protected by copies in a tier, and there is none",
        "set kv_host_gib or kv_disk_path",
    ),
    _Need(
        ("preemption",),
        "max_preemptions",
        lambda self: self.preemption != "swap" or self.max_preemptions > 0,
        "with max_preemptions 0 nothing is ever preempted",
        "set max_preemptions",
    ),
    _Need(
        ("health_seconds",),
        "hang_seconds",
        lambda self: self.health_seconds <= self.hang_seconds,
        "an engine is killed before /health says no, as hang_seconds is less",
        "set hang_seconds to more",
    ),
    _Need(
        _TIERS,
        "tensor_parallel",
        lambda self: self.tensor_parallel == 1,
        "a tier keeps whole blocks, and with tensor_parallel each GPU holds only a part of each",
        "set tensor_parallel 1",
    ),
    _Need(
        ("tenant_weights", "decode_price"),
        "scheduling",
        lambda self: self.scheduling == "fair",
        "only scheduling fair reads it",
        "set scheduling fair",
    ),
    _Need(
        ("priority_keys", "priority_aging_seconds"),
        "scheduling",
        lambda self: self.scheduling != "fcfs",
        "with fcfs requests have no priorities",
        "set scheduling priority, fair or throughput",
    ),
    _Need(
        ("priority_scope",),
        "scheduling",
        lambda self: self.scheduling != "fcfs" or self.priority_scope == "none",
        "with fcfs requests have no priorities",
        "set scheduling priority, fair or throughput",
    ),
    _Need(
        ("priority_keys",),
        "priority_scope",
        lambda self: self.priority_scope == "tenant",
        "only priority_scope tenant tells keys apart",
        "set priority_scope tenant",
    ),
    _Need(
        ("priority_aging_seconds",),
        "priority_scope",
        lambda self: self.priority_scope != "none",
        "with priority_scope none all priorities are equal",
        "set priority_scope tenant or all",
    ),
    _Need(
        ("priority_aging_seconds",),
        "priority_keys",
        lambda self: not self._no_key_has_priorities,
        "with throughput and priority_scope tenant only the keys of priority_keys have priorities, and it is empty",
        "set priority_keys",
    ),
    _Need(
        ("resume_bytes", "resume_total_bytes"),
        "resume_seconds",
        lambda self: self.resume_seconds > 0,
        "with resume_seconds 0 no stream is kept",
        "set resume_seconds to more",
    ),
    _Need(
        ("isolate_keys", "key_names", "priority_keys", "admin_keys"),
        "api_key",
        lambda self: bool(self.api_key),
        "api_key is empty, so there are no keys to which it could apply",
        "set api_key",
    ),
)


def _unread(settings: Settings) -> Iterator[Contradiction]:
    for need in _NEEDS:
        for name in need.names:
            if settings.asks_for(name) and not need.met(settings):
                text = f"{name} is set, but {need.because}: {need.fix}, or leave {name} out"
                yield Contradiction((name, need.partner), text)


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


def _contradictory_lengths(settings: Settings) -> Iterator[Contradiction]:
    """Lengths that are all given, of which one leaves another without effect."""
    lengths = {name: getattr(settings, name) for name in ("default_max_tokens", "max_output_tokens", "max_model_len")}
    for (name, value), (limit, most) in pairwise((name, value) for name, value in lengths.items() if value is not None):
        if value > most:
            yield Contradiction(
                (name, limit), f"{name} is {value}, but {limit} allows {most}: give one that is allowed"
            )


def _contradictory_room(settings: Settings) -> Iterator[Contradiction]:
    """Room for all resumable streams that is not even enough for one."""
    one, all_of_them = settings.resume_bytes, settings.resume_total_bytes
    if settings.resume_seconds and one > all_of_them:
        text = f"resume_bytes is {one}, but resume_total_bytes allows {all_of_them}: give one that is allowed"
        yield Contradiction(("resume_bytes", "resume_total_bytes"), text)


def _never_sent(settings: Settings) -> Iterator[Contradiction]:
    """Names and origins that no client sends in this form, so that they would allow nothing."""
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
