"""What a disk store finds in its files when it is opened: the heads of all slots."""

import errno
import mmap
from collections.abc import Iterator
from concurrent.futures import Executor
from itertools import chain
from typing import NamedTuple

from engine.kv_store.disk.filesystem import Filesystem
from engine.kv_store.disk.folder import Folder
from engine.kv_store.disk.record import PAGE, Head, read_head
from engine.kv_store.disk.slots import Place

_HEADS_A_TASK = 64


class Found(NamedTuple):
    """A slot of a file.

    Attributes:
        place: which.
        head: None if there is no undamaged one.
        readable: False if the disk cannot read it.
    """

    place: Place
    head: Head | None
    readable: bool = True


def scan(folder: Folder, filesystem: Filesystem, slot_bytes: int, threads: Executor) -> Iterator[Found]:
    """All slots of all files, in no particular order.

    Only heads are read, a page each: 28,000 a second as measured with four requests at once, so 100 GiB of blocks of 720 KiB take
    five seconds. The first `get` verifies what follows a head.

    Raises:
        OSError: a file cannot be opened.
    """

    def task(first: Place, count: int) -> list[Found]:
        page = memoryview(mmap.mmap(-1, PAGE))  # aligned, as direct access wants it
        file = folder.file(first.segment)
        places = (Place(first.segment, first.slot + i) for i in range(count))
        return [_look(filesystem, file, place, slot_bytes, page) for place in places]

    tasks = []
    for segment in folder.segments():
        slots = -(-filesystem.size(folder.file(segment)) // slot_bytes)
        for slot in range(0, slots, _HEADS_A_TASK):
            tasks.append(threads.submit(task, Place(segment, slot), min(_HEADS_A_TASK, slots - slot)))
    return chain.from_iterable(task.result() for task in tasks)


def _look(filesystem: Filesystem, file: int, place: Place, slot_bytes: int, page: memoryview) -> Found:
    try:
        whole = filesystem.read(file, [page], place.slot * slot_bytes) == PAGE
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return Found(place, None, readable=False)
    return Found(place, read_head(page) if whole else None)
