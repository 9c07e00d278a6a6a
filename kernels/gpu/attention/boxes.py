"""The KV pool as rows of a head's size, of which the chip's copy engine brings a box at a time: a block's tokens of one head.

From Hopper on the tensor memory accelerator copies a box from device to shared memory by one thread's instruction: no thread
computes addresses or holds what is on its way in registers (CUDA programming guide, "Asynchronous data copies using the tensor
memory accelerator"). A pool fits that as it is: a layer's keys and values are rows of `dim` elements, and the tokens of a block and
head lie one after the other.

The descriptor is made on the host, with each launch, and travels among its arguments: 128 bytes. Made in the kernel
(`tl.make_tensor_descriptor`) each program would write one of its own to memory that `triton.set_allocator` has to provide with
every launch, and wait until the copy engine sees it; a CUDA graph would hold that memory, too, and the allocator is a context
variable, which other threads, such as that which records, do not have.
"""

from dataclasses import replace

from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from kernels.gpu.attention.launch import Config

# Compute capabilities for which `kernels.bench` has shown boxes to be faster than pointers: none yet, as no GPU has run either.
# Where boxes take fewer keys at a time, last bits differ: so the choice is the chip's, and not that of each start's own timing.
FASTER: frozenset[int] = frozenset()
LEAST = 90  # compute capability: from there on chips have the copy engine
MOST_ROWS = 2**31  # coordinates are int32
MOST_DIM = 128  # with heads of 256, what boxes take spills on compute capability 10.0
_ALIGNED = 16  # bytes, of the pool's first row and of each


def refusal(kv: Tensor, keys: int) -> str | None:
    """Why a pool [blocks, 2, kv_heads, block_size, dim] cannot be read in boxes of `keys` rows; None if it can."""
    block_size, dim = kv.shape[3:]
    row, rows, strides = dim * kv.element_size(), _rows(kv), kv.stride()
    checks = (
        (dim > MOST_DIM, f"heads of {dim}; at most {MOST_DIM} have a program that spills nothing"),
        (kv.element_size() < 2, f"{kv.dtype} is converted in registers, through which a box does not come"),
        (block_size % keys != 0, f"{keys} rows do not divide a block of {block_size}"),
        (
            strides[3] != dim or any(each % dim for each in strides[:3]),
            f"strides {strides} are not whole rows of {dim}",
        ),
        (row % _ALIGNED != 0 or kv.data_ptr() % _ALIGNED != 0, f"rows of {row} bytes are not aligned to {_ALIGNED}"),
        (rows >= MOST_ROWS, f"{rows} rows; at most {MOST_ROWS - 1} have a number"),
    )
    return next((why for wrong, why in checks if wrong), None)


def by_boxes(config: Config, kv: Tensor) -> Config:
    """`config` with boxes: as many keys at a time as a block has, if it takes more. As it is where the pool is not read so."""
    boxed = replace(config, keys=min(config.keys, kv.shape[3]), boxes=True)
    return config if refusal(kv, boxed.keys) else boxed


def describe(kv: Tensor, config: Config) -> TensorDescriptor | None:
    """The pool [blocks, 2, kv_heads, block_size, dim] as rows [.., dim], in boxes of `config.keys` rows; columns past `dim`, up to
    a power of two, come as zeros. None if `config` is one of pointers.

    Raises:
        ValueError: the pool cannot be read so.
    """
    if not config.boxes:
        return None
    why = refusal(kv, config.keys)
    if why is not None:
        raise ValueError(f"keys and values cannot be read in boxes: {why}")
    dim = kv.shape[4]
    return TensorDescriptor(kv, [_rows(kv), dim], [dim, 1], [config.keys, 1 << (dim - 1).bit_length()])


def _rows(kv: Tensor) -> int:
    """From the first of the pool to its last."""
    return (
        1 + sum((size - 1) * stride for size, stride in zip(kv.shape[:4], kv.stride()[:4], strict=True)) // kv.shape[4]
    )
