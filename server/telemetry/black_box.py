"""The black box: the latest requests, each with its tokens, its lifetimes and its engines' trails, for whoever asks about one.

A request is noted when it is submitted, so that one that is still open can be asked about as well, and later ones can be held
against its tokens. What becomes of it afterwards is in its lifetimes; nothing is written here for each token.
"""

from array import array
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from server.telemetry.lifetime import Lifetime

TOKEN_BYTES = array("I").itemsize
_MOST_TOKENS = 2**22  # of all prompts that are kept: 16 MiB


def packed(token_ids: Sequence[int]) -> bytes:
    """Token ids as bytes, `TOKEN_BYTES` each, in which prefixes are compared at the speed of memory."""
    return array("I", token_ids).tobytes()


@dataclass(slots=True, kw_only=True)
class NotedSequence:
    """One sequence of a request. `prompt` is packed; `salt` is a secret, and never shown."""

    lifetime: Lifetime
    prompt: bytes
    salt: str
    reads_cache: bool

    def tokens(self) -> bytes:
        """Prompt and output so far, packed."""
        return self.prompt + packed(self.lifetime.output_ids)


@dataclass(slots=True, kw_only=True)
class NotedRequest:
    """One request.

    Attributes:
        id: of its answer.
        request_id: its `x-request-id`.
        owner: name of the key that it was sent with; None where no keys are required.
        tenant: whom its work counts for.
        received: in `time.monotonic()` seconds.
    """

    id: str
    request_id: str
    owner: str | None
    tenant: str
    model: str
    created: int
    received: float
    sequences: list[NotedSequence] = field(default_factory=list)

    @property
    def held(self) -> int:
        """Tokens of its prompts. Choices of one prompt share it."""
        return sum(len(prompt) for prompt in {id(each.prompt): each.prompt for each in self.sequences}.values())

    @property
    def ended(self) -> bool:
        """Whether all of its sequences have."""
        return all(each.lifetime.reason is not None for each in self.sequences)


class BlackBox:
    """The latest requests. All calls belong to the event loop's thread.

    Args:
        size: how many are kept; 0: none.
        texts: whether those who ask may read parts of texts.
    """

    def __init__(self, size: int = 256, *, texts: bool = True) -> None:
        self.size = size
        self.texts = texts
        self._records: OrderedDict[str, NotedRequest] = OrderedDict()
        self._held = 0

    def note(self, record: NotedRequest) -> None:
        """A request was submitted. The oldest ones go."""
        self._records[record.id] = record
        self._held += record.held
        while len(self._records) > self.size or (self._held > _MOST_TOKENS * TOKEN_BYTES and len(self._records) > 1):
            _, oldest = self._records.popitem(last=False)
            self._held -= oldest.held

    def find(self, name: str, owner: str | None, *, everybodys: bool) -> NotedRequest | None:
        """The request whose answer, or else whose `x-request-id`, has this name: the newest of `owner`'s, or `everybodys`."""
        found = self._records.get(name)
        named = (each for each in reversed(self._records.values()) if each.request_id == name)
        candidates = named if found is None else iter((found,))
        return next((each for each in candidates if everybodys or each.owner == owner), None)

    def earlier(self, record: NotedRequest) -> Iterator[NotedRequest]:
        """Those of its tenant that were submitted before it, the newest first."""
        before = False
        for each in reversed(self._records.values()):
            if before and (each.owner, each.tenant) == (record.owner, record.tenant):
                yield each
            before = before or each is record
