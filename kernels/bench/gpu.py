"""Every GPU kernel beside its floor, in the shapes of Llama 3 8B (32 query heads, 8 KV heads of 128, 4,096 wide, bf16).

Bytes are held against a large device-to-device copy and operations against torch's fused attention on contiguous tensors, both
measured in the same run. FlashInfer's paged kernels are measured too where the package is installed.
"""

import json
import platform
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
import triton

from kernels.bench.timing import Timer, copies, copy_bandwidth
from kernels.gpu.block_copy import BlockCopier
from kernels.gpu.decode_attention import decode_attention
from kernels.gpu.fp8_linear import Fp8Matrix, fp8_linear, refusal
from kernels.gpu.paged_attention import paged_attention
from kernels.gpu.quantized_linear import quantized_linear
from kernels.gpu.quantized_matrix import QuantizedMatrix, from_gguf
from kernels.gpu.sample import RowSettings, Settings, sample

BLOCK = 32


@dataclass(frozen=True, slots=True)
class Shape:
    """Attention of a model. The defaults are Llama 3 8B's."""

    heads: int = 32
    kv_heads: int = 8
    dim: int = 128
    dtype: torch.dtype = torch.bfloat16

    @property
    def token_bytes(self) -> int:
        """Keys and values of one token in one layer."""
        return 2 * self.kv_heads * self.dim * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Result:
    """One line: what was reached, of what, in `unit`; `ratio` is what the bars are about (1 is the floor or the peer)."""

    name: str
    seconds: float
    reached: float
    of: float
    unit: str

    @property
    def ratio(self) -> float:
        """Share of what is possible, or of what the peer reaches."""
        return self.reached / self.of


class AttentionBench:
    """Attention over scattered blocks, several layers' worth of them so that nothing is read twice from a cache."""

    def __init__(self, timer: Timer, shape: Shape, bandwidth: float) -> None:
        self._timer = timer
        self._shape = shape
        self._bandwidth = bandwidth
        self._scale = shape.dim**-0.5

    def decode(self, sequences: int, context: int) -> Result:
        """One new token a sequence at `context` keys: bytes of KV by the time, of copy bandwidth."""
        shape, size = self._shape, sequences * context * self._shape.token_bytes
        layers = copies(size)
        kv, tables = self._pool(layers, sequences, context)
        queries = self._random(sequences, shape.heads, shape.dim)
        lengths = torch.full((sequences,), context, dtype=torch.int32, device=self._timer.device)

        def work(turn: int) -> torch.Tensor:
            return decode_attention(
                queries, kv[:, turn % layers], lengths, tables, scale=self._scale, longest_kv=context
            )

        seconds = self._timer.seconds(work)
        return Result(
            f"decode attention, {sequences} x {context}", seconds, size / seconds / 1e9, self._bandwidth / 1e9, "GB/s"
        )

    def prefill(self, sequences: int, rows: int, cached: int = 0) -> Iterator[Result]:
        """Chunks of `rows` after `cached` keys: operations by the time, of torch's fused attention and FlashInfer's."""
        shape, context = self._shape, rows + cached
        pairs = sequences * rows * (cached + (rows + 1) / 2)  # visible keys over all rows
        operations = 4 * pairs * shape.heads * shape.dim
        kv, tables = self._pool(1, sequences, context)
        queries = self._random(sequences * rows, shape.heads, shape.dim)
        device = self._timer.device
        starts = torch.arange(0, sequences * rows + 1, rows, dtype=torch.int32, device=device)
        lengths = torch.full((sequences,), context, dtype=torch.int32, device=device)

        def work(_: int) -> torch.Tensor:
            return paged_attention(queries, kv[:, 0], starts, lengths, tables, scale=self._scale, longest=rows)

        name = f"prefill attention, {sequences} x {rows} on {cached}"
        seconds = self._timer.seconds(work)
        reached = operations / seconds / 1e12
        yield Result(
            f"{name}, of torch", seconds, reached, operations / self._fused(sequences, rows, cached) / 1e12, "TFLOP/s"
        )
        peer = self._flashinfer(queries, kv, tables, starts, lengths)
        if peer is not None:
            yield Result(f"{name}, of FlashInfer", seconds, reached, operations / peer / 1e12, "TFLOP/s")

    def _fused(self, sequences: int, rows: int, cached: int) -> float:
        """Seconds of torch's scaled_dot_product_attention on contiguous tensors: what is done without paging."""
        shape, context = self._shape, rows + cached
        queries = self._random(sequences, shape.heads, rows, shape.dim)
        keys, values = (self._random(sequences, shape.kv_heads, context, shape.dim) for _ in range(2))
        mask = None
        if cached:
            from torch.nn.attention.bias import causal_lower_right

            mask = causal_lower_right(rows, context)
        return self._timer.seconds(
            lambda _: F.scaled_dot_product_attention(
                queries, keys, values, attn_mask=mask, is_causal=not cached, enable_gqa=True
            )
        )

    def _flashinfer(
        self, queries: torch.Tensor, kv: torch.Tensor, tables: torch.Tensor, starts: torch.Tensor, lengths: torch.Tensor
    ) -> float | None:
        """Seconds of FlashInfer's paged prefill on the same blocks; None where it is not installed."""
        try:
            import flashinfer
        except ImportError:
            return None
        shape, (sequences, blocks) = self._shape, tables.shape
        wrapper = flashinfer.BatchPrefillWithPagedKVCacheWrapper(
            torch.empty(256 * 2**20, dtype=torch.uint8, device=self._timer.device), "HND"
        )
        ends = torch.arange(0, sequences * blocks + 1, blocks, dtype=torch.int32, device=self._timer.device)
        wrapper.plan(
            starts,
            ends,
            tables.flatten(),
            (lengths - 1) % BLOCK + 1,
            shape.heads,
            shape.kv_heads,
            shape.dim,
            BLOCK,
            causal=True,
            q_data_type=shape.dtype,
        )
        pages = kv[:, 0].contiguous()
        return self._timer.seconds(lambda _: wrapper.run(queries, pages))

    def _pool(self, layers: int, sequences: int, context: int) -> tuple[torch.Tensor, torch.Tensor]:
        """A pool [blocks, layers, 2, kv_heads, BLOCK, dim], and block tables that go through it in no order."""
        shape, device = self._shape, self._timer.device
        each = -(-context // BLOCK)
        kv = self._random(sequences * each, layers, 2, shape.kv_heads, BLOCK, shape.dim)
        order = torch.randperm(sequences * each, generator=torch.Generator().manual_seed(0))
        return kv, order.view(sequences, each).to(device, torch.int32)

    def _random(self, *size: int) -> torch.Tensor:
        return torch.randn(size, device=self._timer.device, dtype=self._shape.dtype)


def swap(timer: Timer, blocks: int = 256, block_bytes: int = 4 * 2**20) -> Iterator[Result]:
    """Scattered blocks (Llama 3 8B's, 32 tokens in bf16) to pinned host memory and back: of one large pinned copy."""
    pinned = timer.device.type == "cuda"
    pool = torch.empty(2 * blocks, block_bytes, dtype=torch.uint8, device=timer.device)
    host = torch.empty(2 * blocks, block_bytes, dtype=torch.uint8, pin_memory=pinned)
    order = torch.randperm(2 * blocks, generator=torch.Generator().manual_seed(0)).tolist()
    size = blocks * block_bytes
    for name, source, target in (("out", pool, host), ("in", host, pool)):
        one = BlockCopier((source, target))
        moves = [(order[index], order[-1 - index]) for index in range(blocks)]
        seconds = timer.seconds(partial(_swapped, one, moves))
        peak = timer.seconds(partial(_copied, target[:blocks], source[:blocks]))
        yield Result(f"swap {name}, {blocks} blocks", seconds, size / seconds / 1e9, size / peak / 1e9, "GB/s")


def products(
    timer: Timer, bandwidth: float, *, columns: int = 4096, outputs: int = 14336, dtype: torch.dtype = torch.bfloat16
) -> Iterator[Result]:
    """Products of few rows with 4-bit weights: bytes of the weights by the time, of copy bandwidth."""
    matrix = _random_q4(outputs, columns).to(timer.device)
    turns = [replace(matrix, words=matrix.words.clone()) for _ in range(copies(matrix.nbytes))]
    for rows in (1, 4, 8, 16):
        x = torch.randn(rows, columns, device=timer.device, dtype=dtype)
        seconds = timer.seconds(partial(_multiplied, x, turns))
        reached = matrix.nbytes / seconds
        yield Result(f"W4A16, {rows} x {columns} x {outputs}", seconds, reached / 1e9, bandwidth / 1e9, "GB/s")


def fp8_products(
    timer: Timer,
    bandwidth: float,
    *,
    columns: int = 4096,
    outputs: int = 14336,
    many: int = 2048,
    dtype: torch.dtype = torch.bfloat16,
) -> Iterator[Result]:
    """Products with e4m3 weights: few rows by bytes, of copy bandwidth; many by operations, of the same in 16 bits."""
    if refusal(timer.device):
        return
    weight = torch.randn(outputs, columns, device=timer.device, dtype=dtype)
    matrix = Fp8Matrix.of(weight)
    turns = [replace(matrix, values=matrix.values.clone()) for _ in range(copies(matrix.values.nbytes))]
    for rows in (1, 16):
        x = torch.randn(rows, columns, device=timer.device, dtype=dtype)
        seconds = timer.seconds(partial(_eight_bits, x, turns))
        reached = matrix.values.nbytes / seconds
        yield Result(f"W8A8 e4m3, {rows} x {columns} x {outputs}", seconds, reached / 1e9, bandwidth / 1e9, "GB/s")
    x = torch.randn(many, columns, device=timer.device, dtype=dtype)
    seconds, plain = timer.seconds(partial(_eight_bits, x, turns)), timer.seconds(lambda _: F.linear(x, weight))
    size = 2 * many * columns * outputs / 1e12
    yield Result(
        f"W8A8 e4m3, {many} x {columns} x {outputs}, of 16 bits", seconds, size / seconds, size / plain, "TFLOP/s"
    )


def sampling(timer: Timer, bandwidth: float, *, rows: int = 128, vocab: int = 128256) -> Iterator[Result]:
    """One token for each row of fp32 logits: bytes of one reading of the logits by the time, of copy bandwidth."""
    kinds = {
        "greedy": RowSettings(temperature=0.0),
        "drawn": RowSettings(),
        "top_p 0.9": RowSettings(top_p=0.9),
        "top_k 50": RowSettings(top_k=50),
    }
    size = rows * vocab * 4
    turns = [3 * torch.randn(rows, vocab, device=timer.device) for _ in range(copies(size))]
    for name, kind in kinds.items():
        settings = Settings.of([replace(kind, seed=row) for row in range(rows)], timer.device)
        seconds = timer.seconds(partial(_sampled, turns, settings))
        yield Result(f"sampling {name}, {rows} x {vocab}", seconds, size / seconds / 1e9, bandwidth / 1e9, "GB/s")


def _eight_bits(x: torch.Tensor, matrices: list[Fp8Matrix], turn: int) -> torch.Tensor:
    return fp8_linear(x, matrices[turn % len(matrices)])


def _sampled(logits: list[torch.Tensor], settings: Settings, turn: int) -> torch.Tensor:
    return sample(logits[turn % len(logits)], settings)


def _swapped(copier: BlockCopier, moves: list[tuple[int, int]], _: int) -> None:
    copier.copy(moves).wait()


def _copied(target: torch.Tensor, source: torch.Tensor, _: int) -> None:
    target.copy_(source)


def _multiplied(x: torch.Tensor, matrices: list[QuantizedMatrix], turn: int) -> torch.Tensor:
    return quantized_linear(x, matrices[turn % len(matrices)])


def _random_q4(outputs: int, columns: int) -> QuantizedMatrix:
    """Q4_0 groups with small scales."""
    groups = torch.randint(0, 256, (outputs, columns // 32, 18), dtype=torch.uint8)
    groups[..., :2] = torch.tensor([0.01], dtype=torch.float16).view(torch.uint8)
    return from_gguf(groups.flatten(1), "Q4_0")


def results(timer: Timer, bandwidth: float) -> Iterator[Result]:
    """All lines of the table."""
    attention = AttentionBench(timer, Shape(), bandwidth)
    cases: list[Callable[[], Iterator[Result]]] = [
        lambda: iter([attention.decode(64, 4096)]),
        lambda: iter([attention.decode(1, 131072)]),
        lambda: attention.prefill(1, 16384),
        lambda: attention.prefill(8, 2048),
        lambda: attention.prefill(8, 2048, cached=8192),
        lambda: swap(timer),
        lambda: products(timer, bandwidth),
        lambda: fp8_products(timer, bandwidth),
        lambda: sampling(timer, bandwidth),
    ]
    for case in cases:
        yield from case()
        if timer.device.type == "cuda":
            torch.cuda.empty_cache()


def main(rounds: int, out: Path | None) -> int:
    """Print the table and write it as JSON. 1 where there is no GPU."""
    if not torch.cuda.is_available():
        print("no GPU: torch finds none")
        return 1
    timer = Timer(torch.device("cuda"), rounds)
    bandwidth = copy_bandwidth(timer)
    about = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "python": platform.python_version(),
        "copy_gigabytes_per_second": bandwidth / 1e9,
    }
    print("  ".join(f"{key} {value}" for key, value in about.items()))
    print(f"{'':50}{'ms':>9}{'reached':>10}{'of':>10}  {'unit':8}{'ratio':>6}")
    lines = []
    for line in results(timer, bandwidth):
        lines.append(asdict(line) | {"ratio": line.ratio})
        print(
            f"{line.name:50}{1e3 * line.seconds:9.3f}{line.reached:10.1f}{line.of:10.1f}  {line.unit:8}{line.ratio:6.2f}",
            flush=True,
        )
        if out is not None:  # after every line: what was measured is kept, whatever happens next
            out.write_text(json.dumps(about | {"results": lines}, indent=1))
    return 0
