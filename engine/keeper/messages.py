"""What engines and keeper say to each other. Names and places of blocks cross the socket, never their bytes.

A connection belongs to one engine and has one lease at most: slots to be written (`Reserve` to `Commit`), or to be read (`Lend` or
`Read` to `Release`). It ends with the connection. Each request gets one answer, but `Contents` (several) and `Follow` (no end).
"""

from dataclasses import dataclass, field

from scheduler.types.block_hash import BlockKey

NOT_THERE = -1  # instead of a slot
KNOWN = -2  # the content is there already


# --- engine -> keeper ---


@dataclass(slots=True, kw_only=True)
class Hello:
    """The first request of each connection. The keeper refuses what differs from the blocks that it has."""

    pid: int
    client: int  # the engine's own number, the same in all its connections
    fingerprint: str  # of model, KV format and block size
    block_bytes: int
    block_tokens: int
    element_bytes: int
    fresh: bool  # the engine's first connection since it lost the keeper or started: none of its earlier copies is under way


@dataclass(slots=True, kw_only=True)
class Reserve:
    """Give me slots for those of these contents that are not there."""

    block_keys: list[BlockKey]


@dataclass(slots=True, kw_only=True)
class Commit:
    """The reserved slots are written, or given up."""

    checksums: list[int | None]  # of the bytes of each slot, in order; None: it was not filled


@dataclass(slots=True, kw_only=True)
class Lend:
    """Let me read these contents."""

    block_keys: list[BlockKey]


@dataclass(slots=True, kw_only=True)
class Release:
    """What was lent has been read. The answer says that it was there until now."""


@dataclass(slots=True, kw_only=True)
class Write:
    """Write what is lent to me to the disk, and take it back."""


@dataclass(slots=True, kw_only=True)
class Read:
    """Let me read these contents of the disk: bring them into memory, and lend them to me."""

    block_keys: list[BlockKey]


@dataclass(slots=True, kw_only=True)
class Look:
    """Can the disk still be reached?"""


@dataclass(slots=True, kw_only=True)
class Keep:
    """Evict these contents, present or yet to come, only where nothing else is left, until then (`time.monotonic`)."""

    tier: str
    keys: list[bytes]
    until: float


@dataclass(slots=True, kw_only=True)
class Asked:
    """A new request can use these contents, which form a prefix. For a policy of eviction that learns from it."""

    tier: str
    keys: list[bytes]


@dataclass(slots=True, kw_only=True)
class Drop:
    """These contents are in doubt, or nobody's any more."""

    tier: str
    keys: list[bytes]


@dataclass(slots=True, kw_only=True)
class Contents:
    """What is there?"""

    tier: str


@dataclass(slots=True, kw_only=True)
class Follow:
    """Tell me on this connection what others put, and what goes."""


REQUESTS = (Hello, Reserve, Commit, Lend, Release, Write, Read, Look, Keep, Asked, Drop, Contents, Follow)
Request = Hello | Reserve | Commit | Lend | Release | Write | Read | Look | Keep | Asked | Drop | Contents | Follow


# --- keeper -> engine ---


@dataclass(slots=True, kw_only=True)
class Welcome:
    """Where blocks lie in the shared memory: `slots` rows of the size asked for, from the byte `offset` on."""

    slots: int
    offset: int


@dataclass(slots=True, kw_only=True)
class Refused:
    """The request makes no sense here; the sentence says why. The connection ends."""

    reason: str
    final: bool = False  # the engine must not start like this


@dataclass(slots=True, kw_only=True)
class DiskLost:
    """The disk tier cannot be used; the sentence says why. Instead of the answer to what concerns it."""

    reason: str


@dataclass(slots=True, kw_only=True)
class GivenSlots:
    """A slot for each content that was asked for, `NOT_THERE` or `KNOWN`."""

    slots: list[int]


@dataclass(slots=True, kw_only=True)
class Sizes:
    """The bytes on disk of each content that was lent; 0: it is not there."""

    sizes: list[int]


@dataclass(slots=True, kw_only=True)
class Done:
    """It is done."""


@dataclass(slots=True, kw_only=True)
class There:
    """A part of a tier's contents, least recently used first, with the bytes that each takes."""

    contents: list[tuple[BlockKey, int]]
    more: bool = False  # another part follows


@dataclass(slots=True, kw_only=True)
class Changed:
    """What others have put into a tier since the last of these, and what has gone."""

    tier: str
    came: list[tuple[BlockKey, int]] = field(default_factory=list)
    went: list[bytes] = field(default_factory=list)


REPLIES = (Welcome, Refused, DiskLost, GivenSlots, Sizes, Done, There, Changed)
Reply = Welcome | Refused | DiskLost | GivenSlots | Sizes | Done | There | Changed
