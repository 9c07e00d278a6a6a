"""A loaded model over its KV pool: both kinds of CPU arithmetic behind one interface."""

import logging
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from configs.model.config import ModelConfig
from engine.cpu.batch import Batch
from engine.cpu.formats import Arithmetic
from engine.cpu.kv_pool import KvPool, PackedKvPool
from engine.cpu.packed_weights import PackedWeights
from engine.models.registry import family_of
from engine.models.rope import LayerRopes, Rope
from engine.sampling.edits import MaskArray, mask_rows
from engine.sequence_input import SequenceInput
from kernels.cpu.native import NativeChunk, NativeDecoder, NativeModel, NativeOps
from kernels.cpu.tiles import NO_TILES

log = logging.getLogger("headrace.engine")


class BlockStorage(Protocol):
    """Where KV lies."""

    @property
    def storage(self) -> Tensor:
        """All blocks: [blocks, ...] in any type, contiguous, so that a block is one range."""
        ...

    @property
    def block_size(self) -> int:
        """Tokens of a block."""
        ...


class Model(Protocol):
    """What a worker needs of a model.

    Contract: one call at a time; what a method returns is valid until its next call. `forward` writes keys and values of the
    rows it computes into the blocks that their sequences name, and reads those of earlier positions there.
    """

    @property
    def pool(self) -> BlockStorage:
        """Its KV cache."""
        ...

    def forward(self, inputs: Sequence[SequenceInput]) -> Tensor:
        """Compute the chunks. Returns fp32 [results, hidden] after the final norm: the wanted rows, laid end to end."""
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of all tokens: from fp32 [n, hidden], contiguous, to fp32 [n, vocab]."""
        ...

    def mask(self, logits: Tensor, rows: Sequence[int], allowed: MaskArray) -> None:
        """Add -inf to what is not allowed in these rows of `logits`, in place."""
        ...


class ExactDecoder(Protocol):
    """Computes a step's rows in fp32: `engine.cpu.decoder.Decoder`, or transformers' own (`engine.cpu.fallback`)."""

    def forward(self, batch: Batch, pool: KvPool) -> Tensor:
        """All rows, writing their keys and values into `pool`: fp32 [rows, hidden] as the head takes them."""
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of all tokens: from fp32 [n, hidden] to fp32 [n, vocab]."""
        ...


class ExactModel:
    """fp32 on the dequantized weights, by torch."""

    def __init__(self, decoder: ExactDecoder, pool: KvPool) -> None:
        self.pool = pool
        self._decoder = decoder

    def forward(self, inputs: Sequence[SequenceInput]) -> Tensor:
        """Compute all rows to the end, and pick out the wanted ones."""
        hidden = self._decoder.forward(Batch.build(inputs, self.pool), self.pool)
        rows: list[int] = []
        end = 0
        for item in inputs:
            end += len(item.token_ids)
            rows += range(end - item.results, end)
        return hidden if len(rows) == end else hidden[rows]

    def logits(self, hidden: Tensor) -> Tensor:
        """The product with the head, in fp32."""
        return self._decoder.logits(hidden)

    def mask(self, logits: Tensor, rows: Sequence[int], allowed: MaskArray) -> None:
        """Row by row."""
        mask_rows(logits, rows, allowed)


class FastModel:
    """int8 products over 4- and 8-bit weights and a bf16 KV cache, by the C++ kernels.

    A row's result is the same bit for bit in any batch and for any cut of its prompt into chunks.

    Args:
        config: of the model.
        weights: packed.
        pool: its KV cache.
        arithmetic: names the library.
        context: longest sequence, in tokens.
        threads: how many compute.

    Attributes:
        head: its weights.
        ops: the team that computes.

    Raises:
        ValueError: `arithmetic` has no library.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: PackedWeights,
        pool: PackedKvPool,
        *,
        arithmetic: Arithmetic,
        context: int,
        threads: int,
    ) -> None:
        if arithmetic.library is None:
            raise ValueError("a FastModel needs the C++ kernels' library")
        self.pool = pool
        ropes, scales = LayerRopes(config, weights.rope_factors), config.scales
        model = NativeModel(
            heads=config.heads,
            kv_heads=config.kv_heads,
            dim=config.head_dim,
            eps=config.rms_norm_eps,
            activation=family_of(config).activation,
            layers=weights.layers,
            embedding=weights.embedding,
            head=weights.head,
            final_norm=weights.final_norm,
            turns=[_table(rope, context) for rope in ropes.ropes],
            turn_of_layer=ropes.of_layer,
            attention_scale=scales.attention_scale,
            attention_soft_cap=scales.attention_soft_cap,
            final_soft_cap=scales.final_soft_cap,
            embedding_scale=scales.embedding_scale,
            residual_scale=scales.residual_scale,
            logit_scale=scales.logit_scale,
        )
        self.head = weights.head
        self.ops = NativeOps(arithmetic.library, threads)
        if self.ops.tiles != NO_TILES:
            log.info("int8 products in AMX's %s, as measured on this processor", self.ops.tiles)
        self._decoder = NativeDecoder(self.ops, model)

    def forward(self, inputs: Sequence[SequenceInput]) -> Tensor:
        """Compute the chunks, which have no LoRA adapter (`CpuBackend.adapters`); the last layer computes only the wanted rows."""
        assert not any(item.adapter for item in inputs), "the int8 kernels compute no LoRA adapter"
        token_ids = [token for item in inputs for token in item.token_ids]
        chunks = [NativeChunk(len(item.token_ids), item.start, item.block_table, item.results) for item in inputs]
        return self._decoder.forward(token_ids, chunks, self.pool.storage)

    def logits(self, hidden: Tensor) -> Tensor:
        """The product with the head's groups, in int8."""
        return self._decoder.logits(hidden)

    def mask(self, logits: Tensor, rows: Sequence[int], allowed: MaskArray) -> None:
        """By all threads."""
        self.ops.mask(logits, rows, torch.from_numpy(allowed))


def _table(rope: Rope, context: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of all positions, [context, rotated / 2] each."""
    cos, sin = rope.rows(torch.arange(context))
    return cos.flatten(1).contiguous(), sin[:, 0, 1].contiguous()
