"""kill -9 while blocks are written: the next opening is clean, and what it serves is what was put.

A few rounds by default; `KILL_ROUNDS=100 pytest -s tests/engine/kv_store/disk/test_disk_kill.py` for more, and for the counts.
"""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.kv_store.disk.disk_store import DiskStore
from tests.engine.kv_store.disk.disk_parts import Shrink, get, number_of, put
from tests.engine.kv_store.disk.disk_writer import NUMBERS, ROOM, SIZE

pytestmark = pytest.mark.processes

ROOT = Path(__file__).parents[4]
ROUNDS = int(os.environ.get("KILL_ROUNDS", "5"))
PIECES = (0, 4096, 20_000)  # bytes of a write; 0: a block at once


@pytest.fixture
def writers() -> Iterator[subprocess.Popen[str]]:
    """Runs `disk_writer`, which forks the writers."""
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "tests.engine.kv_store.disk.disk_writer"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as process:
        yield process
        process.kill()


def kill_a_writer(writers: subprocess.Popen[str], folder: Path, seed: int) -> None:
    assert writers.stdin is not None and writers.stdout is not None
    writers.stdin.write(f"{folder} {seed} {PIECES[seed % 3]} {seed % 2}\n")
    writers.stdin.flush()
    pid = int(writers.stdout.readline())
    time.sleep(random.Random(seed).uniform(0, 0.03))
    os.kill(pid, signal.SIGKILL)
    assert writers.stdout.readline() == "dead\n"


def test_a_killed_writer_leaves_no_wrong_block(writers, tmp_path):
    served = damaged = 0
    for seed in range(ROUNDS):
        kill_a_writer(writers, tmp_path, seed)
        store = DiskStore(tmp_path, block_bytes=SIZE, fingerprint="model", limit_bytes=ROOM, codecs=[Shrink()])
        store.check_integrity()
        names = [number_of(kept.block_key) for kept in store.kept()]
        came = get(store, names, SIZE)  # compares what comes with the content of its number
        served += sum(came)
        damaged += store.damaged
        assert len(came) - sum(came) == store.damaged <= 4, "no more than were under way"
        store.drop([kept.block_key.hash for kept in store.kept()[::2]])
        put(store, random.Random(seed).sample(range(NUMBERS), 4), SIZE)
        assert all(get(store, [number_of(kept.block_key) for kept in store.kept()], SIZE))
        store.check_integrity()
        store.close()
    print(f"\n{ROUNDS} kills: {served} blocks served, all right; {damaged} torn and dropped")
    assert served > ROUNDS
