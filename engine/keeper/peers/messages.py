"""What engines say to the keepers of other machines, and what these answer. `Blocks` is followed by frames with their bytes."""

from dataclasses import dataclass, field

from scheduler.types.block_hash import BlockKey

# --- engine -> keeper ---


@dataclass(slots=True, kw_only=True)
class Visit:
    """The first message of each connection. The keeper refuses what differs from the blocks that it has."""

    fingerprint: str  # of model, KV format and block size
    block_bytes: int
    follows: bool  # tell me on this connection what is there, what comes and what goes


@dataclass(slots=True, kw_only=True)
class Fetch:
    """Send me these contents."""

    block_keys: list[BlockKey]


@dataclass(slots=True, kw_only=True)
class Where:
    """Where is your memory? For a transfer engine that reads it by itself."""


@dataclass(slots=True, kw_only=True)
class LendOut:
    """Keep these contents where they are: I read them."""

    block_keys: list[BlockKey]


@dataclass(slots=True, kw_only=True)
class GiveBack:
    """What was lent has been read."""

    lease: int


@dataclass(slots=True, kw_only=True)
class Doubt:
    """These contents must be read by nobody."""

    keys: list[bytes]


@dataclass(slots=True, kw_only=True)
class Alive:
    """Are you there?"""


VISITS = (Visit, Fetch, Where, LendOut, GiveBack, Doubt, Alive)
VisitMessage = Visit | Fetch | Where | LendOut | GiveBack | Doubt | Alive


# --- keeper -> engine ---


@dataclass(slots=True, kw_only=True)
class TurnedAway:
    """There is nothing for you here; the sentence says why."""

    reason: str


@dataclass(slots=True, kw_only=True)
class News:
    """What has come since the last of these, and what has gone. The first ones have all that is there."""

    came: list[tuple[BlockKey, int]] = field(default_factory=list)
    went: list[bytes] = field(default_factory=list)


@dataclass(slots=True, kw_only=True)
class Blocks:
    """The contents asked for, in order: a frame for each that is there."""

    there: list[bool]


@dataclass(slots=True, kw_only=True)
class Here:
    """It is there."""

    agent: str  # the transfer engine's name for this process
    metadata: bytes  # by which it is reached
    address: int  # of the first slot


@dataclass(slots=True, kw_only=True)
class LentOut:
    """They stay there until they are given back, but no longer than that takes at most."""

    lease: int
    slots: list[int]  # of each content; `NOT_THERE`


@dataclass(slots=True, kw_only=True)
class WasThere:
    """They were there until now."""


@dataclass(slots=True, kw_only=True)
class StillHere:
    """Yes."""


ANSWERS = (TurnedAway, News, Blocks, Here, LentOut, WasThere, StillHere)
AnswerMessage = TurnedAway | News | Blocks | Here | LentOut | WasThere | StillHere
