"""The black box: the latest requests, each with its tokens, its lifetimes and its engines' trails, for whoever asks about one.

A request is noted when it is submitted, so that one that is still open can be asked about as well, and later ones can be held
against its tokens. What becomes of it afterwards is in its lifetimes; nothing is written here for each token.
"""

from array import array
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain

from server.telemetry.lifetime import Lifetime

TOKEN_BYTES = array("I").itemsize
_MOST_BYTES = 2**25  # of all that is kept
_SEQUENCE_BYTES = 1024  # that a sequence takes beside its tokens and what engines wrote down of it
_ENTRY_BYTES = 256  # of what they wrote down
_OUTPUT_BYTES = 40  # of a token that has arrived: a number in a list


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
        held: bytes that it is known to take.
    """

    id: str
    request_id: str
    owner: str | None
    tenant: str
    model: str
    created: int
    received: float
    sequences: list[NotedSequence] = field(default_factory=list)
    held: int = 0

    @property
    def ended(self) -> bool:
        """Whether all of its sequences have."""
        return all(each.lifetime.reason is not None for each in self.sequences)

    @property
    def size(self) -> int:
        """Bytes that it takes. Choices of one prompt share it."""
        prompts = {id(each.prompt): len(each.prompt) for each in self.sequences}
        return sum(prompts.values()) + sum(_SEQUENCE_BYTES + _written(each.lifetime) for each in self.sequences)


def _written(lifetime: Lifetime) -> int:
    """Bytes of its outputs so far, and of what engines wrote down."""
    trails = [run.trail for run in lifetime.runs]
    entries = sum(len(each.waits) + len(each.chunks) + len(each.preemptions) + len(each.loads) for each in trails)
    return _OUTPUT_BYTES * len(lifetime.output_ids) + _ENTRY_BYTES * (len(trails) + entries)


class BlackBox:
    """The latest requests. All calls belong to the event loop's thread.

    Args:
        size: how many are kept; 0: none.
        texts: whether those who ask may read parts of texts, and ids of others in full.
        most_bytes: that all together may take. Outputs count once their request has ended: until then they are held in any case.
    """

    def __init__(self, size: int = 256, *, texts: bool = True, most_bytes: int = _MOST_BYTES) -> None:
        self.size = size
        self.texts = texts
        self._most_bytes = most_bytes
        self._records: OrderedDict[str, NotedRequest] = OrderedDict()
        self._held = 0
        self._open: list[NotedRequest] = []  # those whose outputs are not counted yet
        self._look_at = 16  # when so many are

    def note(self, record: NotedRequest) -> None:
        """A request was submitted. The oldest ones go."""
        self._records[record.id] = record
        self._weigh(record)
        self._open.append(record)
        if len(self._open) >= self._look_at:
            self._count_ended()
        while len(self._records) > self.size or (self._held > self._most_bytes and len(self._records) > 1):
            _, oldest = self._records.popitem(last=False)
            self._held -= oldest.held

    def _count_ended(self) -> None:
        ended = [each for each in self._open if each.ended]
        self._open = [each for each in self._open if not each.ended and each.id in self._records]
        for record in ended:
            if record.id in self._records:
                self._weigh(record)
        self._look_at = 16 + 2 * len(self._open)  # so that each is looked at a few times, however many are open

    def _weigh(self, record: NotedRequest) -> None:
        self._held -= record.held
        record.held = record.size
        self._held += record.held

    def find(self, name: str, owner: str | None, *, everybodys: bool) -> NotedRequest | None:
        """The request whose answer, or else whose `x-request-id`, has this name: the newest of `owner`'s, or `everybodys`."""
        found = self._records.get(name)
        named = (each for each in reversed(self._records.values()) if each.request_id == name)
        candidates = named if found is None else chain((found,), named)
        return next((each for each in candidates if everybodys or each.owner == owner), None)

    def earlier(self, record: NotedRequest) -> list[NotedRequest]:
        """Those of its tenant that were submitted before it, the newest first."""
        newest = list(reversed(self._records.values()))
        before = newest[newest.index(record) + 1 :] if record.id in self._records else []
        return [each for each in before if (each.owner, each.tenant) == (record.owner, record.tenant)]
