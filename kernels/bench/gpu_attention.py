"""Attention kernels beside what else the same GPU does: its copies, torch's fused attention, FlashInfer's paged kernels.

torch has several fused kernels, none of which is always best: each that accepts the shapes is measured by name, on contiguous
tensors, and the fastest counts.
"""

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right

from kernels.bench.lines import Lines, Result, Skipped
from kernels.bench.timing import Timer, copies
from kernels.gpu.attention import decode as decoding
from kernels.gpu.attention import paged as chunks
from kernels.gpu.attention.boxes import LEAST, by_boxes, refusal
from kernels.gpu.attention.chunk_work import ChunkWork, plan_chunks
from kernels.gpu.attention.decode import decode_attention
from kernels.gpu.attention.decode_work import plan_decode
from kernels.gpu.attention.launch import Config, capability, chip
from kernels.gpu.attention.paged import paged_attention

BLOCK = 32
WARPS = 8  # of a multiprocessor, shared out among programs of other shapes
_FUSED = {"FlashAttention-2": SDPBackend.FLASH_ATTENTION, "cuDNN": SDPBackend.CUDNN_ATTENTION}
_WORKSPACE = 256 * 2**20  # bytes, for FlashInfer


@dataclass(frozen=True, slots=True)
class Shape:
    """The shape of a model's attention. The defaults are Llama 3 8B's."""

    heads: int = 32
    kv_heads: int = 8
    dim: int = 128
    dtype: torch.dtype = torch.bfloat16
    layers: int = 32  # of the pool, as blocks of all layers lie side by side: 64 x 4096 keys are spread over 34 GB

    @property
    def token_bytes(self) -> int:
        """Bytes of one token's keys and values in one layer."""
        return 2 * self.kv_heads * self.dim * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class _Batch:
    """Sequences of `rows` new tokens each at `context` keys, over a pool [blocks, layers, 2, kv_heads, BLOCK, dim]."""

    queries: torch.Tensor
    kv: torch.Tensor
    tables: torch.Tensor
    lengths: torch.Tensor
    rows: int
    context: int

    @property
    def row_starts(self) -> torch.Tensor:
        """int32 [sequences + 1]."""
        return torch.arange(0, len(self.queries) + 1, self.rows, dtype=torch.int32, device=self.queries.device)

    @property
    def pages(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The block tables as FlashInfer takes them: where each sequence's begins, all of them, tokens in each last block."""
        sequences, blocks = self.tables.shape
        starts = torch.arange(0, sequences * blocks + 1, blocks, dtype=torch.int32, device=self.tables.device)
        return starts, self.tables.flatten(), (self.lengths - 1) % BLOCK + 1


class AttentionBench:
    """Attention over scattered blocks, enough layers of them that nothing is read from a cache."""

    def __init__(self, timer: Timer, shape: Shape, bandwidth: float) -> None:
        self._timer = timer
        self._shape = shape
        self._bandwidth = bandwidth
        self._scale = shape.dim**-0.5

    def decode(
        self, sequences: int, context: int, stages: tuple[int, ...] = (), shapes: Iterable[tuple[int, int]] = ()
    ) -> Lines:
        """One new token per sequence at `context` keys: bytes of KV per second, relative to copy bandwidth and to FlashInfer.

        Args:
            sequences: in the batch.
            context: keys of each.
            stages: pipelines to measure beside the one that `config_for` chooses.
            shapes: (warps, keys at a time) of programs to measure beside the ones that it chooses.
        """
        size = sequences * context * self._shape.token_bytes
        layers = max(copies(size), self._shape.layers)
        batch = self._batch(layers, sequences, 1, context)
        name = f"decode attention, {sequences} x {context}"
        starts = torch.arange(sequences, dtype=torch.int32, device=self._timer.device) * batch.tables.shape[1]
        heads = self._shape.kv_heads
        work = plan_decode(batch.lengths, starts, batch.tables.flatten(), kv_heads=heads, longest_kv=context)

        def seconds(config: Config | None) -> float:
            return self._timer.seconds(
                lambda turn: decode_attention(
                    batch.queries,
                    batch.kv[:, turn % layers],
                    work,
                    scale=self._scale,
                    config=config,
                )
            )

        ours = seconds(None)
        yield Result(name, ours, size / ours / 1e9, self._bandwidth / 1e9, "GB/s")
        for count in stages:
            other = seconds(self._config(decoding.config_for, stages=count))
            yield Result(f"{name}, {count} stages", other, size / other / 1e9, self._bandwidth / 1e9, "GB/s")
        for warps, keys in shapes:
            shape = {"warps": warps, "keys": keys, "resident": WARPS // warps}
            other = seconds(self._config(decoding.config_for, **shape))
            line = f"{name}, {warps} warps, {keys} keys"
            yield Result(line, other, size / other / 1e9, self._bandwidth / 1e9, "GB/s")
        peer = self._flashinfer_decode(batch, copies(size))
        if peer is not None:
            yield Result(f"{name}, of FlashInfer", ours, size / ours / 1e9, size / peer / 1e9, "GB/s")

    def prefill(self, sequences: int, rows: int, cached: int = 0, stages: tuple[int, ...] = ()) -> Lines:
        """Chunks of `rows` after `cached` keys: operations per second, relative to torch's fused attention and to FlashInfer.

        Args:
            sequences: in the batch.
            rows: of each.
            cached: keys of each before its rows.
            stages: pipelines to measure beside the one that `config_for` chooses.
        """
        pairs = sequences * rows * (cached + (rows + 1) / 2)  # visible keys over all rows
        teraflop = 4 * pairs * self._shape.heads * self._shape.dim / 1e12
        batch = self._batch(self._shape.layers, sequences, rows, rows + cached)
        name = f"prefill attention, {sequences} x {rows} on {cached}"
        starts = batch.row_starts
        group = self._shape.heads // self._shape.kv_heads

        def planned(config: Config) -> ChunkWork | None:
            heads = {"group": group, "kv_heads": self._shape.kv_heads, "height": config.tile // group}
            return plan_chunks([(rows, rows + cached)] * sequences, **heads, device=self._timer.device)

        def seconds(config: Config) -> float:
            work = planned(config)
            return self._timer.seconds(
                lambda _: paged_attention(
                    batch.queries,
                    batch.kv[:, 0],
                    starts,
                    batch.lengths,
                    batch.tables,
                    scale=self._scale,
                    longest=rows,
                    config=config,
                    work=work,
                )
            )

        ours = seconds(self._config(chunks.config_for))
        fused: dict[str, float] = {}
        for backend in _FUSED:
            found = self._fused(backend, sequences, rows, cached)
            if isinstance(found, str):
                yield Skipped(f"{name}, of torch's {backend}", found)
            else:
                fused[backend] = found
                yield Result(f"{name}, of torch's {backend}", ours, teraflop / ours, teraflop / found, "TFLOP/s")
        best = min(fused, key=lambda backend: fused[backend])
        yield Result(f"{name}, of torch ({best})", ours, teraflop / ours, teraflop / fused[best], "TFLOP/s")
        for count in stages:
            other = seconds(self._config(chunks.config_for, stages=count))
            yield Result(f"{name}, {count} stages", other, teraflop / other, teraflop / fused[best], "TFLOP/s")
        yield from self._by_boxes(name, batch, seconds, teraflop, fused[best])
        peer = self._flashinfer_prefill(batch)
        if peer is not None:
            yield Result(f"{name}, of FlashInfer", ours, teraflop / ours, teraflop / peer, "TFLOP/s")

    def _by_boxes(
        self, name: str, batch: _Batch, seconds: Callable[[Config], float], teraflop: float, fused: float
    ) -> Lines:
        """The same by tensor descriptors, in several pipelines, relative to torch's; or why this chip or pool has none. What is
        faster than pointers belongs into `boxes.FASTER`."""
        chosen, pool = self._config(chunks.config_for), batch.kv[:, 0]
        config = by_boxes(chosen, pool)
        why = refusal(pool, config.keys)
        if capability(self._timer.device) < LEAST:
            why = f"the copy engine is there from compute capability {LEAST // 10}.0 on"
        if why is not None:
            yield Skipped(f"{name}, boxes", why)
            return
        for stages in sorted({3, 5, config.stages}):
            taken = seconds(replace(config, stages=stages))
            line = f"{name}, boxes of {config.keys} keys, {stages} stages"
            yield Result(line, taken, teraflop / taken, teraflop / fused, "TFLOP/s")

    def _config(self, config_for: Callable[[int, int, int, int], Config], **changes: Any) -> Config:
        shape = self._shape
        chosen = config_for(shape.heads // shape.kv_heads, shape.dim, shape.dtype.itemsize, chip(self._timer.device))
        return replace(chosen, **changes)

    def _fused(self, backend: str, sequences: int, rows: int, cached: int) -> float | str:
        """Seconds of torch's scaled_dot_product_attention by one of its kernels, or why that kernel refuses."""
        shape, context = self._shape, rows + cached
        queries = self._random(sequences, shape.heads, rows, shape.dim)
        keys, values = (self._random(sequences, shape.kv_heads, context, shape.dim) for _ in range(2))
        mask: torch.Tensor | None = None
        if cached and backend == "cuDNN":  # torch has no other way to say that the rows are the newest
            mask = torch.ones(rows, context, dtype=torch.bool, device=self._timer.device).tril(cached)
        elif cached:
            mask = causal_lower_right(rows, context)
        with warnings.catch_warnings(record=True) as said, sdpa_kernel(_FUSED[backend]):
            warnings.simplefilter("always")  # torch gives its reasons as warnings
            try:
                return self._timer.seconds(
                    lambda _: F.scaled_dot_product_attention(
                        queries, keys, values, attn_mask=mask, is_causal=not cached, enable_gqa=True
                    )
                )
            except RuntimeError as error:
                return " ".join(dict.fromkeys([str(error), *(str(warning.message) for warning in said)]))

    def _flashinfer_prefill(self, batch: _Batch) -> float | None:
        """Seconds of FlashInfer's paged prefill on the same blocks; None if it is not installed."""
        try:
            import flashinfer
        except ImportError:
            return None
        shape = self._shape
        wrapper = flashinfer.BatchPrefillWithPagedKVCacheWrapper(self._workspace(), "HND")
        sizes = (shape.heads, shape.kv_heads, shape.dim, BLOCK)
        wrapper.plan(batch.row_starts, *batch.pages, *sizes, causal=True, q_data_type=shape.dtype)
        pages = batch.kv[:, 0].contiguous()
        return self._timer.seconds(lambda _: wrapper.run(batch.queries, pages))

    def _flashinfer_decode(self, batch: _Batch, count: int) -> float | None:
        """Seconds of FlashInfer's paged decode on the same blocks, of `count` layers apart; None if it is not installed."""
        try:
            import flashinfer
        except ImportError:
            return None
        shape = self._shape
        layers = [batch.kv[:, layer].contiguous() for layer in range(count)]
        taken = []
        for tensor_cores in (False, True):  # which is faster depends on the query heads per KV head; the faster counts
            wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(
                self._workspace(), "HND", use_tensor_cores=tensor_cores
            )
            sizes = (shape.heads, shape.kv_heads, shape.dim, BLOCK)
            wrapper.plan(*batch.pages, *sizes, q_data_type=shape.dtype, kv_data_type=shape.dtype)
            taken.append(
                self._timer.seconds(
                    lambda turn, wrapper=wrapper: wrapper.run(batch.queries, layers[turn % len(layers)])  # type: ignore[misc]
                )
            )
        return min(taken)

    def _workspace(self) -> torch.Tensor:
        return torch.zeros(_WORKSPACE, dtype=torch.uint8, device=self._timer.device)

    def _batch(self, layers: int, sequences: int, rows: int, context: int) -> _Batch:
        """Random tensors, and block tables that use the pool in random order."""
        shape, device = self._shape, self._timer.device
        each = -(-context // BLOCK)
        order = torch.randperm(sequences * each, generator=torch.Generator().manual_seed(0))
        return _Batch(
            queries=self._random(sequences * rows, shape.heads, shape.dim),
            kv=self._random(sequences * each, layers, 2, shape.kv_heads, BLOCK, shape.dim),
            tables=order.view(sequences, each).to(device, torch.int32),
            lengths=torch.full((sequences,), context, dtype=torch.int32, device=device),
            rows=rows,
            context=context,
        )

    def _random(self, *size: int) -> torch.Tensor:
        return torch.randn(size, device=self._timer.device, dtype=self._shape.dtype)
