"""Huge pages under memory that is in use already, for fewer address translations. A start does not wait for them: it packs weights
into small pages, as clearing huge ones took 0.3 to 17 s a gigabyte on a virtual machine whose host had to find them first, and
small ones half a second each time.
"""

import ctypes
import errno
import logging
import mmap
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from torch import Tensor

HUGE = 2 << 20  # bytes of a huge page
_MAY_BE_HUGE = 14  # MADV_HUGEPAGE: in the course of minutes, by a thread of the system's
_COLLAPSE = 25  # MADV_COLLAPSE of Linux 6.1, which Python does not name: now, by the thread that asks
_WAIT_SECONDS = 5.0  # before the first: the start ends meanwhile
_PAUSES = 3  # as long as what it pauses from, while steps run
_IDLE = 0.1  # of a core's time, at most what other threads of the process take when no step runs
_log = logging.getLogger("headrace.engine")

Advise = Callable[[int, int, int], int]  # address, bytes, advice -> 0 or a number of `errno`'s


def _advise(address: int, size: int, advice: int) -> int:
    """`madvise` without Python's lock, which `mmap.madvise` would hold while pages are copied."""
    libc = ctypes.CDLL(None, use_errno=True)
    return ctypes.get_errno() if libc.madvise(ctypes.c_void_p(address), ctypes.c_size_t(size), advice) else 0


def _work_of_others() -> float:
    """Seconds of processor time that this process has taken, those of the thread that asks left out."""
    return time.process_time() - time.thread_time()


class HugePages:
    """Moves memory to huge pages, one after the other, while others read and write it: what it holds stays what it is.

    Args:
        tensors: of whose memory as many huge pages are got as fit inside. Held as long as this is at work.
        advise: `madvise`.
        sleep: pauses for seconds.
        others: processor time of the process's other threads so far, in seconds.
    """

    def __init__(
        self,
        tensors: Sequence[Tensor],
        *,
        advise: Advise = _advise,
        sleep: Callable[[float], None] = time.sleep,
        others: Callable[[], float] = _work_of_others,
    ) -> None:
        self._tensors, self._advise, self._sleep, self._others = tensors, advise, sleep, others

    def begin(self) -> None:
        """Start, on a thread that ends by itself or with the process."""
        threading.Thread(target=self.run, name="huge pages", daemon=True).start()

    def run(self) -> int:
        """Get all of them. Returns how many it got; ends early where the system has none, or is told to take its time with them.

        While steps run it pauses after each for three times as long as it took, so that they have the cores and the lock of the
        memory; while none does, one follows the other.
        """
        self._sleep(_WAIT_SECONDS)
        got = 0
        for address in self._places():
            began, worked = time.perf_counter(), self._others()
            failed = self._advise(address, HUGE, _COLLAPSE)
            if failed == errno.EINVAL:  # an older Linux, or one without huge pages
                self._leave_to_the_system()
                break
            got += not failed
            took = time.perf_counter() - began
            if self._others() - worked > _IDLE * took:
                self._sleep(_PAUSES * took)
        _log.debug("huge pages of weights: %d", got)
        return got

    def _places(self) -> Iterator[int]:
        for start, end in self._memories():
            yield from range(-(-start // HUGE) * HUGE, end - HUGE + 1, HUGE)

    def _leave_to_the_system(self) -> None:
        """Linux's own thread gets them in the course of minutes, if it can."""
        for start, end in self._memories():
            first = start // mmap.PAGESIZE * mmap.PAGESIZE
            self._advise(first, end - first, _MAY_BE_HUGE)

    def _memories(self) -> list[tuple[int, int]]:
        """First and last address of what tensors lie in, those that lie together as one: matrices of a layer share memory."""
        storages = [tensor.untyped_storage() for tensor in self._tensors]
        found: list[tuple[int, int]] = []
        for start, end in sorted((each.data_ptr(), each.data_ptr() + each.nbytes()) for each in storages):
            if found and start - found[-1][1] < mmap.PAGESIZE:
                found[-1] = (found[-1][0], max(end, found[-1][1]))
            else:
                found.append((start, end))
        return found
