"""One key as the file of `--api-keys` declares it: its fields, and what each may say."""

from dataclasses import dataclass, fields
from datetime import UTC, date, datetime
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from server.keys.secret import read_digest

NAME = r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}"
SECRETS = ("hash", "cache_salt")  # fields whose values are repeated nowhere
_MOST = 10**9


def _digest(value: Any) -> Any:
    return read_digest(value) if isinstance(value, str) else value


def _moment(value: Any) -> Any:
    """YAML makes a moment of what looks like one; in quotes it is text."""
    if isinstance(value, str):
        value = date.fromisoformat(value) if len(value) == len("2027-01-31") else datetime.fromisoformat(value)
    if isinstance(value, date) and not isinstance(value, datetime):
        return datetime(value.year, value.month, value.day, tzinfo=UTC)
    if isinstance(value, datetime) and value.tzinfo is None:
        raise ValueError("a moment without a time zone")
    return value


Name = Annotated[str, Field(pattern=f"^{NAME}$")]
Count = Annotated[int, Field(ge=1, le=_MOST)]

# What each field must be, as refusals say it.
DOMAINS = {
    "name": "1 to 64 letters, digits, `.`, `_`, `@` or `-`, the first a letter or digit",
    "hash": "`sha256:` and 64 hexadecimal digits in lower case",
    "tenant": "a name as `name` may be",
    "weight": "a number from 0.01 to 100",
    "highest_priority": f"an integer from {-(2**31)} to {2**31 - 1}",
    "models": "a list of at least one non-empty text",
    "requests_per_minute": f"an integer from 1 to {_MOST}",
    "tokens_per_minute": f"an integer from 1 to {_MOST}",
    "concurrent_requests": f"an integer from 1 to {_MOST}",
    "cache_salt": "text of 1 to 256 characters",
    "admin": "true or false",
    "expires": "a date, or a time with its zone as in 2027-01-31T12:00:00Z",
}


@dataclass(frozen=True, slots=True)
class KeyLimits:
    """What a key may use; None: as much as it likes. Tokens are those of prompts and answers together."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent_requests: int | None = None

    @property
    def any(self) -> bool:
        """Whether there is one at all."""
        return any(getattr(self, each.name) is not None for each in fields(self))


class KeyEntry(BaseModel):
    """A key. The field `hash` stands for it; the key itself is nowhere.

    Attributes:
        tenant: whose share of the work its requests use with scheduling `fair`; the key's own name if absent.
        weight: the tenant's. Keys of one tenant have the same, or say nothing.
        highest_priority: the lowest number that a request may give as its `priority`, and the one of those that give none, if it is
            above 0. The priorities of such a key hold among everybody's; those of others among their tenant's alone.
        models: names that it may use; all if absent.
        cache_salt: keys with the same one share cached prefixes with each other, and with nobody else.
        expires: from then on the key is refused.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    name: Name
    hash: Annotated[bytes, BeforeValidator(_digest), Field(min_length=32, max_length=32, repr=False)]
    tenant: Name | None = None
    weight: float | None = Field(None, ge=0.01, le=100)
    highest_priority: int | None = Field(None, ge=-(2**31), le=2**31 - 1)
    models: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)] | None = None
    requests_per_minute: Count | None = None
    tokens_per_minute: Count | None = None
    concurrent_requests: Count | None = None
    cache_salt: str | None = Field(None, min_length=1, max_length=256, repr=False)
    admin: bool = False
    expires: Annotated[datetime, BeforeValidator(_moment)] | None = None

    @property
    def owner(self) -> str:
        """The tenant."""
        return self.tenant or self.name

    @property
    def limits(self) -> KeyLimits:
        """What it may use."""
        return KeyLimits(self.requests_per_minute, self.tokens_per_minute, self.concurrent_requests)
