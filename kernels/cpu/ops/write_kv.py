"""Keys and values of a step's tokens into their slots of one layer of the pool.

Floor at one token of 2 x 3 heads of 64: 1.5 kB read and written, under 1 µs; measured 1.7 µs. 512 tokens: 1.6 MB of
traffic, 0.1 ms; measured 0.14 ms.
"""

from torch import Tensor


def kv_write(layer: Tensor, slots: Tensor, kv: Tensor) -> None:
    """Write one row per token. Slots of a step are distinct, so the order of writes does not matter.

    Args:
        layer: fp32 [slots, 2 * kv_heads * dim], a strided view of the pool; overwritten at `slots`.
        slots: int64 [tokens].
        kv: fp32 [tokens, 2 * kv_heads * dim]: all keys of a token, then all its values.
    """
    layer.index_copy_(0, slots, kv)


def kv_write_reference(layer: Tensor, slots: Tensor, kv: Tensor) -> None:
    """The definition, one token at a time. Same arguments as `kv_write`."""
    for token, slot in enumerate(slots.tolist()):
        layer[slot] = kv[token]
