"""What engines can be meant for, and how a setting says of how many."""

from typing import Annotated

from pydantic import AfterValidator, Field

ROLES = ("mixed", "prefill", "decode")
MOST_ENGINES = 4096
_FORM = f"ROLE:COUNT with a ROLE of {', '.join(ROLES)} and a COUNT from 1 to {MOST_ENGINES}"


def parse_role(text: str) -> tuple[str, int]:
    """A role and how many engines have it from `ROLE:COUNT`.

    Raises:
        ValueError: the text is not such a pair, or there is no such role.
    """
    role, colon, count = text.partition(":")
    if role not in ROLES or not colon or not count.isdecimal() or not 1 <= int(count) <= MOST_ENGINES:
        raise ValueError(f"must be {_FORM}, got {text!r}")
    return role, int(count)


def _check_role(text: str) -> str:
    parse_role(text)
    return text


RoleCount = Annotated[str, AfterValidator(_check_role), Field(description=f"{_FORM}, as in prefill:1,decode:2")]
