"""Memory that is in use moves to huge pages: its content stays, steps get their turn, and a system without them is asked once."""

import errno
import mmap
import random
import threading
import time

import torch

from engine.cpu.huge_pages import HUGE, HugePages, _work_of_others


def tensor(size, offset=0, memory=None):
    memory = memory or mmap.mmap(-1, size + offset, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(memory, dtype=torch.uint8, count=size, offset=offset)


class System:
    """`madvise`, a clock of ours, and other threads that take a whole core, or none."""

    def __init__(self, answers=(), busy=True):
        self.asked, self.pauses, self._answers, self._busy = [], [], iter(answers), busy

    def advise(self, address, size, advice):
        self.asked.append((address, size, advice))
        return next(self._answers, 0)

    def others(self):
        return time.perf_counter() if self._busy else 7.0

    def pages(self, *tensors):
        return HugePages(tensors, advise=self.advise, sleep=self.pauses.append, others=self.others)


def test_every_huge_page_inside_is_asked_for_once_after_a_pause_each():
    system, tensors = System(), [tensor(5 * HUGE + 4096), tensor(HUGE // 2), tensor(3 * HUGE), torch.empty(0)]
    got = system.pages(*tensors, tensors[0][7:].view(-1)).run()
    assert got == len(system.asked) and 6 <= got <= 8
    assert {size for _, size, _ in system.asked} == {HUGE} and {advice for *_, advice in system.asked} == {25}
    places = [address for address, *_ in system.asked]
    assert len(set(places)) == len(places) and all(place % HUGE == 0 for place in places)
    bounds = [(each.data_ptr(), each.data_ptr() + each.nbytes) for each in tensors]
    assert all(any(start <= place and place + HUGE <= end for start, end in bounds) for place in places)
    assert len(system.pauses) == 1 + got and system.pauses[0] >= 1 and all(pause >= 0 for pause in system.pauses)


def test_while_no_step_runs_one_follows_the_other():
    system = System(busy=False)
    assert system.pages(tensor(5 * HUGE)).run() >= 4
    assert len(system.pauses) == 1 and system.pauses[0] >= 1


def test_the_work_of_others_is_that_of_other_threads():
    def work(seconds):
        while time.thread_time() < seconds:
            pass

    began, ours = _work_of_others(), time.thread_time()
    work(ours + 0.1)
    between = _work_of_others()
    other = threading.Thread(target=work, args=(0.05,))
    other.start()
    other.join()
    assert between - began < 0.1 and _work_of_others() - between >= 0.045


def test_a_page_under_two_matrices_of_one_memory_is_got():
    memory = mmap.mmap(-1, 4 * HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    half = HUGE // 2 - 64
    system = System()
    parts = [tensor(half, start, memory) for start in range(0, 4 * HUGE, HUGE // 2)]
    assert system.pages(*parts).run() >= 3


def test_a_page_that_is_not_to_be_had_is_left_and_the_others_are_got():
    system = System([0, errno.EAGAIN, errno.ENOMEM, errno.EBUSY])
    asked = system.pages(tensor(8 * HUGE))
    assert asked.run() == len(system.asked) - 3 >= 4


def test_a_system_that_does_not_know_it_is_told_what_may_be_huge():
    system, tensors = System([errno.EINVAL]), [tensor(4 * HUGE), tensor(HUGE)]
    assert system.pages(*tensors).run() == 0
    told = system.asked[1:]
    assert {advice for *_, advice in told} == {14} and sum(size for _, size, _ in told) == 5 * HUGE
    assert all(address % mmap.PAGESIZE == 0 for address, *_ in told)


def test_what_it_holds_stays_what_it_is():
    """By the real system, whatever it gives."""
    memory, content = tensor(6 * HUGE), random.Random(5).randbytes(6 * HUGE)
    memory[:] = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    assert HugePages([memory], sleep=lambda seconds: None).run() in (0, 5, 6)
    assert memory.numpy().tobytes() == content
