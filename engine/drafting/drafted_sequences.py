"""What is kept of each sequence that a draft model guesses for: its tokens, and which of their KV the draft has.

A draft's KV can be computed again from the tokens at any time, so it is dropped whenever another sequence needs its blocks, the one
that was guessed for longest ago first. Nobody waits for it, and no scheduler knows of it.
"""

from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

from engine.sequence import Sequence as TokenSequence
from scheduler.drafting import DraftCandidate


@dataclass(slots=True, kw_only=True)
class DraftedSequence:
    """One sequence as the draft has it.

    Attributes:
        tokens: the sequence as its sampler sees it: all that is known, and guesses behind that.
        known: how many are known.
        computed: of how many the draft's KV is there.
        table: its blocks in the draft's pool.
        chances: of the guesses that are being verified, as they were estimated.
    """

    tokens: TokenSequence
    known: int = 0
    computed: int = 0
    table: list[int] = field(default_factory=list)
    chances: list[float] = field(default_factory=list)

    @property
    def missing(self) -> int:
        """Known tokens whose KV is to be computed before there can be a guess; at least the newest one's."""
        return self.known - self.computed

    def follow(self, known: Sequence[int]) -> bool:
        """Take in what became of the guesses. Returns whether any of them was taken back."""
        tokens = self.tokens.tokens
        right, end = self.known, min(len(tokens), len(known))
        while right < end and tokens[right] == known[right]:
            right += 1
        wrong = right < len(tokens)
        del tokens[right:]
        tokens += known[right:]
        self.computed = min(self.computed, right)
        self.known = len(tokens)
        return wrong


class DraftedSequences:
    """All of them, over the blocks of one pool.

    Args:
        blocks: of the pool.
        block_size: tokens of a block.
    """

    def __init__(self, blocks: int, block_size: int) -> None:
        self._block_size = block_size
        self._free = list(range(blocks))
        self._known: OrderedDict[str, DraftedSequence] = OrderedDict()  # by request id, the one used last at the end

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._known

    def find(self, request_id: str) -> DraftedSequence | None:
        """What is kept of a request."""
        return self._known.get(request_id)

    def of(self, candidate: DraftCandidate) -> DraftedSequence:
        """The candidate's, new if there was none; it is the one used last."""
        found = self._known.get(candidate.request_id)
        if found is None:
            sampling = replace(candidate.sampling, logprobs=None, prompt_logprobs=None)
            tokens = TokenSequence(
                request_id=candidate.request_id,
                tokens=[],
                prompt_length=candidate.prompt_length,
                sampling=sampling,
                announced_length=candidate.prompt_length,
            )
            found = self._known[candidate.request_id] = DraftedSequence(tokens=tokens)
        self._known.move_to_end(candidate.request_id)
        return found

    def reserve(self, sequence: DraftedSequence, tokens: int, keep: Collection[str]) -> bool:
        """Blocks for so many tokens, taken from others if need be, but from none of `keep`. Returns False if there are too few."""
        lacking = -(-tokens // self._block_size) - len(sequence.table)
        while lacking > len(self._free):
            other = next((each for name, each in self._known.items() if each.table and name not in keep), None)
            if other is None:
                return False
            self._drop(other)
        for _ in range(lacking):
            sequence.table.append(self._free.pop())
        return True

    def forget(self, request_id: str) -> DraftedSequence | None:
        """The request has ended; its blocks are free. Returns what was kept."""
        found = self._known.pop(request_id, None)
        if found is not None:
            self._drop(found)
        return found

    def _drop(self, sequence: DraftedSequence) -> None:
        self._free += sequence.table
        sequence.table, sequence.computed = [], 0
