"""Memory straight from the system. No torch."""

import mmap
from contextlib import suppress


def fresh_pages(size: int) -> mmap.mmap:
    """Zeroed pages of this process alone, `size` bytes, committed as they are first written, given back with the last view of them.

    Huge pages where the system has them. The mapping is private: most systems back no shared mapping with huge pages, whatever they
    are advised.

    Raises:
        OSError: the system refuses that much memory.
    """
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without huge pages: slower, not wrong
            pages.madvise(mmap.MADV_HUGEPAGE)
    return pages
