"""Who sends a request, as far as the engine needs to know: the tenant it counts for, and who may share its cached prefixes.

A tenant is known by the API key that was sent; where no keys are required, anybody may say who they are (`user`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b

from configs.settings import Settings


@dataclass(frozen=True, slots=True)
class Tenant:
    """The owner of one key, or anybody.

    Attributes:
        name: None where the request's `user` says it.
        salt: put before the request's own `cache_salt`. It has the same length for all keys, so that no two tenants can
            make equal salts.
    """

    name: str | None = None
    salt: str = ""

    def name_for(self, user: str) -> str:
        """Whose share a request with this `user` uses."""
        return user if self.name is None else self.name

    def salted(self, cache_salt: str) -> str:
        """The full salt of a request that gave this `cache_salt`."""
        return self.salt + cache_salt


ANYBODY = Tenant()


def tenants_of(settings: Settings) -> Mapping[str, Tenant]:
    """The owner of each key."""
    return {
        key: Tenant(name, _salt(key) if settings.isolate_keys else "")
        for key, name in zip(settings.api_key, settings.tenants, strict=True)
    }


def administers(tenant: Tenant, settings: Settings) -> bool:
    """Whether this tenant may drain and restart engines."""
    return not settings.admin_keys or tenant.name in settings.admin_keys


def outranks(tenant: Tenant, settings: Settings) -> bool:
    """Whether the priorities of this tenant's requests hold among everybody's, not only among its own."""
    match settings.priority_scope:
        case "all":
            return True
        case "tenant" if settings.api_key:
            return tenant.name in settings.priority_keys
        case "tenant":  # `user` is a tenant only where shares are given to users
            return settings.scheduling != "fair"
    return False


def _salt(key: str) -> str:
    """Made from the key alone: nobody can guess it, and it survives changes of names and of their order."""
    return blake2b(key.encode(), digest_size=16, person=b"headrace-tenant").hexdigest() + ":"
