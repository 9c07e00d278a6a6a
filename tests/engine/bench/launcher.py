"""An instrumented launcher: what is launched, and the addresses that interpreted kernels read and write."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from triton.runtime import interpreter

from engine.bench.counted import PRODUCT, Launch

# Of torch, what launches nothing.
VIEWS_AND_NEW = {
    *(
        "empty",
        "empty_like",
        "new_empty",
        "view",
        "_unsafe_view",
        "reshape",
        "slice",
        "select",
        "unbind",
        "t",
        "transpose",
    ),
    *("detach", "alias", "as_strided", "unsqueeze", "split", "split_with_sizes", "expand", "flatten"),
}


def is_copy(found, given):
    """Whether a tensor is not a view of another."""
    return found.untyped_storage()._cdata != given.untyped_storage()._cdata


class Addresses:
    """Those of the launch that runs, each with its bytes."""

    def __init__(self):
        self.parts = []

    def add(self, pointers, mask):
        size = pointers.get_element_ty().primitive_bitwidth // 8
        where = pointers.data if mask is None else pointers.data[mask.data]
        self.parts.append((size, np.unique(where)))

    def taken(self):
        """Bytes at different addresses; from here on none."""
        found, self.parts = self.parts, []
        sizes = {size for size, _ in found}
        return sum(size * len(np.unique(np.concatenate([at for each, at in found if each == size]))) for size in sizes)


class Instrumented(TorchDispatchMode):
    """Notes launches in order; `launched` of Triton's kernels, torch's products, and what else of torch launches."""

    def __init__(self, *, runs: bool):
        super().__init__()
        self.runs = runs  # whether kernels run, and addresses are counted
        self.launches: list[Launch] = []
        self.others: list[str] = []
        self._inside = False
        self.read, self.written = Addresses(), Addresses()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.__name__.partition(".")[0]
        found = function(*args, **(kwargs or {}))
        if name in {"mm", "linear"} and not self._inside:
            read = sum(part.nbytes for part in args[:2])
            self.launches.append(Launch(PRODUCT, 0, read, found.nbytes))
        elif not self._inside and (name not in VIEWS_AND_NEW or (name == "flatten" and is_copy(found, args[0]))):
            self.others.append(name)
        return found

    def launch(self, kernel, arguments, grid, options):
        """In place of a kernel's `run`."""
        programs = int(np.prod(grid))
        if self.runs:
            self._inside = True
            run(kernel, *arguments, grid=grid, warmup=False, **options)
            self._inside = False
        self.launches.append(Launch(kernel.__name__, programs, self.read.taken(), self.written.taken()))


run = interpreter.InterpretedFunction.run


@contextmanager
def instrumented(monkeypatch, *, runs: bool) -> Iterator[Instrumented]:
    """Within it, every launch is noted."""
    noted, builder = Instrumented(runs=runs), interpreter.interpreter_builder
    load, store, atomic = builder.create_masked_load, builder.create_masked_store, builder.create_atomic_rmw

    def loads(pointers, mask, *rest, **options):
        noted.read.add(pointers, mask)
        return load(pointers, mask, *rest, **options)

    def stores(pointers, value, mask, *rest):
        noted.written.add(pointers, mask)
        return store(pointers, value, mask, *rest)

    def adds(kind, pointers, value, mask, *rest):
        noted.read.add(pointers, mask)
        noted.written.add(pointers, mask)
        return atomic(kind, pointers, value, mask, *rest)

    def launches(self, *arguments, grid, warmup, **options):
        noted.launch(self, arguments, grid, options)

    with monkeypatch.context() as patch:
        patch.setattr(builder, "create_masked_load", loads)
        patch.setattr(builder, "create_masked_store", stores)
        patch.setattr(builder, "create_atomic_rmw", adds)
        patch.setattr(interpreter.InterpretedFunction, "run", launches)
        with torch.inference_mode(), noted:
            yield noted
