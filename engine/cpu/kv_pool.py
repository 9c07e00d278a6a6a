"""The KV cache of the CPU device, block-major: one pool for each kind of arithmetic."""

import torch

from configs.model.config import ModelConfig
from engine.kv_store.host_memory import reserve


class KvPool:
    """Keys and values of `blocks` blocks of `block_size` tokens, all layers, in fp32.

    One tensor `[block, token, layer, k/v, kv_head, dim]`: a block is one contiguous range, and tokens of one layer keep a
    constant stride across neighbouring blocks (`kernels/cpu/ops/paged_attention.py` says what that buys). A slot is
    `block * block_size + offset`.

    Memory is reserved, not touched: pages are committed when blocks are first written.

    Attributes:
        storage: fp32 [blocks, block_size, layers, 2, kv_heads, dim].
        rows: per layer, fp32 [slots, 2 * kv_heads * dim]; a view.
        keys: per layer, fp32 [kv_heads, slots, dim]; a view.
        values: the same.
        sliding_window: the model's, which decides what attention has to be planned.
    """

    def __init__(self, config: ModelConfig, blocks: int, block_size: int) -> None:
        self.block_size = block_size
        self.bytes_per_token = config.kv_bytes_per_token
        self.sliding_window = config.sliding_window
        self.needs_full = not all(config.sliding_layers)
        shape = (blocks, block_size, config.layers, 2, config.kv_heads, config.head_dim)
        self.storage = reserve(blocks * block_size * self.bytes_per_token).view(torch.float32).view(shape)
        slots = self.storage.flatten(0, 1)
        self.rows = [slots[:, layer].flatten(1) for layer in range(config.layers)]
        self.keys = [slots[:, layer, 0].transpose(0, 1) for layer in range(config.layers)]
        self.values = [slots[:, layer, 1].transpose(0, 1) for layer in range(config.layers)]


class PackedKvPool:
    """Keys and values in bf16, laid out for the C++ kernels (`kernels/cpu/csrc/attention.h`).

    A block is one contiguous range, half the bytes of `KvPool`'s. Memory is reserved, not touched.

    Attributes:
        storage: int32 (pairs of bf16) [blocks, layers, kv_heads, 2, block_size * dim / 2].
    """

    def __init__(self, config: ModelConfig, blocks: int, block_size: int) -> None:
        self.block_size = block_size
        self.bytes_per_token = config.kv_bytes_per_token // 2
        shape = (blocks, config.layers, config.kv_heads, 2, block_size * config.head_dim // 2)
        self.storage = reserve(blocks * block_size * self.bytes_per_token).view(torch.int32).view(shape)
