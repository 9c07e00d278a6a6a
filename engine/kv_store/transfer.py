"""Carries blocks between the device and the tiers below it, beside the steps.

The engine's loop hands over a step's transfers when the step starts and collects results when there are some; in between, one of
these threads carries the transfer out. Each tier has one thread for each direction, so that a request's load never waits behind
copies that nobody is in a hurry for.

What belongs here: the order of transfers, their timing, what a failure means. Never: what is transferred and why, how a store
keeps it.
"""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch import Tensor

from engine.kv_store.store import BlockStore, Kept, Lent, Rows, StoreLost
from scheduler.types.block_hash import BlockKey
from scheduler.types.transfers import DEVICE, TierChanges, Transfer, TransferResult

log = logging.getLogger("headrace.engine")

_SLICE = 32  # blocks that are copied in one go; then the steps get memory and cores to themselves for a while
_REST_SAVING = 3.0  # times a slice's processor time: saving takes at most a quarter of one core from the steps
_REST_LOADING = 1.0  # somebody is waiting for it: half a core
FOLLOW_SECONDS = 1.0  # between two looks at what others have put into a shared store
EXPECT_SECONDS = 0.004  # the same while a request waits for what another engine is saving there


class TransferWorker:
    """Transfers blocks of one device. All calls belong to one thread, the loop's.

    Args:
        pool: the device's blocks as bytes, uint8 [blocks, block bytes].
        stores: the tiers below it, by name.
        wake: called from any thread when there is a result.
        follow_seconds: between two questions to a shared store what came and went.
    """

    def __init__(
        self,
        pool: Tensor,
        stores: Mapping[str, BlockStore],
        wake: Callable[[], None],
        follow_seconds: float = FOLLOW_SECONDS,
    ) -> None:
        self._pool = pool
        self._stores = dict(stores)
        self._wake = wake
        self._finished: deque[TransferResult] = deque()
        self._lost: deque[str] = deque()  # stores that a look has found lost
        self._looking: set[str] = set()
        self._follow_seconds = follow_seconds
        self._shared = {name for name, store in self._stores.items() if store.capabilities.shared}
        self._changes: deque[tuple[str, TierChanges]] = deque()
        self._following: set[str] = set()
        self._followed = -math.inf  # when the stores were last asked
        self._returned: deque[tuple[str, list[Kept]]] = deque()  # stores that were lost and can be used again
        self._sought = -math.inf  # when lost stores were last looked for
        self._told: set[str] = set()  # lost stores of which the log has a line
        self._tell = threading.Lock()
        self._closing = threading.Event()
        self._threads = {
            (tier, up): ThreadPoolExecutor(1, thread_name_prefix=f"kv-{tier}-{'up' if up else 'down'}")
            for tier in stores
            for up in (True, False)
        }
        for name in self._shared:
            self._stores[name].on_changes(partial(self._hear, name))

    def start(self, transfers: Sequence[Transfer]) -> None:
        """Start these. What they drop is dropped at once, before anything is put in its place."""
        for transfer in transfers:
            self._stores[transfer.lower].drop(transfer.drops)
            self._threads[transfer.lower, transfer.target == DEVICE].submit(self._run, transfer)

    def finished(self) -> list[TransferResult]:
        """The results since the last call, in the order in which the transfers ended."""
        results: list[TransferResult] = []
        while self._finished:
            results.append(self._finished.popleft())
        return results

    def expect_newest_first(self, name: str) -> None:
        """Tell a store that what it is given from now on comes in this order."""
        self._stores[name].expect_newest_first()

    def look(self) -> None:
        """Have each store looked at, beside its transfers, unless that is under way: what nobody uses may be lost, too."""
        for name in self._stores.keys() - self._looking - self._told:
            self._looking.add(name)
            self._threads[name, True].submit(self._look, name)

    def changes(self, *, expected: bool = False) -> list[tuple[str, TierChanges]]:
        """What others did to shared stores, as far as it is known since the last call, with the name of each. It costs no more than
        a look at the clock: when it is time, the stores are asked beside their transfers, and `wake` is called if they know any.
        While something is `expected` of others, it is soon time."""
        interval = min(EXPECT_SECONDS, self._follow_seconds) if expected else self._follow_seconds
        if self._shared and time.perf_counter() - self._followed >= interval:
            self._followed = time.perf_counter()
            for name in self._shared - self._following - self._told:
                self._following.add(name)
                self._threads[name, True].submit(self._follow, name)
        changes: list[tuple[str, TierChanges]] = []
        while self._changes:
            changes.append(self._changes.popleft())
        return changes

    def returned(self) -> list[tuple[str, list[Kept]]]:
        """Lost stores that can be used again, with what they hold. It costs no more than a look at the clock: when it is time, they
        are sought beside the transfers. Ask for `changes` before, and tell the books of them after this."""
        if self._told and time.perf_counter() - self._sought >= self._follow_seconds:
            self._sought = time.perf_counter()
            for name in self._told - self._looking:
                if self._stores[name].capabilities.returns:
                    self._looking.add(name)
                    self._threads[name, True].submit(self._seek, name)
        returned: list[tuple[str, list[Kept]]] = []
        while self._returned:
            returned.append(self._returned.popleft())
        return returned

    def lost(self) -> list[str]:
        """The stores that were found lost since the last call, though no transfer has failed."""
        names: list[str] = []
        while self._lost:
            names.append(self._lost.popleft())
        return names

    def finish(self) -> None:
        """Wait for what is under way, and cancel the rest. Nothing can be started any more."""
        self._closing.set()
        for thread in self._threads.values():
            thread.shutdown(cancel_futures=True)

    def close(self) -> None:
        """Finish, and close the stores."""
        self.finish()
        for store in self._stores.values():
            store.close()

    # --- in a thread ---

    def _run(self, transfer: Transfer) -> None:
        result = TransferResult(transfer_id=transfer.transfer_id, sizes=[0] * len(transfer.block_keys))
        rest = 0.0
        try:
            for pin in transfer.pins:
                self._stores[transfer.lower].pin(pin.keys, pin.until)
            for keys in transfer.lookups:
                self._stores[transfer.lower].on_lookup(keys)
            rest = self._carry(transfer, result)
        except StoreLost as error:
            self._tell_lost(transfer.lower, error)
            result.sizes, result.lost = [0] * len(transfer.block_keys), transfer.lower
        except Exception:
            log.exception(
                "a transfer of %d blocks %s -> %s failed", len(transfer.block_keys), transfer.source, transfer.target
            )
            result.sizes = [0] * len(transfer.block_keys)
        if transfer.target == DEVICE:  # what cannot be read is not asked for again
            result.gone = [
                block_key.hash for block_key, size in zip(transfer.block_keys, result.sizes, strict=True) if not size
            ]
        self._finished.append(result)
        self._wake()
        self._closing.wait(rest)

    def _look(self, name: str) -> None:
        try:
            self._stores[name].check()
        except StoreLost as error:
            self._give_up(name, error)
        finally:
            self._looking.remove(name)

    def _seek(self, name: str) -> None:
        try:
            self._stores[name].check()
            kept = list(self._stores[name].kept())
        except StoreLost:
            return
        except Exception:
            log.exception("KV tier %s cannot be taken up again", name)
            return
        finally:
            self._looking.remove(name)
        log.info("KV tier %s is back, with %d blocks", name, len(kept))
        self._returned.append((name, kept))  # before any change after it
        with self._tell:
            self._told.discard(name)
        self._hear(name)
        self._wake()

    def _hear(self, name: str) -> None:
        """A store has something to say; in its thread."""
        if name in self._told:
            return
        try:
            changes = self._stores[name].changes()
        except StoreLost as error:
            self._give_up(name, error)
            return
        if changes.came or changes.went:
            self._changes.append((name, changes))
            self._wake()

    def _follow(self, name: str) -> None:
        try:
            changes = self._stores[name].changes()
        except StoreLost as error:
            self._give_up(name, error)
        except Exception:
            log.exception("KV tier %s does not say what others put there, and is not asked again", name)
            self._shared.discard(name)
        else:
            if changes.came or changes.went:
                self._changes.append((name, changes))
                self._wake()
        finally:
            self._following.remove(name)

    def _give_up(self, name: str, error: StoreLost) -> None:
        """A store is lost, though no transfer has failed."""
        self._tell_lost(name, error)
        self._lost.append(name)
        self._wake()

    def _tell_lost(self, name: str, error: StoreLost) -> None:
        """Once, however many transfers were under way."""
        with self._tell:
            first = name not in self._told
            self._told.add(name)
        if first:
            returns = self._stores[name].capabilities.returns
            until = "it is back" if returns else "the next start"
            log.warning("KV tier %s is lost until %s, serving goes on without it: %s", name, until, error)

    def _carry(self, transfer: Transfer, result: TransferResult) -> float:
        """Carry it out slice by slice, with rests in between. Returns the rest that is due after the last, in seconds.

        `result.seconds` is the time that a waiting request waits: rests between slices are part of it.
        """
        ratio = 0.0 if transfer.urgent else _REST_LOADING if transfer.target == DEVICE else _REST_SAVING
        began, rest = time.perf_counter(), 0.0
        for part in _slices(len(transfer.block_keys)):
            self._closing.wait(rest)
            busy = time.thread_time()  # waiting for a disk holds nobody up
            result.sizes[part], copies = self._carry_slice(transfer, part)
            rest = ratio * (time.thread_time() - busy)
            result.copies += copies
            result.seconds = time.perf_counter() - began
        return rest

    def _carry_slice(self, transfer: Transfer, part: slice) -> tuple[list[int], int]:
        """The bytes that each block takes (0: it was not carried), and the number of ranges copied."""
        block_keys, blocks = transfer.block_keys[part], transfer.blocks[part]
        store = self._stores[transfer.lower]
        before = _copies(store, transfer)
        if transfer.target == DEVICE:
            sizes = [int(arrived) for arrived in self._load(store, block_keys, blocks)]
        elif transfer.source == DEVICE:
            sizes = self._save(store, block_keys, blocks)
        else:
            sizes = self._spill(self._stores[transfer.source], store, block_keys)
        return sizes, _copies(store, transfer) - before

    def _load(self, store: BlockStore, block_keys: Sequence[BlockKey], blocks: Sequence[int]) -> list[bool]:
        if self._sees_pool(store):
            return store.get(block_keys, Rows(self._pool, blocks))
        staging = self._staging(len(block_keys))
        arrived = store.get(block_keys, Rows(staging, range(len(block_keys))))
        self._pool[torch.tensor(blocks, device=self._pool.device)] = staging.to(self._pool.device)
        # Not torch.cuda.synchronize: waiting for the whole device would break off the capture of a graph.
        torch.cuda.current_stream(self._pool.device).synchronize()
        return arrived

    def _save(self, store: BlockStore, block_keys: Sequence[BlockKey], blocks: Sequence[int]) -> list[int]:
        if self._sees_pool(store):
            return store.put(block_keys, Rows(self._pool, blocks))
        staging = self._pool[torch.tensor(blocks, device=self._pool.device)].cpu()
        return store.put(block_keys, Rows(staging, range(len(block_keys))))

    def _spill(self, upper: BlockStore, lower: BlockStore, block_keys: Sequence[BlockKey]) -> list[int]:
        with ExitStack() as stack:
            try:
                lent = stack.enter_context(self._lent(upper, block_keys))
            except StoreLost:  # its own transfers will report it; the lower tier is as good as before
                return [0] * len(block_keys)
            size_of = dict(zip(lent.block_keys, lower.put(lent.block_keys, lent.rows), strict=True))
        return [size_of.get(block_key, 0) for block_key in block_keys]

    @contextmanager
    def _lent(self, store: BlockStore, block_keys: Sequence[BlockKey]) -> Iterator[Lent]:
        """Those of these contents that the store has: in place, or read into memory of our own."""
        if store.capabilities.contiguous_rows:
            with store.lend(block_keys) as lent:
                yield lent
            return
        staging = self._staging(len(block_keys))
        arrived = store.get(block_keys, Rows(staging, range(len(block_keys))))
        rows = [row for row, came in enumerate(arrived) if came]
        yield Lent([block_keys[row] for row in rows], Rows(staging, rows))

    def _sees_pool(self, store: BlockStore) -> bool:
        return store.capabilities.device_visible or self._pool.device.type == "cpu"

    def _staging(self, blocks: int) -> Tensor:
        return torch.empty((blocks, self._pool.shape[1]), dtype=torch.uint8, pin_memory=self._pool.is_cuda)


def _copies(store: BlockStore, transfer: Transfer) -> int:
    """Ranges of memory that the store has copied so far in the transfer's direction."""
    return store.load_copies if transfer.target == DEVICE else store.save_copies


def _slices(count: int) -> list[slice]:
    return [slice(begin, min(begin + _SLICE, count)) for begin in range(0, count, _SLICE)]
