"""`python -m engine.bench.kv_store`: copies between device and host, and the codec on keys and values of the embedded model.

Copies: blocks of a pool to the host store and back; neighbours in the pool are neighbours in the store as far as its fragments
allow. Codec: one thread, over text that the model itself writes, so that no file of text is needed; on MT-bench prompts the ratios
are the same within 0.002.
"""

import argparse
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import zstandard
from torch import Tensor

from configs.model.config import ModelConfig
from configs.model.source import resolve_model
from configs.settings import Settings
from engine.cpu.decoder import Decoder
from engine.cpu.formats import choose_arithmetic
from engine.cpu.kv_pool import KvPool, PackedKvPool
from engine.cpu.model import ExactModel, FastModel, Model
from engine.cpu.packed_weights import assemble_packed
from engine.cpu.weights import load_weights
from engine.kv_store.disk.codec import Bytes, Codec, PlanesCodec
from engine.kv_store.host import HostStore
from engine.kv_store.host_memory import reserve
from engine.kv_store.store import Rows
from engine.loading import load
from engine.models.registry import read_config
from engine.sequence_input import SequenceInput
from scheduler.types.block_hash import BlockKey

BLOCK = 32  # tokens
SEQUENCES = 8


@dataclass(frozen=True, slots=True)
class CopyRate:
    """For one layout of pool and store: bytes per second out and back, and blocks per copy."""

    out: float
    back: float
    blocks_per_copy: float


@dataclass(frozen=True, slots=True)
class CodecRate:
    """Encoded over raw bytes, raw bytes per second on one core."""

    ratio: float
    encode: float
    decode: float


class PlainZstd:
    """zstd at level 1 without planes: what a codec has to beat."""

    name = "zstd 1, no planes"

    def __init__(self) -> None:
        self._compressor = zstandard.ZstdCompressor(level=1)
        self._decompressor = zstandard.ZstdDecompressor()

    def encode(self, block: Bytes) -> bytes:
        """Compress the block as it is; for one thread."""
        return self._compressor.compress(block.data)

    def decode(self, data: memoryview, out: Bytes) -> None:
        """Decompress into `out`; for one thread."""
        out[:] = np.frombuffer(self._decompressor.decompress(data), np.uint8)


def seconds(work: Callable[[], object], rounds: int) -> float:
    """The time of the fastest of `rounds` calls: others use the machine, too."""
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)


def codec_rate(codec: Codec, blocks: Sequence[Bytes], rounds: int) -> CodecRate:
    """Encode and decode all blocks, uint8 [n] each; of `rounds` times the fastest counts.

    Raises:
        ValueError: a block was changed on the way.
    """
    raw = sum(block.nbytes for block in blocks)
    encoded = [memoryview(codec.encode(block)) for block in blocks]
    out = np.empty_like(blocks[0])
    for block, data in zip(blocks, encoded, strict=True):
        codec.decode(data, out)
        if not np.array_equal(block, out):
            raise ValueError(f"{codec.name} changed a block")

    def decode_all() -> None:
        for data in encoded:
            codec.decode(data, out)

    encode, decode = seconds(lambda: [codec.encode(block) for block in blocks], rounds), seconds(decode_all, rounds)
    return CodecRate(sum(map(len, encoded)) / raw, raw / encode, raw / decode)


def ids_in_runs(count: int, run: int, chosen: random.Random) -> list[int]:
    """0..count-1 in runs of `run` ids, the runs in random order."""
    starts = list(range(0, count, run))
    chosen.shuffle(starts)
    return [index for start in starts for index in range(start, min(start + run, count))]


def copy_rate(pool: Tensor, run: int, *, fragments: int, rounds: int) -> CopyRate:
    """Copy half of the pool's blocks to a store and back.

    Args:
        pool: uint8 [blocks, block bytes], on the host or a GPU.
        run: how many copied blocks are neighbours in the pool.
        fragments: length of the store's used and free stretches, in slots; it has as many of each as it takes. 0: it is empty.
        rounds: how often; the fastest counts.
    """
    count = len(pool) // 2
    slots = 2 * fragments * -(-count // fragments) if fragments else count
    store = HostStore(slots, pool.shape[1], pinned=pool.is_cuda)
    if fragments:
        others = [_block_key(-1 - index) for index in range(slots)]
        store.put(others, Rows(pool, [0] * len(others)))
        store.drop(block_key.hash for slot, block_key in enumerate(others) if slot // fragments % 2)
    block_keys, rows = (
        [_block_key(index) for index in range(count)],
        Rows(pool, ids_in_runs(len(pool), run, random.Random(0))[:count]),
    )
    store.put(block_keys, rows)  # pages of the slab are committed
    size = count * pool.shape[1]

    def put() -> None:
        store.drop(block_key.hash for block_key in block_keys)
        store.put(block_keys, rows)

    out = size / seconds(put, rounds)
    blocks, copies = store.blocks_copied, store.copies
    back = size / seconds(lambda: store.get(block_keys, rows), rounds)
    rate = CopyRate(out, back, (store.blocks_copied - blocks) / (store.copies - copies))
    store.close()
    return rate


def _block_key(number: int) -> BlockKey:
    return BlockKey(number.to_bytes(8, "big", signed=True), ())


class OwnText:
    """Text that a model writes, with its keys and values in the blocks of the model's pool."""

    def __init__(self, config: ModelConfig, tokens: int) -> None:
        self._config = config
        self._tables = [list(range(i * tokens // BLOCK, (i + 1) * tokens // BLOCK)) for i in range(SEQUENCES)]
        self.ids = [[0] for _ in range(SEQUENCES)]
        self.blocks = SEQUENCES * tokens // BLOCK
        self._tokens = tokens

    def write(self, model: Model) -> None:
        """Sample one token of each sequence at a time, at temperature 1."""
        chosen = torch.Generator().manual_seed(0)
        for start in range(self._tokens):
            inputs = [
                SequenceInput(token_ids=ids[-1:], start=start, block_table=table[: start // BLOCK + 1], wanted=1)
                for ids, table in zip(self.ids, self._tables, strict=True)
            ]
            scores = model.logits(model.forward(inputs))
            newest = torch.multinomial(scores.softmax(-1), 1, generator=chosen)
            for ids, token in zip(self.ids, newest[:, 0].tolist(), strict=True):
                ids.append(token)

    def read(self, model: Model) -> None:
        """Compute the text that is written already, for its keys and values."""
        for ids, table in zip(self.ids, self._tables, strict=True):
            model.forward([SequenceInput(token_ids=ids[: self._tokens], start=0, block_table=table, wanted=1)])


def real_blocks(tokens: int, threads: int) -> Iterator[tuple[str, int, list[Bytes]]]:
    """For each kind of pool of the embedded model: the type of its numbers, their size in bytes, some full blocks.

    Without the C++ kernels' library there is one kind, and the text is written in fp32.
    """
    torch.set_num_threads(threads)
    source = resolve_model(None)
    config = read_config(source)
    arithmetic = choose_arithmetic(Settings.model_validate({"block_size": BLOCK}), config)
    text = OwnText(config, tokens)
    if arithmetic.library is not None:
        packed = PackedKvPool(config, text.blocks, BLOCK)
        weights = load(source, config, "auto", assemble_packed)
        text.write(FastModel(config, weights, packed, arithmetic=arithmetic, context=tokens, threads=threads))
        yield "bf16", 2, _some(packed.storage)
    pool = KvPool(config, text.blocks, BLOCK)
    exact = ExactModel(Decoder(config, load_weights(source, config, "auto")), pool)
    (text.read if arithmetic.library is not None else text.write)(exact)
    yield "fp32", 4, _some(pool.storage)


def _some(storage: Tensor) -> list[Bytes]:
    rows: Bytes = storage.flatten(1).view(torch.uint8).numpy()
    return list(rows[:: max(1, len(rows) // 16)])


def print_copies(pool: Tensor, rounds: int) -> None:
    """Measure and print all layouts of pool and store."""
    print(f"copies of blocks of {pool.shape[1]} bytes, {pool.device}; GB/s")
    for run in (len(pool), 32, 8, 1):
        for fragments in (0, 32, 4):
            rate = copy_rate(pool, run, fragments=fragments, rounds=rounds)
            where = f"store in pieces of {fragments}" if fragments else "empty store"
            figures = f"out{rate.out / 1e9:7.2f}  back{rate.back / 1e9:7.2f}  blocks a copy{rate.blocks_per_copy:8.1f}"
            print(f"  pool in runs of {run:4}, {where:21}  {figures}", flush=True)


def main() -> int:
    """Print both tables."""
    parser = argparse.ArgumentParser(prog="python -m engine.bench.kv_store", description=__doc__)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="where the pool of the copies is")
    parser.add_argument("--mib", type=int, default=512, help="size of that pool")
    parser.add_argument("--block-bytes", type=int, default=737280, help="size of a block (default: SmolLM2's in bf16)")
    parser.add_argument(
        "--tokens", type=int, default=256, help="length of each of the 8 texts that the codec is measured on"
    )
    parser.add_argument("--rounds", type=int, default=5, help="repetitions; the fastest counts")
    arguments = parser.parse_args()
    blocks = arguments.mib * 2**20 // arguments.block_bytes
    if blocks < 2 or arguments.rounds < 1:
        parser.error(
            f"nothing to measure: {blocks} blocks of --block-bytes fit into --mib, and --rounds is {arguments.rounds}"
        )
    pool = reserve(blocks * arguments.block_bytes).view(blocks, -1).fill_(1).to(arguments.device)
    print_copies(pool, arguments.rounds)
    print("codec, one thread: encoded / raw bytes, MB/s of raw blocks")
    for kind, size, some in real_blocks(arguments.tokens, threads=torch.get_num_threads()):
        for codec in (PlainZstd(), PlanesCodec(size)):
            rate = codec_rate(codec, some, arguments.rounds)
            figures = f"ratio {rate.ratio:.3f}  encode{rate.encode / 1e6:6.0f}  decode{rate.decode / 1e6:6.0f}"
            print(f"  {kind}  {codec.name:20}{figures}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
