"""Every operation of a CPU step beside its floor, in the shapes and types of weights of a model.

A floor is the larger of bytes / bandwidth and operations / rate, measured in the same run: the bandwidth by the kernels' threads,
which read memory far larger than the caches, on huge pages, from front to back; the rates by torch's fp32 and int8 matrix products,
or of int8 by the kernels' instructions with all that they need at hand, if that is more (torch uses none of AVX2's). The weights of
all layers are used in turn, as in a step, so that they come from memory and not from a cache.
"""

import mmap
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import accumulate

import torch

from kernels.cpu.layouts import FORMATS
from kernels.cpu.native import NativeChunk, NativeOps
from kernels.cpu.packing import PackedMatrix, pack_gguf
from kernels.cpu.variants import choose

BLOCK = 32  # tokens
TIMES = 100_000  # small products to measure the rate of int8
FAR = 1 << 29  # bytes read to measure the bandwidth
SAMPLING = 32  # rows; the head is computed only for rows that sample, of which a prompt has one


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A model's sizes, and the types of its matrices: of `down` every other one has its own."""

    layers: int
    hidden: int
    inner: int
    vocab: int
    heads: int
    kv_heads: int
    dim: int
    kind: str
    down_kind: str
    head_kind: str

    @property
    def qkv(self) -> int:
        """Outputs of queries, keys and values together."""
        return (self.heads + 2 * self.kv_heads) * self.dim


MODELS = {
    "smollm2-135m": ModelShape(30, 576, 1536, 49152, 9, 3, 64, "Q4_1", "Q4_1", "Q8_0"),
    "qwen2.5-1.5b": ModelShape(28, 1536, 8960, 151936, 12, 2, 128, "Q4_K", "Q6_K", "Q6_K"),
}


@dataclass(frozen=True, slots=True)
class Rates:
    """This machine's rates: bytes and operations per second (a multiplication and an addition are two)."""

    read: float
    int8: float
    fp32: float
    bf16: float


@dataclass(frozen=True, slots=True)
class Row:
    """One operation over all layers: seconds measured, bytes read, operations done at `rate`."""

    name: str
    seconds: float
    bytes: float
    operations: float
    rate: float

    def floor(self, rates: Rates) -> float:
        """The least number of seconds that the machine needs."""
        return max(self.bytes / rates.read, self.operations / self.rate)


def main(threads: int | None, rounds: int, model: str) -> int:
    """Print the table. Returns the exit code: 1 if there are no kernels to measure."""
    kernels = choose()
    if kernels.library is None:
        print(kernels.reason)
        return 1
    threads = threads or len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    ops = NativeOps(kernels.library, threads)
    rates = measure_rates(ops, threads, rounds, native_bf16="bf16" in kernels.library.name)
    torch.set_num_threads(1)  # torch's own threads spin for a while after their work, and the kernels need the cores
    print(f"{kernels.reason}; {threads} threads; {ops.tiles}; shapes of {model}")
    print(
        f"machine: reads {rates.read / 1e9:.1f} GB/s, int8 {rates.int8 / 1e9:.0f} GOP/s, fp32 {rates.fp32 / 1e9:.0f} GFLOP/s"
    )
    print(f"{'all layers of a step':34}{'ms':>8}{'MB':>8}{'GOP':>8}{'floor ms':>10}{'x floor':>9}")
    for row in Bench(ops, rates, rounds, MODELS[model]).rows():
        floor = row.floor(rates)
        print(
            f"{row.name:34}{1e3 * row.seconds:8.2f}{row.bytes / 1e6:8.1f}{row.operations / 1e9:8.2f}"
            f"{1e3 * floor:10.2f}{row.seconds / floor:9.2f}"
        )
    return 0


def measure_rates(ops: NativeOps, threads: int, rounds: int, *, native_bf16: bool) -> Rates:
    """Measure the rates with `threads` threads. bf16 products, if the processor has them, run at twice the fp32 rate."""
    far = memory(FAR)
    read = far.nbytes / median(lambda: ops.read(far), rounds)
    left, right = torch.ones(512, 2048), torch.ones(2048, 2048)
    products = 2 * 512 * 2048 * 2048
    fp32 = products / median(lambda: left @ right, rounds)
    bytes_left, bytes_right = left.to(torch.int8), right.to(torch.int8)
    int8 = products / median(lambda: torch._int_mm(bytes_left, bytes_right), 1 + rounds // 5)
    some, weights = torch.ones(4, 32, dtype=torch.int8), torch.ones(8, 16, 4, dtype=torch.uint8)
    alone = 2 * 4 * 32 * 16 * TIMES * threads / median(lambda: ops.products(TIMES, some, weights), rounds)
    int8 = max(int8, alone)
    return Rates(read, int8, fp32, 2 * fp32 if native_bf16 else fp32)


@dataclass(frozen=True, slots=True)
class Bench:
    """The kernels, and the rates that they are compared with."""

    ops: NativeOps
    rates: Rates
    rounds: int
    model: ModelShape

    def rows(self) -> Iterator[Row]:
        """All rows of the table."""
        model = self.model
        kinds = (model.kind, model.kind)
        shapes = {
            "qkv": (model.qkv, model.hidden, kinds),
            "o": (model.hidden, model.heads * model.dim, kinds),
            "gate, up": (2 * model.inner, model.hidden, kinds),
            "down": (model.hidden, model.inner, (model.kind, model.down_kind)),
        }
        weights = {
            name: [random_matrix(outputs, columns, kinds[layer % 2]) for layer in range(model.layers)]
            for name, (outputs, columns, kinds) in shapes.items()
        }
        weights["head"] = [random_matrix(model.vocab, model.hidden, model.head_kind)]
        for rows in (1, 8, 32, 128):
            for name, matrices in weights.items():
                if name != "head" or rows <= SAMPLING:
                    yield self.linear(name, matrices, rows)
        for sequences, context in ((1, 256), (1, 4000), (8, 320), (32, 300)):
            yield self.attention([NativeChunk(1, context, ()) for _ in range(sequences)])
        for start in (0, 1024, 3968):
            yield self.attention([NativeChunk(128, start, ())])

    def linear(self, name: str, weights: list[PackedMatrix], rows: int) -> Row:
        """One projection of every layer."""
        inputs = torch.randn(rows, weights[0].columns)
        flush = torch.empty(32 * 2**20)  # 128 MiB, for all the other weights used between two uses of a weight
        seconds = median(lambda: self.ops.linear(inputs, *weights), self.rounds, before=flush.zero_)
        size = sum(weight.records.nbytes for weight in weights)
        operations = 2 * rows * weights[0].outputs * weights[0].columns * len(weights)
        return Row(f"{name}, {rows} rows", seconds, size, operations, self.rates.int8)

    def attention(self, chunks: list[NativeChunk]) -> Row:
        """Placing keys and values and attending, in all layers. Every sequence has its own blocks, in random order."""
        model = self.model
        need = [-(-(chunk.start + chunk.rows) // BLOCK) for chunk in chunks]
        order = torch.randperm(sum(need), generator=torch.Generator().manual_seed(0)).tolist()
        ends = list(accumulate(need))
        placed = [
            NativeChunk(chunk.rows, chunk.start, order[end - blocks : end])
            for chunk, blocks, end in zip(chunks, need, ends, strict=True)
        ]
        storage = torch.zeros(ends[-1], model.layers, model.kv_heads, 2, BLOCK * model.dim // 2, dtype=torch.int32)
        rows, longest = sum(chunk.rows for chunk in chunks), max(chunk.start + chunk.rows for chunk in chunks)
        qkv = torch.randn(rows, model.qkv)
        cos, sin = torch.ones(longest, model.dim // 2), torch.zeros(longest, model.dim // 2)
        layers = range(model.layers)
        attend = partial(self.ops.attention, heads=model.heads, layers=layers, window=0, cos=cos, sin=sin)
        work = partial(attend, qkv, placed, storage)
        seconds = median(work, self.rounds)
        seen = sum(chunk.rows * (chunk.start + (chunk.rows + 1) / 2) for chunk in chunks)  # keys, over all rows
        size = sum(chunk.start + chunk.rows for chunk in chunks) * model.layers * model.kv_heads * model.dim * 4
        kind = "decode" if chunks[0].rows == 1 else "prefill"
        name = f"attention, {kind} {rows} at {chunks[0].start}"
        operations = 4 * seen * model.heads * model.dim * model.layers
        return Row(name, seconds, size, operations, self.rates.bf16)


def memory(size: int) -> torch.Tensor:
    """int32 [size / 64, 16], all ones, on huge pages where the system has some."""
    mapped = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    mapped.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(mapped, dtype=torch.int32).view(-1, 16).fill_(1)


def random_matrix(outputs: int, columns: int, kind: str) -> PackedMatrix:
    """A random weight: any bytes are valid, and those of no scale is NaN."""
    blocks = torch.randint(0, 60, (outputs, columns // FORMATS[kind].columns * FORMATS[kind].block), dtype=torch.uint8)
    return pack_gguf(blocks, kind)


def median(work: Callable[[], object], rounds: int, before: Callable[[], object] | None = None) -> float:
    """The median time of `work` in seconds, after one run that is not counted."""
    work()
    taken = []
    for _ in range(rounds):
        if before:
            before()
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)
