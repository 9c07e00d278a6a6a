"""Memory for pools of KV blocks: reserved at once, committed as blocks are first written."""

import mmap
from contextlib import suppress

import torch


def reserve(size: int) -> torch.Tensor:
    """Fresh zeroed pages, uint8 [size], page-aligned, given back with the last view of them.

    Huge pages where the system has them: a layer's keys lie a page apart, and huge pages save address translations (measured on
    a virtual machine: 2 % of a row's attention at context 4,000). The mapping is private: most systems back no shared mapping with
    huge pages, whatever they are advised.

    Raises:
        OSError: the system refuses that much memory.
    """
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without huge pages: slower, not wrong
            pages.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(pages, dtype=torch.uint8)


def pin(pages: torch.Tensor) -> None:
    """Keep these pages where they are, for a GPU's copy engines; commits them. torch's own pinned memory comes in powers of two,
    which would waste up to half of a large slab.

    Raises:
        RuntimeError: there is no GPU, or the system does not let that much be pinned.
    """
    if not torch.cuda.is_available():
        raise RuntimeError("only a GPU's driver can pin memory, and torch finds none")
    runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    torch.cuda.check_error(runtime.cudaHostRegister(pages.data_ptr(), pages.nbytes, 0))


def unpin(pages: torch.Tensor) -> None:
    """Undo `pin`, before the last view of the pages is gone."""
    runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    torch.cuda.check_error(runtime.cudaHostUnregister(pages.data_ptr()))
