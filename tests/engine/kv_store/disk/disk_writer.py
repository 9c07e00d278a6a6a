"""Writes blocks until it is killed: the victim of `test_disk_kill.py`.

Importing torch takes longer than a round, so one process forks the writers: a line on stdin starts one (folder, seed, bytes of a
write, whether to encode), its process id goes to stdout once it has written some blocks, and a second line when it is dead.
"""

import os
import random
import sys
from pathlib import Path

from engine.kv_store.disk.disk_store import DiskStore
from engine.kv_store.disk.filesystem import Filesystem
from tests.engine.kv_store.disk.disk_parts import Shrink, block_key, put, shortened

SIZE = 48 * 1024
ROOM = 24 * (SIZE + 4096)
NUMBERS = 60


class Pieces(Filesystem):
    """Writes a block in many calls, so that death comes between two of them."""

    def __init__(self, piece: int) -> None:
        self.piece = piece

    def write(self, file, buffers, offset):
        return super().write(file, shortened(buffers, self.piece), offset)


def write(folder: Path, seed: int, piece: int, coded: bool) -> None:
    filesystem = Pieces(piece) if piece else Filesystem()
    limits = {"block_bytes": SIZE, "fingerprint": "model", "limit_bytes": ROOM}
    store = DiskStore(folder, codecs=[Shrink()], filesystem=filesystem, **limits)
    store.codec = Shrink() if coded else None
    draw = random.Random(seed)
    for turn in range(10**9):
        numbers = draw.sample(range(NUMBERS), 8)
        put(store, numbers, SIZE)
        store.drop([block_key(number).hash for number in draw.sample(range(NUMBERS), 20)])
        if turn == 2:
            print(os.getpid(), flush=True)


def main() -> None:
    for line in sys.stdin:
        folder, seed, piece, coded = line.split()
        child = os.fork()
        if child == 0:
            try:
                write(Path(folder), int(seed), int(piece), bool(int(coded)))
            finally:
                os._exit(1)
        os.waitpid(child, 0)
        print("dead", flush=True)


if __name__ == "__main__":
    main()
