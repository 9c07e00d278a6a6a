"""Who sends a request, as far as the engine needs to know: the tenant it counts for, and who may share its cached prefixes.

A caller is known by the API key it sent; where no keys are asked for, it is anybody, and its own word (`user`) is its tenant.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b

from configs.settings import Settings


@dataclass(frozen=True, slots=True)
class Caller:
    """One key's owner.

    Attributes:
        tenant: None where the request's `user` says it.
        salt: put before the request's own `cache_salt`. Of one length for all keys, so no two callers can make equal salts.
    """

    tenant: str | None = None
    salt: str = ""

    def tenant_of(self, user: str) -> str:
        """Whose share a request uses."""
        return user if self.tenant is None else self.tenant

    def salted(self, cache_salt: str) -> str:
        """The salt of a request that gave this one itself."""
        return self.salt + cache_salt


ANYBODY = Caller()


def callers_of(settings: Settings) -> Mapping[str, Caller]:
    """The owner of each key."""
    return {
        key: Caller(name, _salt(key) if settings.isolate_keys else "")
        for key, name in zip(settings.api_key, settings.tenants, strict=True)
    }


def _salt(key: str) -> str:
    """From the key itself: nobody can guess it, and it outlives changes of names and order."""
    return blake2b(key.encode(), digest_size=16, person=b"headrace-caller").hexdigest() + ":"
