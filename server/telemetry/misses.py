"""Why a prompt was not found in the KV cache: by the first token that differs from the nearest prompt known of its tenant."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from server.telemetry.black_box import TOKEN_BYTES, NotedRequest, NotedSequence

_SHOWN = 16  # tokens of a text
_MOST_COMPARED = 4096  # pairs of sequences, for one answer


class MissCause(StrEnum):
    """Why something was computed that might have been found."""

    OFF = "off"  # nothing is kept on this server
    SCORED = "scored"  # it asked for something of each token of its prompt
    FIRST = "first"  # no request of its tenant that is remembered begins with a block of it
    LONGER = "longer"  # all that is known of the nearest one was found, or is less than a block; what follows is new
    DIFFERS = "differs"  # a token differs from the nearest one's
    SALTED = "salted"  # the nearest one was sent with another salt, which keeps them apart
    ELSEWHERE = "elsewhere"  # another engine has it
    EVICTED = "evicted"  # it had been there, and made room for others
    GONE = "gone"  # it is not there any more, or was never kept


@dataclass(frozen=True, slots=True, kw_only=True)
class Nearest:
    """The known sequence that has the most tokens in common with a prompt, and how many."""

    record: NotedRequest
    sequence: NotedSequence
    common: int
    tokens: bytes  # its own, packed

    def continuations(self, prompt: bytes) -> tuple[bytes, bytes]:
        """Some tokens, packed, with which the prompt and this sequence go on after those that they share."""
        begin, end = self.common * TOKEN_BYTES, (self.common + _SHOWN) * TOKEN_BYTES
        return prompt[begin:end], self.tokens[begin:end]


@dataclass(frozen=True, slots=True, kw_only=True)
class Miss:
    """What was not found of a prompt, and why.

    Attributes:
        tokens: of whole blocks, not counting the last token of a prompt, which is always computed.
        lost: of these, those that would have been found but for the cause.
    """

    cause: MissCause
    tokens: int
    lost: int
    nearest: Nearest | None = None


def common_tokens(a: bytes, b: bytes) -> int:
    """Leading tokens that two packed sequences share."""
    low, high = 0, min(len(a), len(b)) // TOKEN_BYTES
    if a[: high * TOKEN_BYTES] == b[: high * TOKEN_BYTES]:
        return high
    while high - low > 1:  # the first `low` are equal, the first `high` are not
        middle = (low + high) // 2
        begin, end = low * TOKEN_BYTES, middle * TOKEN_BYTES
        low, high = (middle, high) if a[begin:end] == b[begin:end] else (low, middle)
    return low


def why_missed(
    earlier: Sequence[NotedRequest], record: NotedRequest, *, block_size: int, caching: bool, salts: bool = True
) -> list[Miss | None]:
    """Why parts of a request's prompts were computed: for each of its sequences, None if all of it that can be found was.

    Args:
        earlier: the requests it may be compared with, the newest first.
        record: the request.
        block_size: tokens of a KV block.
        caching: whether KV is kept at all.
        salts: whether it may be told of those that another salt keeps apart.
    """
    known = [(other, each) for other in earlier for each in other.sequences]
    prompts = {
        (id(each.prompt), each.salt): each for each in record.sequences
    }  # choices of one prompt have it in common
    known = known[: max(1, _MOST_COMPARED // max(1, len(prompts)))]
    near: dict[tuple[int, str], tuple[Nearest | None, Nearest | None]] = {}

    def miss(sequence: NotedSequence) -> Miss | None:
        prompt = len(sequence.prompt) // TOKEN_BYTES
        usable = (prompt - 1) // block_size * block_size
        missed = usable - sequence.lifetime.cached_tokens
        if missed <= 0:
            return None
        if not caching or not sequence.reads_cache:
            return Miss(cause=MissCause.SCORED if caching else MissCause.OFF, tokens=missed, lost=missed)
        key = id(sequence.prompt), sequence.salt
        if key not in near:
            near[key] = _nearest(sequence, known, salts)
        return _judged(sequence, *near[key], usable, block_size)

    return [miss(sequence) for sequence in record.sequences]


def _judged(sequence: NotedSequence, same: Nearest | None, other: Nearest | None, usable: int, block_size: int) -> Miss:
    """The cause, by the nearest with the same salt and the nearest with another; `usable` tokens could be found at most."""
    cached = sequence.lifetime.cached_tokens
    missed = usable - cached

    def kept(nearest: Nearest | None) -> int:
        return 0 if nearest is None else min(nearest.common // block_size * block_size, usable)

    if same is not None and kept(same) > cached:
        cause = _cause_of_absence(sequence, same)
        return Miss(cause=cause, tokens=missed, lost=kept(same) - cached, nearest=same)
    if kept(other) > cached:
        return Miss(cause=MissCause.SALTED, tokens=missed, lost=kept(other) - cached, nearest=other)
    if same is None or same.common == 0:
        return Miss(cause=MissCause.FIRST, tokens=missed, lost=0)
    there = len(same.tokens) // TOKEN_BYTES
    longer = same.common == there or same.common + block_size <= cached
    lost = 0 if longer else max(0, min(usable, there // block_size * block_size) - cached)
    return Miss(cause=MissCause.LONGER if longer else MissCause.DIFFERS, tokens=missed, lost=lost, nearest=same)


def _nearest(
    sequence: NotedSequence, known: Sequence[tuple[NotedRequest, NotedSequence]], salts: bool
) -> tuple[Nearest | None, Nearest | None]:
    """Of those with the same salt, and of those with another; of equally near ones the newest."""
    best: dict[bool, Nearest] = {}
    for record, each in known:
        apart = each.salt != sequence.salt
        if apart and not salts:
            continue
        tokens = each.tokens()
        common = common_tokens(sequence.prompt, tokens)
        if apart not in best or common > best[apart].common:
            best[apart] = Nearest(record=record, sequence=each, common=common, tokens=tokens)
    return best.get(False), best.get(True)


def _cause_of_absence(sequence: NotedSequence, nearest: Nearest) -> MissCause:
    """Why something is not there that another sequence had computed."""
    here, there = sequence.lifetime.runs, nearest.sequence.lifetime.runs
    if here and here[0].trail.evicted:
        return MissCause.EVICTED
    if here and there and here[0].engine not in {run.engine for run in there}:
        return MissCause.ELSEWHERE
    return MissCause.GONE
