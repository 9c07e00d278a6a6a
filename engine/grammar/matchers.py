"""Where each constrained sequence stands in its grammar, after every token that it has.

A matcher is a function of the grammar and the output so far. So a sequence that is resumed, in another process too, stands where
it stood: its tokens are accepted anew.
"""

import threading
from collections import OrderedDict
from collections.abc import Collection
from collections.abc import Sequence as Listed
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from engine.ipc.vocabulary import TokenSpellings, matcher_of
from engine.sequence import Sequence
from scheduler.types.messages import AddRequest
from scheduler.types.sampling_params import SamplingParams

if TYPE_CHECKING:
    from llguidance import LLExecutor, LLMatcher, LLTokenizer

Masks = npt.NDArray[np.int32]
_COMPILED = 64  # grammars that are kept
_ALONE = 4  # masks that are made one after the other: handing them to threads takes longer than making them


class _Walk:
    """One sequence's matcher, and how many of its tokens have been accepted."""

    def __init__(self, matcher: "LLMatcher", sequence: Sequence) -> None:
        self.matcher = matcher
        self.forced: tuple[int, list[int]] = (0, [])  # after so many tokens, what follows
        self._tokens = sequence.tokens
        self._accepted = sequence.prompt_length

    def follows(self, sequence: Sequence) -> bool:
        """False if the id now names another list of tokens, or one shorter than what was accepted."""
        return self._tokens is sequence.tokens and self._accepted <= len(sequence.tokens)

    def note_forced(self) -> list[int]:
        """What must follow all tokens that are known; empty if that is not one text. Found once after each of them."""
        if self.forced[0] != self._accepted:
            self.forced = self._accepted, self.matcher.compute_ff_tokens()
        return self.forced[1]

    def catch_up(self) -> "LLMatcher":
        """The matcher after all tokens that are known."""
        fresh = self._tokens[self._accepted :]
        if fresh and not self.matcher.is_stopped():
            self.matcher.consume_tokens(fresh)
        self._accepted += len(fresh)
        return self.matcher


class Grammars:
    """The grammars of one worker's sequences. Used by the worker's thread alone, but for what says otherwise.

    Args:
        vocab_size: of the model.
        eos_token_ids: the tokens that end an answer.
    """

    def __init__(self, vocab_size: int, eos_token_ids: Collection[int]) -> None:
        self._vocab_size = vocab_size
        self._eos_token_ids = tuple(eos_token_ids)
        # Of a mask: one bit for each token, and one for an end that is no token.
        self._words = (vocab_size + (not self._eos_token_ids) + 31) // 32
        self._tokenizer: LLTokenizer | None = None
        self._executor: LLExecutor | None = None
        self._walks: dict[str, _Walk] = {}
        # By grammar, the one used last at the end; never walked.
        self._compiled: OrderedDict[str, LLMatcher] = OrderedDict()
        self._kept: dict[str, LLMatcher] = {}  # by open request, however many others are compiled before it runs
        self._compiling = threading.Lock()

    def missing(self, request: AddRequest) -> str:
        """The request's grammar, if there is one that is not compiled; else empty. What is compiled is kept until `ended`."""
        grammar = request.sampling.grammar
        if grammar and (compiled := self._compiled.get(grammar)) is not None:
            self._kept[request.request_id] = compiled
            return ""
        return grammar

    @property
    def keeps(self) -> bool:
        """Whether a grammar is kept for any request."""
        return bool(self._kept)

    def ended(self, request_id: str) -> None:
        """Nobody will ask for the request's grammar again, or it is compiled anew."""
        self._kept.pop(request_id, None)

    def prepare(self, sampling: SamplingParams) -> None:
        """Compile the request's grammar; for the first one the vocabulary is read. From any thread."""
        with self._compiling:
            if self._tokenizer is None:
                spellings = TokenSpellings.read(Path(sampling.vocabulary))
                self._tokenizer = spellings.tokenizer(self._vocab_size, self._eos_token_ids)
            if sampling.grammar not in self._compiled:
                self._compiled[sampling.grammar] = matcher_of(self._tokenizer, sampling.grammar)
            self._compiled.move_to_end(sampling.grammar)
            if len(self._compiled) > _COMPILED:
                self._compiled.popitem(last=False)

    def masks(self, sequences: Listed[Sequence]) -> Masks:
        """What may follow each sequence: int32 [sequences, words], bit `i % 32` of word `i // 32` stands for token `i`.

        A sequence whose grammar turned out to be too complex has no bit set.
        """
        found = np.zeros((len(sequences), self._words), dtype=np.int32)
        jobs = []
        for row, sequence in enumerate(sequences):
            matcher = self._walk(sequence).catch_up()
            if not matcher.is_error():
                jobs.append((matcher, row))
        start, size = found.ctypes.data, found.strides[0]
        if len(jobs) > _ALONE:
            self._threads().unsafe_compute_mask_ptr(jobs, start, size, len(sequences))
        else:
            for matcher, row in jobs:
                matcher.unsafe_compute_mask_ptr(start + row * size, size)
        return found

    def complete(self, sequence: Sequence) -> bool:
        """Whether nothing can follow what the sequence has. If something can, it also notes what must."""
        walk = self._walk(sequence)
        matcher = walk.catch_up()
        if matcher.is_stopped():
            return not matcher.is_error()
        walk.note_forced()
        return False

    def only(self, sequence: Sequence) -> int | None:
        """The one token that may follow, where the grammar leaves no choice about the text.

        What must follow is spelled in one way: masks allow no other there (`TokenParser.compute_mask` of llguidance).
        """
        walk = self._walk(sequence)
        if walk.catch_up().is_stopped():
            return None
        tokens = walk.note_forced()
        return tokens[0] if tokens else None

    def forced(self, request_id: str, known: int) -> list[int]:
        """The tokens that spell what must follow the first `known` of a sequence, as far as that was noted. From any thread."""
        walk = self._walks.get(request_id)
        after, tokens = walk.forced if walk is not None else (0, [])
        return tokens if after == known else []

    def forget(self, request_id: str) -> None:
        """The request has ended."""
        self._walks.pop(request_id, None)

    def _walk(self, sequence: Sequence) -> _Walk:
        walk = self._walks.get(sequence.request_id)
        if walk is None or not walk.follows(sequence):
            walk = self._walks[sequence.request_id] = _Walk(self._begin(sequence), sequence)
        return walk

    def _begin(self, sequence: Sequence) -> "LLMatcher":
        """A new walk through the request's grammar."""
        sampling = sequence.sampling
        compiled = self._kept.get(sequence.request_id, self._compiled.get(sampling.grammar))
        while compiled is None:
            self.prepare(sampling)
            compiled = self._compiled.get(sampling.grammar)
        return compiled.deep_copy()

    def _threads(self) -> "LLExecutor":
        if self._executor is None:
            import llguidance

            self._executor = llguidance.LLExecutor()
        return self._executor
