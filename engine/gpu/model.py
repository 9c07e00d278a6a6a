"""The decoder on a GPU: the arithmetic of `engine/cpu/decoder.py` by Triton kernels, over the same kind of blocks.

Runs on CPU tensors too where Triton interprets (`TRITON_INTERPRET=1`), which is how it is tested without a GPU.

What belongs here: the order of the operations of a forward pass. Never: how a weight is held (`engine.gpu.linear`), which tokens
run, graphs, sampling.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod

import torch
from torch import Tensor

from configs.model.config import ModelConfig
from engine.gpu.batch import GpuBatch, Sharing, would_cascade
from engine.gpu.formats import block_parts
from engine.gpu.weights import GpuLayer, GpuWeights
from engine.memory import SCORED_ROWS
from engine.models.family import Axis
from engine.models.rope import Rope
from engine.sequence_input import SequenceInput
from engine.tensor_parallel.process_group import ProcessGroup, SingleProcess
from engine.tensor_parallel.shards import Shard, split_config
from kernels.gpu.attention.cascade import cascade_attention
from kernels.gpu.attention.chunk_work import ChunkWork, plan_chunks
from kernels.gpu.attention.decode import decode_attention
from kernels.gpu.attention.decode_work import DecodeWork, plan_decode
from kernels.gpu.attention.paged import paged_attention, tile_height
from kernels.gpu.kv.write_kv import write_kv
from kernels.gpu.linear.quantized import REHEARSED_ROWS
from kernels.gpu.norm.embedding import embed
from kernels.gpu.norm.rms_norm import last_norm, rms_norm
from kernels.gpu.norm.silu_mul import silu_mul
from kernels.gpu.workspace import Workspace

_TILE_ROWS = 128  # of cuBLAS' tiles: between two multiples of it, it has no reason to choose another kernel


class GpuKvPool:
    """Keys and values, block-major: one block is one contiguous range over all layers.

    Args:
        config: of one rank (`engine.tensor_parallel.shards.split_config`).
        blocks: how many.
        block_size: tokens of one.
        device: where they are.
        dtype: the model's type.
        fp8: store 8-bit floats (e4m3) instead, with a scale for each block, layer, side and head.

    Attributes:
        memory: uint8 [blocks, bytes]: a block, scales included, is one row and nothing else. Copying blocks copies rows of it.
        storage: view of it, [blocks, layers, 2, kv_heads, block_size, dim] in the model's type or float8_e4m3fn.
        scales: fp32 [blocks, layers, 2, kv_heads] of an fp8 pool, also a view; else None.
        layers: views of `storage`, one a layer: [blocks, 2, kv_heads, block_size, dim].
        layer_scales: views of `scales`, or None for each layer.
    """

    def __init__(
        self,
        config: ModelConfig,
        blocks: int,
        block_size: int,
        device: torch.device,
        dtype: torch.dtype,
        *,
        fp8: bool = False,
    ) -> None:
        self.block_size = block_size
        sides = (config.layers, 2, config.kv_heads)
        values, rest = block_parts(config, block_size, dtype, fp8=fp8)
        self.memory = torch.empty((blocks, values + rest), device=device, dtype=torch.uint8)
        held = self.memory[:, :values].view(torch.float8_e4m3fn if fp8 else dtype)
        self.storage = held.view(blocks, *sides, block_size, config.head_dim)
        self.scales = None
        if fp8:
            self.scales = self.memory[:, values : values + 4 * prod(sides)].view(torch.float32).view(blocks, *sides)
        self.layers = list(self.storage.unbind(1))
        self.layer_scales: list[Tensor] | list[None] = (
            [None] * config.layers if self.scales is None else list(self.scales.unbind(1))
        )

    @property
    def block_bytes(self) -> int:
        """Bytes of one block in all layers."""
        return self.memory.shape[1]


@dataclass(frozen=True, slots=True)
class _Turns:
    cos: Tensor  # fp32 [positions, dim / 2]
    sin: Tensor


@dataclass(frozen=True, slots=True)
class _Work:
    singles: Mapping[int, DecodeWork]  # by window
    chunks: ChunkWork | None  # where some are split


class GpuModel:
    """A model, or one rank's shard of it, on one GPU, behind the same interface as the CPU's (`engine.cpu.model.Model`).

    All ranks call the same methods with the same sequences, each over its own pool, and get the same results.

    Args:
        config: of the whole model.
        weights: this rank's shard; their device and type are those of the computation.
        pool: this rank's KV cache, on the same device: made for `split_config(config, group.size)`.
        context: longest sequence, in tokens.
        group: the processes that compute the model; None: this one alone.
        least_saved: group single tokens that share a prefix where that saves at least that many bytes per layer
            (`kernels.gpu.attention.cascade_groups.LEAST_SAVED`). A row's last bits then depend on what else is in the step;
            None: never.
        workspace: for the partial states of all steps, with and without a graph (`engine.gpu.memory_plan.states_bytes`); None:
            they get tensors of their own.

    Attributes:
        config: this rank's part of the description.
        context: as given.
        tiles: how chunks are cut into pieces: what `kernels.gpu.attention.chunk_work.list_pieces` takes.

    Raises:
        ValueError: the device is not this thread's current one, where Triton would launch its kernels.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: GpuWeights,
        pool: GpuKvPool,
        *,
        context: int,
        group: ProcessGroup | None = None,
        least_saved: int | None = None,
        workspace: Workspace | None = None,
    ) -> None:
        self.device = weights.embedding.device
        if self.device.type == "cuda" and self.device.index != torch.cuda.current_device():
            raise ValueError(
                f"the model is on {self.device}, this thread's device is cuda:{torch.cuda.current_device()}; "
                "call torch.cuda.set_device first"
            )
        self.group: ProcessGroup = group or SingleProcess()
        self.config = split_config(config, self.group.size)
        self.pool = pool
        self._weights = weights
        self._first_id = Shard.of(config, self.group.rank, self.group.size).axes[Axis.VOCABULARY].start
        self._sharing = None if least_saved is None else Sharing.of(self.config, pool.block_bytes, least_saved)
        self.context = context
        self._workspace = workspace
        heads = self.config.heads // self.config.kv_heads, self.config.head_dim, weights.embedding.element_size()
        height = tile_height(*heads, self.device, fp8=pool.scales is not None)
        self.tiles = {"group": heads[0], "kv_heads": self.config.kv_heads, "height": height}
        sliding = config.sliding_window or 0
        self._windows = [sliding if slides else 0 for slides in config.sliding_layers]  # of each layer, 0: none
        cos, sin = Rope(config, weights.rope_factors).rows(torch.arange(context))
        self._turns = _Turns(cos.flatten(1).contiguous().to(self.device), sin[:, 0, 1].contiguous().to(self.device))

    @torch.inference_mode()
    def forward(self, inputs: Sequence[SequenceInput]) -> Tensor:
        """Compute the chunks. Returns [results, hidden] in the model's type, after the final norm."""
        return self.compute(self.lay_out(inputs))

    def lay_out(self, inputs: Sequence[SequenceInput]) -> GpuBatch:
        """The host's part of `forward`: builds the batch and sends it to the device."""
        return GpuBatch.build(inputs, self.pool.block_size, self.device, self._sharing)

    def would_cascade(self, inputs: Sequence[SequenceInput]) -> bool:
        """Whether `lay_out` would make groups of single tokens."""
        return self._sharing is not None and would_cascade(inputs, self.pool.block_size, self._sharing)

    @torch.inference_mode()
    def compute(self, batch: GpuBatch, out: Tensor | None = None) -> Tensor:
        """The device's part of `forward`: [results, hidden], in `out` if given. It never waits for the device, so it can be
        captured as a CUDA graph, for a batch without groups whose padding rows have a slot of -1, and keys that say so
        (`engine.gpu.graph_inputs`)."""
        eps, weights, adapters = self.config.rms_norm_eps, self._weights, batch.adapters
        work = self._planned(batch)
        residual = self.group.sum(embed(weights.embedding, batch.token_ids, first=self._first_id))
        if self.config.scales.embedding_scale is not None:
            residual *= self.config.scales.embedding_scale
        change: Tensor | None = None
        for index, layer in enumerate(weights.layers):
            normed, residual = _norm(residual, change, layer.input_norm, eps)
            mixed = self.group.sum(layer.o(self._attend(normed, index, layer, batch, work), adapters))
            mixed = _normed(mixed, layer.after_attention_norm, eps)
            normed, residual = _norm(residual, mixed, layer.post_norm, eps)
            change = self.group.sum(layer.down(silu_mul(layer.gate_up(normed, adapters)), adapters))
            change = _normed(change, layer.after_mlp_norm, eps)
        x, before = (residual, None) if change is None else (change, residual)
        return last_norm(x, weights.final_norm, eps, before, batch.results, out=out)

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of all tokens: from [n, hidden] to [n, vocab] in the model's type, on every rank; a soft cap is computed in fp32,
        and gives fp32."""
        logits = self.group.gather(self._weights.head(hidden))[:, : self.config.vocab_size]
        cap = self.config.scales.final_soft_cap
        return logits if cap is None else logits.float().div_(cap).tanh_().mul_(cap)

    @torch.inference_mode()
    def warm_up(self, tokens: int, row_counts: Iterable[int]) -> None:
        """Have Triton build every kernel that a step may need, and libraries load theirs, with rows that write nowhere: otherwise
        the first long context or the first big batch would hold up all streams for up to seconds.

        Args:
            tokens: most rows of a step. It comes first, so that the allocator's largest pieces are there for whatever follows.
            row_counts: further numbers of rows: cuBLAS has other kernels for others.
        """
        shapes = [
            *((0, chunk, 1) for chunk in dict.fromkeys((max(tokens, 2), 2))),
            (1, 0, 1),
            (17, 0, self.context),
            (0, 2, self.context),
        ]
        for singles, chunk, keys in shapes:
            batch = GpuBatch.of_padding(singles, chunk, keys, self.pool.block_size, self.device)
            self.logits(self.compute(batch)[-SCORED_ROWS:])
        if self._sharing is not None:
            for keys in (self.pool.block_size + 1, self.context):
                self.compute(GpuBatch.of_one_group(keys, self.pool.block_size, self._sharing, self.device))
        most = max(row_counts, default=1)
        widest = max(tokens, most)
        ours = (rows for rows in REHEARSED_ROWS if rows <= widest)
        for rows in sorted({*row_counts, *range(_TILE_ROWS, tokens, _TILE_ROWS), tokens, *ours}, reverse=True):
            self._multiply(rows, with_head=rows <= max(most, SCORED_ROWS))

    def _multiply(self, rows: int, *, with_head: bool) -> None:
        """Run the products of each form once, and the sums of what ranks have of them."""
        config, zeros = self.config, partial(torch.zeros, dtype=self._weights.embedding.dtype, device=self.device)
        forms = {tuple((type(each), each.nbytes) for each in layer.products): layer for layer in self._weights.layers}
        widths = (config.hidden_size, config.heads * config.head_dim, config.hidden_size, config.intermediate_size)
        for layer in forms.values():
            *_, last = [product(zeros((rows, width))) for product, width in zip(layer.products, widths, strict=True)]
            self.group.sum(last)
        if with_head:
            self.logits(zeros((rows, config.hidden_size)))

    def _planned(self, batch: GpuBatch) -> _Work:
        """What attention has to do in all layers."""
        chunks = batch.work or plan_chunks(batch.chunks, **self.tiles, device=self.device)
        return _Work(self._singles(batch), chunks)

    def _singles(self, batch: GpuBatch) -> dict[int, DecodeWork]:
        """What decode attention has to do, for each window that layers have."""
        if not batch.singles:
            return {}
        of_all = (batch.kv_lengths[: batch.singles], batch.table_starts, batch.tables)
        inputs = dict.fromkeys(self._windows, (of_all, batch.longest_single))
        if batch.cascade is not None:
            rests = (batch.cascade.lengths, batch.cascade.table_starts, batch.cascade.tables)
            inputs[0] = rests, batch.cascade.longest_kv
        return {
            window: plan_decode(*those, kv_heads=self.config.kv_heads, longest_kv=longest, window=window)
            for window, (those, longest) in inputs.items()
        }

    def _attend(self, normed: Tensor, index: int, layer: GpuLayer, batch: GpuBatch, work: _Work) -> Tensor:
        """Attention of one layer up to its last projection: [rows, heads * dim]."""
        config = self.config
        queries = write_kv(
            layer.qkv(normed, batch.adapters),
            self.pool.layers[index],
            batch.positions,
            batch.slots,
            self._turns.cos,
            self._turns.sin,
            heads=config.heads,
            kv_heads=config.kv_heads,
            q_norm=layer.q_norm,
            k_norm=layer.k_norm,
            eps=config.rms_norm_eps,
            scales=self.pool.layer_scales[index],
        )
        return self._mix(queries, index, batch, work).flatten(1)

    def _mix(self, queries: Tensor, index: int, batch: GpuBatch, work: _Work) -> Tensor:
        """Attention itself: single rows split over their keys or by shared prefixes, chunks tiled."""
        kv, scales = self.pool.layers[index], self.pool.layer_scales[index]
        window = self._windows[index]
        one, out = batch.singles, torch.empty_like(queries)
        scale, soft_cap = self.config.attention_scale, self.config.scales.attention_soft_cap or 0.0
        if batch.cascade is not None and not window:
            cascade_attention(
                queries[:one],
                kv,
                batch.cascade,
                work.singles[0],
                scale=scale,
                soft_cap=soft_cap,
                scales=scales,
                out=out[:one],
                workspace=self._workspace,
            )
        elif one:
            decode_attention(
                queries[:one],
                kv,
                work.singles[window],
                scale=scale,
                soft_cap=soft_cap,
                scales=scales,
                out=out[:one],
                workspace=self._workspace,
            )
        if one < len(batch.kv_lengths):
            paged_attention(
                queries[batch.origin :],
                kv,
                batch.row_starts,
                batch.kv_lengths[one:],
                batch.block_tables,
                scale=scale,
                soft_cap=soft_cap,
                longest=batch.longest,
                window=window,
                scales=scales,
                out=out[batch.origin :],
                work=None if window else work.chunks,
                workspace=self._workspace,
            )
        return out


def _normed(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """`x` itself where the family has no such norm."""
    return x if weight is None else rms_norm(x, weight, eps)[0]


def _norm(residual: Tensor, change: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(norm of the sum, the sum)."""
    return rms_norm(residual, weight, eps) if change is None else rms_norm(change, weight, eps, residual=residual)
