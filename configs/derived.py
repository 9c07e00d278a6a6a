"""What follows from several knobs at once, whether they contradict each other or not."""

from collections.abc import Iterator
from typing import Literal

from configs.node_declaration import NodeDeclaration
from configs.roles import parse_role
from configs.weights import parse_weight

Kind = Literal["cpu", "cuda"]

_COUNTS = ("engines", "tensor_parallel")


class Derived(NodeDeclaration):
    """All knobs, each valid by itself, and what they say together."""

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
    def keyed(self) -> bool:
        """Whether a request needs a key."""
        return bool(self.api_key) or self.api_keys is not None

    @property
    def keeps_accounts(self) -> bool:
        """Whether it is counted what each key uses."""
        return self.api_keys is not None or self.usage_db is not None

    @property
    def shares(self) -> dict[str, float]:
        """The weight of each tenant that has a key of `api_key`."""
        weights = dict(map(parse_weight, self.tenant_weights))
        return {name: weights.get(name, 1.0) for name in self.tenants}

    @property
    def no_key_has_priorities(self) -> bool:
        """Whether there are keys, and none may write a priority: with `throughput` tenants have no places of their own to order."""
        tenants_order_nothing = self.scheduling == "throughput" and self.priority_scope == "tenant"
        known = bool(self.api_key) and self.api_keys is None  # a file may change
        return known and tenants_order_nothing and not self.priority_keys

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
        """Whether engines share what is below their devices: then a process beside them, on each node, keeps it."""
        return (self.engines > 1 or self.ray is not None) and (self.kv_host_gib > 0 or self.kv_disk_path is not None)


def _readers() -> Iterator[tuple[str, str]]:
    """Each knob that one kind of device alone reads, and that kind."""
    for name, info in Derived.model_fields.items():
        extra = info.json_schema_extra
        if isinstance(extra, dict) and "read_by" in extra:
            yield name, str(extra["read_by"])


_READERS = dict(_readers())


def read_by(kind: Kind) -> tuple[str, ...]:
    """Names of the knobs that only this kind of device reads."""
    return tuple(name for name, reader in _READERS.items() if reader == kind)
