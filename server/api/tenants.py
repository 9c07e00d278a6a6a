"""Who sends a request: the tenant it counts for, what it may do, and who may share its cached prefixes.

A tenant is known by the API key that was sent; where no keys are required, anybody may say who they are (`user`).
"""

import hmac
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

from configs.settings import Settings
from configs.weights import parse_weight
from server.errors import ForbiddenKey, InvalidRequest, Unauthorized
from server.keys.entry import KeyEntry, KeyLimits
from server.keys.secret import digest_of

_FEW = 4
_SALT = re.compile(r":*[0-9a-f]{32}:")


@dataclass(frozen=True, slots=True)
class Tenant:
    """The owner of one key, or anybody. Two are equal if their requests may take each other's place.

    Attributes:
        name: None where the request's `user` says it.
        salt: put before the request's own `cache_salt`. It has the same length for all keys, so that no two tenants can
            make equal salts.
        key: the name of the key.
        of_file: whether the key is in the file, which has one for each of many, and not in the settings.
        admin: whether the key may do what only operators may.
        weight: the tenant's with scheduling `fair`, unless `tenant_weights` says another.
        everybody: whether its requests' priorities hold among everybody's, not only among its own.
        highest_priority: the least number that its requests may give as their `priority`.
        models: names that it may use; None: all.
        limits: what it may use; None: of a key that is not in a file.
    """

    name: str | None = None
    salt: str = ""
    key: str | None = field(default=None, compare=False)
    of_file: bool = field(default=False, compare=False)
    admin: bool = field(default=False, compare=False)
    weight: float = field(default=1.0, compare=False)
    everybody: bool = field(default=False, compare=False)
    highest_priority: int | None = field(default=None, compare=False)
    models: frozenset[str] | None = field(default=None, compare=False)
    limits: KeyLimits = field(default=KeyLimits(), compare=False)

    def name_for(self, user: str) -> str:
        """Whose share a request with this `user` uses."""
        return user if self.name is None else self.name

    def salted(self, cache_salt: str) -> str:
        """The full salt of a request that gave this `cache_salt`. What a tenant without a salt gives is never the salt of another,
        whatever it knows of it."""
        if not self.salt and _SALT.match(cache_salt):
            return ":" + cache_salt
        return self.salt + cache_salt

    def may_use(self, model: str) -> bool:
        """Whether this name of a model is for it."""
        return self.models is None or model in self.models

    def priority(self, asked: int | None) -> int:
        """The priority of a request that asked for this one, or for none.

        Raises:
            InvalidRequest: it may not ask for one that high.
        """
        if self.highest_priority is None:
            return asked or 0
        if asked is None:
            return max(0, self.highest_priority)
        if asked < self.highest_priority:
            raise InvalidRequest(
                f"`priority` must be at least {self.highest_priority} with this API key (highest_priority), got {asked}",
                param="priority",
            )
        return asked


ANYBODY = Tenant()
_Known = tuple[bytes, Tenant, float | None]  # a key's hash, whose it is, and until when in Unix seconds


def tenants_of(settings: Settings) -> Mapping[str, Tenant]:
    """The owner of each key of `--api-key`."""
    weights = dict(map(parse_weight, settings.tenant_weights))
    return {
        key: Tenant(
            name,
            _salt(key) if settings.isolate_keys else "",
            key=name,
            admin=name in settings.admin_keys,
            weight=weights.get(name, 1.0),
            everybody=name in settings.priority_keys,
        )
        for key, name in zip(settings.api_key, settings.tenants, strict=True)
    }


def tenant_of(entry: KeyEntry, weights: Mapping[str, float], *, isolate: bool) -> Tenant:
    """The owner of a key of a file, in which tenants have these weights."""
    own = entry.cache_salt or (entry.hash.hex() if isolate else "")
    return Tenant(
        entry.owner,
        _salt(own) if own else "",
        key=entry.name,
        of_file=True,
        admin=entry.admin,
        weight=weights[entry.owner],
        everybody=entry.highest_priority is not None,
        highest_priority=entry.highest_priority,
        models=None if entry.models is None else frozenset(entry.models),
        limits=entry.limits,
    )


class KeyRing:
    """All keys that the server knows, found by their hashes.

    A few keys of the settings alone are compared one by one, each in constant time, which takes less than a hash. Else a key is
    looked up by the first bytes of its hash, and what is found compared in constant time. How long that takes tells nothing about
    a key: a hash that begins as another one's says nothing of the key behind it.

    Args:
        settings: with the keys of `--api-key`, if any.
        clock: Unix seconds.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.time) -> None:
        self.required = settings.keyed
        self._isolate = settings.isolate_keys
        self._clock = clock
        plain = [(key.encode(), tenant) for key, tenant in tenants_of(settings).items()]
        self._few = plain if settings.api_keys is None and len(plain) <= _FEW else []
        self._fixed = [(digest_of(key), tenant) for key, tenant in plain]
        self.take(())

    def take(self, entries: Iterable[KeyEntry], weights: Mapping[str, float] | None = None) -> None:
        """These are the keys of the file from now on."""
        keys: list[_Known] = [(digest, tenant, None) for digest, tenant in self._fixed]
        for entry in entries:
            expires = None if entry.expires is None else entry.expires.timestamp()
            keys.append((entry.hash, tenant_of(entry, weights or {}, isolate=self._isolate), expires))
        self._known: dict[bytes, list[_Known]] = {}
        self._names: dict[str | None, _Known] = {}
        for known in keys:
            self._known.setdefault(known[0][:8], []).append(known)
            self._names[known[1].key] = known

    def of_key(self, name: str, owner: str) -> Tenant | None:
        """The holder of the key of this name, for what runs while nobody asks; None: it is not valid, or no longer one of
        the tenant `owner`."""
        if not self.required:
            return ANYBODY
        _, tenant, expires = self._names.get(name, (b"", ANYBODY, None))
        return tenant if tenant.name == owner and not self._is_over(expires) else None

    def _is_over(self, expires: float | None) -> bool:
        return expires is not None and self._clock() >= expires

    def sender(self, headers: Sequence[tuple[bytes, bytes]]) -> Tenant:
        """Whose key a request carries: OpenAI's clients send it as a bearer token, Anthropic's in a header of its own.

        Raises:
            Unauthorized: it carries none that is valid, or several of which one would have to be chosen.
        """
        given = dict(headers)
        if len(given) < len(headers):
            _ensure_single(headers)
        scheme, _, key = given.get(b"authorization", b"").partition(b" ")
        if scheme.lower() != b"bearer":
            key = given.get(b"x-api-key", b"")
        key = key.strip()
        for plain, tenant in self._few:
            if hmac.compare_digest(plain, key):
                return tenant
        digest = digest_of(key)
        for known, tenant, expires in self._known.get(digest[:8], ()):
            if hmac.compare_digest(known, digest):
                if self._is_over(expires):
                    raise _unauthorized(f"The API key {tenant.key} has expired.")
                return tenant
        raise _unauthorized("Send a valid API key in the header `Authorization: Bearer KEY`, or in `x-api-key`.")


def _ensure_single(headers: Sequence[tuple[bytes, bytes]]) -> None:
    for header in (b"authorization", b"x-api-key"):
        times = sum(name == header for name, _ in headers)
        if times > 1:
            raise _unauthorized(f"The header `{header.decode()}` must be sent once, got it {times} times.")


def _unauthorized(message: str) -> Unauthorized:
    return Unauthorized(message, headers={"WWW-Authenticate": "Bearer"})


def administers(tenant: Tenant, settings: Settings) -> bool:
    """Whether this tenant may do what only operators may: see and change engines, see everybody's use."""
    return tenant.admin or not settings.keyed


def ensure_administers(tenant: Tenant, settings: Settings, what: str) -> None:
    """Refuse a tenant that may not.

    Raises:
        ForbiddenKey: says what names the keys that may. `what` completes "This API key may not ...".
    """
    if not administers(tenant, settings):
        raise ForbiddenKey(
            f"This API key may not {what}; those that admin_keys (--admin-keys) names may, and those with `admin: true` in the "
            "file of --api-keys."
        )


def outranks(tenant: Tenant, settings: Settings) -> bool:
    """Whether the priorities of this tenant's requests hold among everybody's, not only among its own."""
    match settings.priority_scope:
        case "all":
            return True
        case "tenant" if settings.keyed:
            return tenant.everybody
        case "tenant":  # `user` is a tenant only where shares are given to users
            return settings.scheduling != "fair"
    return False


def _salt(key: str) -> str:
    """Made from the key alone: nobody can guess it, and it survives changes of names and of their order."""
    return blake2b(key.encode(), digest_size=16, person=b"headrace-tenant").hexdigest() + ":"
