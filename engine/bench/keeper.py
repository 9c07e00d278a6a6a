"""`python -m engine.bench.keeper`: the keeper's tiers beside the stores of one process, on the same blocks, turn by turn.

Blocks go 32 at a time, as the transfer worker passes them. Of `--rounds` the median counts, and each round does both.
"""

import argparse
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from torch import Tensor

from configs.settings import Settings
from engine.ipc.child import spawn
from engine.ipc.keeper_address import KeeperAddress
from engine.ipc.shared_memory import shared_memory
from engine.keeper.tiers import kept_tiers
from engine.kv_store.host_memory import reserve
from engine.kv_store.store import BlockStore, Rows
from engine.kv_store.tiers import GIB, DeviceBlocks, tiers_of
from scheduler.types.block_hash import BlockKey

SLICE = 32


@contextmanager
def keeper(settings: Settings, folder: Path) -> Iterator[KeeperAddress]:
    """A keeper's process, which ends with the context.

    Raises:
        RuntimeError: the system has no shared memory.
    """
    slab = shared_memory("headrace-bench")
    if slab is None:
        raise RuntimeError("this system has no shared memory that outlives a process")
    with socket.socket(socket.AF_UNIX) as listener:
        path = str(folder / "keeper")
        listener.bind(path)
        listener.listen()
        places = ["--listener", str(listener.fileno()), "--slab", str(slab)]
        child = spawn(
            [sys.executable, "-m", "engine.keeper", "--settings", settings.for_engine(), *places],
            descriptors=[listener.fileno(), slab],
        )
        try:
            yield KeeperAddress(socket=path, slab=slab)
        finally:
            end(child)


def end(child: "subprocess.Popen[bytes]") -> None:
    """Close its stdin, and wait."""
    if child.stdin is not None:
        child.stdin.close()
    child.wait()


def rates(store: BlockStore, pool: Tensor, block_keys: Sequence[BlockKey]) -> tuple[float, float]:
    """Bytes per second into an empty store and out of it; what was put is dropped again."""
    slices = [slice(begin, begin + SLICE) for begin in range(0, len(block_keys), SLICE)]
    rows = range(len(pool))

    def all_of(call: Callable[[Sequence[BlockKey], Rows], Sequence[object]]) -> float:
        began = time.perf_counter()
        for part in slices:
            if not all(call(block_keys[part], Rows(pool, rows[part]))):
                raise ValueError("a block was not kept")
        return pool.nbytes / (time.perf_counter() - began)

    found = all_of(store.put), all_of(store.get)
    store.drop(block_key.hash for block_key in block_keys)
    return found


def compare(own: BlockStore, kept: BlockStore, pool: Tensor, rounds: int) -> Iterator[tuple[str, float, float]]:
    """For both directions: its name, and the medians of both stores in bytes per second."""
    block_keys = [BlockKey(number.to_bytes(16, "big"), tuple(range(32))) for number in range(len(pool))]
    seen: list[tuple[float, float, float, float]] = []
    for _ in range(rounds + 1):
        seen.append((*rates(own, pool, block_keys), *rates(kept, pool, block_keys)))
    put, get, kept_put, kept_get = (statistics.median(each) for each in zip(*seen[1:], strict=True))  # pages are there
    yield "put", put, kept_put
    yield "get", get, kept_get


def main() -> int:
    """Print a line for each tier and direction."""
    parser = argparse.ArgumentParser(prog="python -m engine.bench.keeper", description=__doc__)
    parser.add_argument("--mib", type=int, default=184, help="size of the pool that is copied")
    parser.add_argument("--block-bytes", type=int, default=737280, help="size of a block (default: SmolLM2's in bf16)")
    parser.add_argument("--rounds", type=int, default=9, help="repetitions; the median counts")
    parser.add_argument("--folder", type=Path, help="where the disk tier is (default: the temporary folder)")
    arguments = parser.parse_args()
    blocks = arguments.mib * 2**20 // arguments.block_bytes
    if blocks < 1 or arguments.rounds < 1:
        parser.error("nothing to measure: --mib is less than --block-bytes, or --rounds is less than 1")
    pool = reserve(blocks * arguments.block_bytes).view(blocks, -1)
    pool.random_(0, 256)
    device = DeviceBlocks(pool, 2, 32, "bench")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=arguments.folder)))
        gib = 2 * arguments.mib * 2**20 / GIB
        own, kept = (
            Settings.model_validate({"kv_host_gib": gib, "kv_disk_path": str(folder / name), "kv_disk_gib": gib})
            for name in ("own", "kept")
        )
        address = stack.enter_context(keeper(kept, folder))
        entries = [*tiers_of(own), *kept_tiers(kept, address)]
        stores = [entry.open(device) for entry in entries]
        for at, entry in enumerate(entries[:2]):
            for direction, mine, theirs in compare(stores[at], stores[at + 2], pool, arguments.rounds):
                print(
                    f"{entry.name:5}{direction}  own{mine / 1e9:7.2f} GB/s  keeper{theirs / 1e9:7.2f} GB/s"
                    f"  ratio {theirs / mine:.2f}",
                    flush=True,
                )
        for store in stores:
            store.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
