"""A draft model on the CPU: its own weights, KV pool and sampler, beside those of the model that it guesses for.

The head over a whole vocabulary is a third of what a small draft reads. Most tokens of a text are among the first ones, since a
vocabulary lists its merges in the order in which training found them worth it, or have occurred before. So a draft computes only
those (as FR-Spec does by counts, Zhao et al. 2025): what it does not consider, it cannot guess, which costs guesses, no answers.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from configs.settings import Settings
from engine.cpu.formats import choose_arithmetic
from engine.cpu.loading import PoolSize, load_model
from engine.cpu.memory_plan import SHORT_HEAD
from engine.cpu.model import FastModel, Model
from engine.drafting.draft_files import DraftFiles
from engine.drafting.draft_model import Guess
from engine.sampling.grammar_mask import GrammarMask
from engine.sampling.registry import standard_edits
from engine.sampling.sampler import CpuSampler
from engine.sequence import Sequence as TokenSequence
from engine.sequence_input import SequenceInput
from kernels.cpu.native import NativeOps
from kernels.cpu.packing import PackedMatrix

TILE = 16  # outputs of a packed matrix that lie together
FIXED = 1536  # tiles of a short head that are the first ones; the others are those of tokens of late


class DraftHead(Protocol):
    """From hidden states to scores.

    Attributes:
        considered: fp32 [n, tokens], those scores of the last call that are finite, whatever became of them since.
    """

    considered: Tensor

    def note(self, tokens: Iterable[int]) -> None:
        """These occur in a text."""
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """fp32 [n, hidden], contiguous, to fp32 [n, vocabulary], which may be changed and are valid until the next call."""
        ...


class WholeHead:
    """The model's own."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self.considered = torch.empty(0, 0)

    def note(self, tokens: Iterable[int]) -> None:
        """Nothing: all are considered."""

    def logits(self, hidden: Tensor) -> Tensor:
        """All scores."""
        self.considered = self._model.logits(hidden)
        return self.considered


class ShortHead:
    """Some tiles of a packed head, moved together: the first ones for ever, others while their tokens occur. The rest scores -inf.

    Args:
        ops: compute.
        head: the model's.
        vocab_size: of the model.
        fixed: how many tiles at its beginning are always there.
        others: room for so many more.
    """

    def __init__(self, ops: NativeOps, head: PackedMatrix, vocab_size: int, fixed: int, others: int) -> None:
        self._ops, self._head, self._vocab_size, self._fixed = ops, head, vocab_size, fixed
        tiles = [*range(fixed), *range(fixed, fixed + others)]
        self._tiles = torch.tensor(tiles)  # in the place of each record
        self._places = OrderedDict((tile, tile) for tile in tiles[fixed:])  # by tile, the one noted last at the end
        self._part = replace(head, records=head.records[: len(tiles)].clone(), outputs=len(tiles) * TILE)
        self._scores = torch.empty(0, len(head.records), TILE)
        self.considered = torch.empty(0, 0)

    def note(self, tokens: Iterable[int]) -> None:
        """Bring in the tiles of these; others leave, the one noted longest ago first."""
        for tile in sorted({token // TILE for token in tokens}):
            if tile in self._places:
                self._places.move_to_end(tile)
            elif tile >= self._fixed:
                left, place = self._places.popitem(last=False)
                self._places[tile] = place
                self._tiles[place] = tile
                self._part.records[place] = self._head.records[tile]
                self._scores[:, left] = float("-inf")

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of the tokens that are considered."""
        if len(self._scores) < len(hidden):
            self._scores = torch.full((len(hidden), len(self._head.records), TILE), float("-inf"))
        self.considered = self._ops.linear(hidden, self._part)
        out = self._scores[: len(hidden)].index_copy_(1, self._tiles, self.considered.view(len(hidden), -1, TILE))
        return out.flatten(1)[:, : self._vocab_size]


def head_of(model: Model, vocab_size: int) -> DraftHead:
    """A short one where the C++ kernels compute and the vocabulary is large, else the model's."""
    if isinstance(model, FastModel) and vocab_size >= 2 * SHORT_HEAD:
        return ShortHead(model.ops, model.head, vocab_size, FIXED, SHORT_HEAD // TILE - FIXED)
    return WholeHead(model)


class CpuDraftModel:
    """Computes and samples as a `CpuWorker` does, with the draws of the requests.

    Args:
        name: of the model.
        model: with its pool.
        sampler: of its vocabulary, without the masks of grammars.
        size: of the pool.
        vocab_size: of the draft.
    """

    def __init__(self, name: str, model: Model, sampler: CpuSampler, size: PoolSize, vocab_size: int) -> None:
        self.name = name
        self.blocks, self.block_size, self.context = size.blocks, size.block_size, size.context
        self.vocab_size = vocab_size
        self._model = model
        self._head = head_of(model, vocab_size)
        self._sampler = sampler

    @torch.inference_mode()
    def compute(self, inputs: Sequence[SequenceInput], sequences: Sequence[TokenSequence]) -> list[Guess]:
        """Compute the chunks; after those with a wanted row, sample. `sequences` are theirs, in order."""
        for item in inputs:
            self._head.note(item.token_ids)
        hidden = self._model.forward(inputs)
        if not sequences:
            return []
        logits = self._head.logits(hidden)
        sampled = self._sampler.sample(logits, list(sequences))  # which leaves the edited logits there
        chosen = [max(0, each.token_id) for each in sampled]
        chances = _chances(logits, chosen, self._head.considered, sequences)
        return [
            Guess(None if each.error else each.token_id, chance) for each, chance in zip(sampled, chances, strict=True)
        ]

    def forget(self, request_id: str) -> None:
        """Drop what the sampler keeps for a request, or what it counted has been taken back."""
        self._sampler.forget(request_id)


def _chances(logits: Tensor, tokens: list[int], considered: Tensor, sequences: Sequence[TokenSequence]) -> list[float]:
    """How likely each row's token is at its request's temperature, about: before top-k and the like."""
    found = []
    for row, token, scores, sequence in zip(logits, tokens, considered, sequences, strict=True):
        heat = 1.0 if sequence.sampling.greedy else max(sequence.sampling.temperature, 1e-3)
        total = (scores if heat == 1.0 else scores / heat).logsumexp(0)
        found.append(min(1.0, float((row[token] / heat - total).exp())))
    return found


def load_draft(files: DraftFiles, settings: Settings, size: PoolSize) -> CpuDraftModel:
    """Load a draft model, with a pool of as many blocks as the model's.

    Raises:
        ModelError: the files cannot be loaded.
    """
    config = files.config
    size = replace(size, context=min(size.context, config.max_model_len))
    model = load_model(files.source, config, choose_arithmetic(settings, config), settings.load_format, size)
    edits = standard_edits(config.vocab_size, config.eos_token_ids, masker=model.mask)
    sampler = CpuSampler(config.vocab_size, [edit for edit in edits if not isinstance(edit, GrammarMask)])
    return CpuDraftModel(files.source.name, model, sampler, size, config.vocab_size)
