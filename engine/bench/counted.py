"""`python -m engine.bench.counted`: launches, programs and bytes of decode steps of Llama 3 8B, counted from shapes alone.

No GPU is needed, and none is asked: this is what the code launches, not what it takes. A test compares the count with an
instrumented launcher, launch by launch, and with every address that the interpreted kernels read and write. Bytes are of device
memory, each address once a launch, as if nothing stayed in a cache between two launches; a step's floor is its weights and keys and
values alone, once.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

from configs.model.config import ModelConfig
from engine.bench.steps import BLOCK, LLAMA_3_8B
from kernels.gpu.attention import decode, decode_work
from kernels.gpu.kv import write_kv
from kernels.gpu.linear.quantized import tiling
from kernels.gpu.linear.quantized_matrix import TILE, GgufKind, packed_bytes
from kernels.gpu.norm import embedding, silu_mul
from kernels.gpu.sampling import logits_scan

PRODUCT = "product"  # of torch: cuBLAS chooses its programs, which are not counted
GROUPED = "_product"  # of ours, with weights in groups
HOPPER, PROCESSORS = 90, 132  # H100 and H200

Case = tuple[str, list[int], GgufKind | None]
CASES: tuple[Case, ...] = (
    *(("1,024", [1024] * rows, None) for rows in (1, 32, 128, 256)),
    *(("4,096", [4096] * rows, None) for rows in (1, 32, 128)),
    ("1,024, one of 40,000", [1024] * 255 + [40_000], None),
    *(("1,024", [1024] * rows, "Q4_0") for rows in (1, 32, 64, 128, 256)),
)


@dataclass(frozen=True, slots=True)
class Launch:
    """One launch of `kernel`: its programs, and the bytes that it reads and writes."""

    kernel: str
    programs: int
    read: int
    written: int


class DecodeCount:
    """A decode step: forward pass, logits, and the likeliest token of each row.

    Args:
        config: of the model, without windows or norms of queries and keys.
        keys: of each sequence, the new token's included; tokens and positions that differ.
        size: bytes of a number of the model's type.
        longest: keys that there is room for in partial states; a graph's is the context.
        processors: of the GPU.
        stored: the groups in which layers have their weights, for up to `KERNEL_ROWS` rows; None: they are of the model's type, as
            embedding and head always are.
    """

    def __init__(
        self,
        config: ModelConfig,
        keys: Sequence[int],
        size: int,
        *,
        longest: int,
        processors: int = PROCESSORS,
        stored: GgufKind | None = None,
    ) -> None:
        self._config = config
        self._keys = keys
        self._rows = len(keys)
        self._size = size
        self._longest = longest
        self._processors = processors
        self._stored = stored

    def launches(self) -> Iterator[Launch]:
        """All of them, in order."""
        config = self._config
        qkv, o, gate_up, down = self._shapes
        yield self._plan()
        yield self._embed()
        for layer in range(config.layers):
            yield self._norm(added=layer > 0)
            yield self._multiply(*qkv)
            yield self._write()
            yield self._attend()
            yield self._multiply(*o)
            yield self._norm(added=True)
            yield self._multiply(*gate_up)
            yield self._gate()
            yield self._multiply(*down)
        yield self._last_norm()
        yield self._product(config.hidden_size, config.vocab_size)
        yield from self._sample()

    @property
    def floor(self) -> int:
        """Bytes that every such step moves: weights, the keys and values that it reads, and those that it writes."""
        config = self._config
        layer = sum(self._weights(*shape) for shape in self._shapes)
        head = self._bytes(config.vocab_size, config.hidden_size)
        return config.layers * layer + head + self._size * config.layers * (sum(self._keys) + self._rows) * self._key

    @property
    def _shapes(self) -> tuple[tuple[int, int], ...]:
        """(columns, outputs) of a layer's products, in their order."""
        config = self._config
        heads = config.heads * config.head_dim
        return (
            (config.hidden_size, heads + 2 * config.kv_heads * config.head_dim),
            (heads, config.hidden_size),
            (config.hidden_size, 2 * config.intermediate_size),
            (config.intermediate_size, config.hidden_size),
        )

    def _weights(self, columns: int, outputs: int) -> int:
        """Bytes of a layer's matrix."""
        if self._stored is None:
            return self._bytes(outputs, columns)
        return packed_bytes(outputs, columns, _bits(self._stored), self._stored == "Q4_1")

    @property
    def _key(self) -> int:
        """Numbers of a token's key and value in a layer."""
        return 2 * self._config.kv_heads * self._config.head_dim

    def _bytes(self, *shape: int) -> int:
        return self._size * prod(shape)

    def _parts(self, keys: int) -> int:
        return max(1, -(-keys // decode_work.split_length(keys, self._config.kv_heads)))

    def _plan(self) -> Launch:
        entries = sum(map(self._parts, self._keys))
        written = 4 + 4 * self._rows * self._config.kv_heads + 4 * decode_work.FIELDS * entries
        return Launch("_plan_decode", -(-self._rows // decode_work.SEQUENCES_EACH), 8 * self._rows, written)

    def _embed(self) -> Launch:
        hidden = self._config.hidden_size
        programs = self._rows * -(-hidden // embedding.config_for(hidden)[0])
        return Launch(
            "_embed", programs, self._bytes(self._rows, hidden) + 8 * self._rows, self._bytes(self._rows, hidden)
        )

    def _norm(self, *, added: bool) -> Launch:
        rows = self._bytes(self._rows, self._config.hidden_size) * (2 if added else 1)
        return Launch("_rms_norm", self._rows, rows + 4 * self._config.hidden_size, rows)

    def _last_norm(self) -> Launch:
        rows = self._bytes(self._rows, self._config.hidden_size)
        return Launch("_rms_norm", self._rows, 2 * rows + 4 * self._config.hidden_size + 8 * self._rows, rows)

    def _product(self, columns: int, outputs: int) -> Launch:
        read = self._bytes(self._rows, columns) + self._bytes(outputs, columns)
        return Launch(PRODUCT, 0, read, self._bytes(self._rows, outputs))

    def _multiply(self, columns: int, outputs: int) -> Launch:
        """Of a layer: parts of sums go out and come back where a tile has several."""
        if self._stored is None:
            return self._product(columns, outputs)
        shape = tiling(outputs, columns, self._rows, _bits(self._stored), 32, self._processors)
        row_tiles, tiles, parts = shape.grid
        sums = 4 * (parts * self._rows * tiles * TILE + tiles * row_tiles) if parts > 1 else 0
        read = self._bytes(self._rows, columns) + self._weights(columns, outputs)
        return Launch(GROUPED, row_tiles * tiles * parts, read + sums, self._bytes(self._rows, outputs) + sums)

    def _write(self) -> Launch:
        config = self._config
        group, _, _ = write_kv.config_for(config.kv_heads, config.head_dim)
        tiles = -(-config.heads // group) + 2 * -(-config.kv_heads // group)
        rows = self._bytes(self._rows, config.heads * config.head_dim + self._key)
        angles = 2 * 4 * len(set(self._keys)) * (config.head_dim // 2)
        return Launch("_write_kv", self._rows * tiles, rows + 16 * self._rows + angles, rows)

    def _attend(self) -> Launch:
        """A part's entry, queries, keys, values and table; states of sequences in several parts go out and come back."""
        config = self._config
        shape = decode.config_for(config.heads // config.kv_heads, config.head_dim, self._size, HOPPER)
        room = self._rows * decode_work.most_parts(self._longest, config.kv_heads)
        parts = [self._parts(keys) for keys in self._keys]
        several = [count for count in parts if count > 1]
        states = sum(several) * config.heads * 4 * (config.head_dim + 1) + 4 * len(several) * config.kv_heads
        rows = self._bytes(self._rows, config.heads, config.head_dim)
        tables = 4 * sum(-(-keys // BLOCK) for keys in self._keys)
        read = 4 + 4 * decode_work.FIELDS * sum(parts) + rows + self._bytes(sum(self._keys), self._key) + tables
        programs = min(self._processors * shape.resident, room * config.kv_heads)
        return Launch("_decode_attention", programs, read + states, rows + states)

    def _gate(self) -> Launch:
        inner = self._config.intermediate_size
        programs = self._rows * -(-inner // silu_mul.config_for(inner)[0])
        return Launch("_silu_mul", programs, self._bytes(self._rows, 2 * inner), self._bytes(self._rows, inner))

    def _sample(self) -> Iterator[Launch]:
        """Greedy rows: a tile leaves its peak, that one's token, and whether all is sound."""
        tiles = -(-self._config.vocab_size // logits_scan.BLOCK)
        left, temperatures = 12 * self._rows * tiles, 4 * self._rows
        logits = self._bytes(self._rows, self._config.vocab_size)
        yield Launch("scan_kernel", self._rows * tiles, logits + temperatures, left)
        yield Launch("settle_kernel", self._rows, left + temperatures, 8 * self._rows)


def _bits(stored: GgufKind) -> int:
    return 8 if stored == "Q8_0" else 4


def table() -> list[str]:
    """Rows of the page's table (docs/gpu.md)."""
    lines = [
        "| rows | keys of each | weights | launches | of these products | programs | in attention | GB | floor | over it |",
        "| ---: | :--- | :--- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    config = replace(LLAMA_3_8B, max_position=131_072)
    for said, keys, stored in CASES:
        step = DecodeCount(config, keys, 2, longest=config.max_position, stored=stored)
        launches = list(step.launches())
        products = sum(each.kernel in (PRODUCT, GROUPED) for each in launches)
        programs = sum(each.programs for each in launches)
        attention = sum(each.programs for each in launches if each.kernel == "_decode_attention")
        moved = sum(each.read + each.written for each in launches)
        lines.append(
            f"| {len(keys)} | {said} | {stored or 'bf16'} | {len(launches)} | {products} | {programs:,} | {attention:,} "
            f"| {moved / 1e9:.2f} "
            f"| {step.floor / 1e9:.2f} | {100 * (moved / step.floor - 1):.1f} % |"
        )
    return lines


def chunk_launches(layers: int, *, singles: bool, split: bool = False) -> int:
    """Launches of a step with chunks that runs kernel by kernel, tokens drawn greedily: beside those of a forward pass, the inputs'
    copy and their conversion, the logits, two of the sampler. Of chunks that are split, a list's copy and counts."""
    forward = 1 + singles + layers * (9 + singles) + 1
    return 2 + forward + 3 + 2 * split


# On a graph, whatever the step: the inputs' copy, five that fill in ids, the graph, the logits, two of the sampler.
GRAPH_LAUNCHES = 10


def chunk_table() -> list[str]:
    """Rows of the page's table of steps with chunks (docs/gpu.md)."""
    lines = [
        "| step | launches, kernel by kernel | on a graph |",
        "| :--- | ---: | ---: |",
    ]
    for said, singles, split in (
        ("a prompt's chunk", False, False),
        ("single tokens and chunks", True, False),
        ("single tokens and chunks, one of few rows on 4,096 keys or more", True, True),
    ):
        launches = chunk_launches(LLAMA_3_8B.layers, singles=singles, split=split)
        lines.append(f"| {said} | {launches} | {GRAPH_LAUNCHES} |")
    return lines


def updated(page: str) -> str:
    """A page with these tables in the place of those that it has.

    Raises:
        ValueError: it lacks one.
    """
    lines = page.splitlines()
    for fresh in (table(), chunk_table()):
        start = lines.index(fresh[0])
        stop = next((at for at in range(start, len(lines)) if not lines[at].startswith("|")), len(lines))
        lines[start:stop] = fresh
    return "\n".join([*lines, ""])


def main() -> int:
    """Print the tables, or bring a page up to date."""
    parser = argparse.ArgumentParser(prog="python -m engine.bench.counted", description=__doc__)
    parser.add_argument("--into", type=Path, help="a page: its tables are replaced")
    arguments = parser.parse_args()
    if arguments.into is None:
        print("\n".join([*table(), "", *chunk_table()]))
    else:
        arguments.into.write_text(updated(arguments.into.read_text()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
