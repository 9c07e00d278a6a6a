"""Carries blocks between the device and the tiers below it, beside the steps.

The engine's loop hands over a step's moves when the step starts and collects results whenever some are there; in between a move is
in the hands of one of these threads. For each tier what comes goes one after the other, and what goes down likewise, so that a
request's load never waits behind copies that nobody is in a hurry for.

What belongs here: the order of moves, their timing, what a failure means. Never: what is moved and why, how a store keeps it.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import torch
from torch import Tensor

from engine.kv_store.host import HostStore
from engine.kv_store.store import BlockStore, Rows, StoreLost
from scheduler.types.transfers import Label, Move, MoveResult, Tier

log = logging.getLogger("headrace.engine")

_SLICE = 32  # blocks that are moved in one go; then the steps get the memory and the cores for a while
_REST_SAVING = 3.0  # times as long as a slice took: saving takes at most a quarter of one core from the steps
_REST_LOADING = 1.0  # somebody waits for it: half a core


class Mover:
    """Moves blocks of one device. All calls belong to one thread, the loop's.

    Args:
        pool: the device's blocks as bytes, uint8 [blocks, block bytes].
        stores: of each tier below it.
        wake: called from any thread when a result is there.
    """

    def __init__(
        self,
        pool: Tensor,
        stores: Mapping[Tier, BlockStore],
        wake: Callable[[], None],
    ) -> None:
        self._pool = pool
        self._stores = dict(stores)
        self._wake = wake
        self._finished: deque[MoveResult] = deque()
        self._closing = threading.Event()
        self._threads = {
            (tier, up): ThreadPoolExecutor(1, thread_name_prefix=f"kv-{tier}-{'up' if up else 'down'}")
            for tier in stores
            for up in (True, False)
        }

    def start(self, moves: Sequence[Move]) -> None:
        """Begin these; what they drop is dropped before anything else is put there."""
        for move in moves:
            self._stores[move.lower].drop(move.drops)
            self._threads[move.lower, move.target is Tier.DEVICE].submit(self._run, move)

    def finished(self) -> list[MoveResult]:
        """Results since the last call, in the order of their ends."""
        results: list[MoveResult] = []
        while self._finished:
            results.append(self._finished.popleft())
        return results

    def close(self) -> None:
        """Wait for what is under way, let go of the rest, close the stores."""
        self._closing.set()
        for thread in self._threads.values():
            thread.shutdown(cancel_futures=True)
        for store in self._stores.values():
            store.close()

    # --- in a thread ---

    def _run(self, move: Move) -> None:
        result = MoveResult(move_id=move.move_id, sizes=[0] * len(move.labels))
        rest = 0.0
        try:
            rest = self._carry(move, result)
        except StoreLost as error:
            log.warning("KV tier %s is lost, serving goes on without it: %s", move.lower, error)
            result.sizes, result.lost = [0] * len(move.labels), move.lower
        except Exception:
            log.exception("a move of %d blocks %s -> %s failed", len(move.labels), move.source, move.target)
            result.sizes = [0] * len(move.labels)
        if move.target is Tier.DEVICE:  # what cannot be read is not asked for again
            result.gone = [label.key for label, size in zip(move.labels, result.sizes, strict=True) if not size]
        self._finished.append(result)
        self._wake()
        self._closing.wait(rest)

    def _carry(self, move: Move, result: MoveResult) -> float:
        """Slice by slice, with rests between them. Returns the rest that is due after the last.

        `result.seconds` is what somebody who waits for it would wait: rests between slices are in it.
        """
        share = 0.0 if move.urgent else _REST_LOADING if move.target is Tier.DEVICE else _REST_SAVING
        began, rest = time.perf_counter(), 0.0
        for part in _slices(len(move.labels)):
            self._closing.wait(rest)
            busy = time.thread_time()  # a disk's waiting holds nobody up
            result.sizes[part], copies = self._carry_slice(move, part)
            rest = share * (time.thread_time() - busy)
            result.copies += copies
            result.seconds = time.perf_counter() - began
        return rest

    def _carry_slice(self, move: Move, part: slice) -> tuple[list[int], int]:
        """Sizes, and ranges copied."""
        labels, blocks = move.labels[part], move.blocks[part]
        store = self._stores[move.lower]
        before = _copies(store, move)
        if move.target is Tier.DEVICE:
            sizes = [int(arrived) for arrived in self._load(store, labels, blocks)]
        elif move.source is Tier.DEVICE:
            sizes = self._save(store, labels, blocks)
        else:
            sizes = self._spill(store, labels)
        return sizes, _copies(store, move) - before

    def _load(self, store: BlockStore, labels: Sequence[Label], blocks: Sequence[int]) -> list[bool]:
        rows = Rows(self._pool, blocks)
        if isinstance(store, HostStore) or self._pool.device.type == "cpu":
            return store.get(labels, rows)
        staging = self._staging(len(labels))
        arrived = store.get(labels, Rows(staging, range(len(labels))))
        self._pool[torch.tensor(blocks, device=self._pool.device)] = staging.to(self._pool.device)
        torch.cuda.current_stream(self._pool.device).synchronize()  # the device's own would break a graph's capture off
        return arrived

    def _save(self, store: BlockStore, labels: Sequence[Label], blocks: Sequence[int]) -> list[int]:
        rows = Rows(self._pool, blocks)
        if isinstance(store, HostStore) or self._pool.device.type == "cpu":
            return store.put(labels, rows)
        staging = self._pool[torch.tensor(blocks, device=self._pool.device)].cpu()
        return store.put(labels, Rows(staging, range(len(labels))))

    def _spill(self, store: BlockStore, labels: Sequence[Label]) -> list[int]:
        host = self._stores[Tier.HOST]
        assert isinstance(host, HostStore)
        with ExitStack() as stack:
            try:
                lent = stack.enter_context(host.lend(labels))
            except StoreLost:  # its own moves tell it; the lower tier is as good as before
                return [0] * len(labels)
            size_of = dict(zip(lent.labels, store.put(lent.labels, lent.rows), strict=True))
        return [size_of.get(label, 0) for label in labels]

    def _staging(self, blocks: int) -> Tensor:
        return torch.empty((blocks, self._pool.shape[1]), dtype=torch.uint8, pin_memory=True)


def _copies(store: BlockStore, move: Move) -> int:
    """Ranges of memory it has copied so far in the move's direction; a disk writes each block by itself."""
    if not isinstance(store, HostStore):
        return 0
    return store.load_copies if move.target is Tier.DEVICE else store.save_copies


def _slices(count: int) -> list[slice]:
    return [slice(begin, min(begin + _SLICE, count)) for begin in range(0, count, _SLICE)]
