"""Memory for pools of KV blocks: reserved at once, committed as blocks are first written."""

import torch

from engine.kv_store.pages import fresh_pages


def reserve(size: int) -> torch.Tensor:
    """Fresh zeroed pages, uint8 [size], page-aligned, given back with the last view of them.

    They are huge ones where the system has them: a layer's keys lie a page apart, and huge pages save address translations
    (measured on a virtual machine: 2 % of a row's attention at context 4,000).

    Raises:
        OSError: the system refuses that much memory.
    """
    return torch.frombuffer(fresh_pages(size), dtype=torch.uint8)


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
