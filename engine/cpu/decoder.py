"""The decoder: llama, mistral, qwen2 and qwen3 are one arithmetic with a few switches, all of them in `ModelConfig`.

What belongs here: the order of the operations of a forward pass. Never: how a weight is stored or read, which tokens run.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from configs.model.config import ModelConfig
from engine.cpu.batch import Batch
from engine.cpu.kv_pool import KvPool
from engine.loading.weights import Weights
from engine.models.rope import Rope
from kernels.cpu.ops.paged_attention import paged_attention
from kernels.cpu.ops.rms_norm import rms_norm
from kernels.cpu.ops.rope import rope_
from kernels.cpu.ops.silu_mul import silu_mul
from kernels.cpu.ops.write_kv import kv_write


class Decoder:
    """A loaded model. Stateless between calls: what a sequence has computed lives in the pool."""

    def __init__(self, config: ModelConfig, weights: Weights) -> None:
        self.config = config
        self._weights = weights
        self._rope = Rope(config, weights.rope_factors)
        self._scale = config.head_dim**-0.5
        self._query_size = config.heads * config.head_dim

    @torch.inference_mode()
    def forward(self, batch: Batch, pool: KvPool) -> Tensor:
        """Compute all rows of `batch`, writing their keys and values into `pool`.

        Returns:
            fp32 [rows, hidden] after the final norm.
        """
        eps = self.config.rms_norm_eps
        turns = self._rope.rows(batch.positions)
        hidden = F.embedding(batch.token_ids, self._weights.embedding)
        for index, layer in enumerate(self._weights.layers):
            qkv = F.linear(rms_norm(hidden, layer.input_norm, eps), layer.qkv, layer.qkv_bias)
            self._place(qkv, layer.qk_norm, turns)
            hidden += F.linear(self._attend(qkv, index, batch, pool), layer.o, layer.o_bias)
            gate_up = F.linear(rms_norm(hidden, layer.post_norm, eps), layer.gate_up, layer.gate_up_bias)
            hidden += F.linear(silu_mul(gate_up), layer.down, layer.down_bias)
        return rms_norm(hidden, self._weights.final_norm, eps)

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of all tokens after each row: fp32 [n, hidden] from `forward` to fp32 [n, vocab]."""
        return F.linear(hidden, self._weights.head)

    def _place(self, qkv: Tensor, qk_norm: Tensor | None, turns: tuple[Tensor, Tensor]) -> None:
        """Norm and turn queries and keys, in place, in one call each."""
        config = self.config
        heads = qkv.view(len(qkv), -1, config.head_dim)[:, : config.heads + config.kv_heads]
        if qk_norm is not None:
            heads.copy_(rms_norm(heads, qk_norm, config.rms_norm_eps))
        rope_(heads, *turns)

    def _attend(self, qkv: Tensor, index: int, batch: Batch, pool: KvPool) -> Tensor:
        """Store keys and values of layer `index`, then attend: fp32 [rows, heads * dim]."""
        config = self.config
        queries, kv = qkv[:, : self._query_size], qkv[:, self._query_size :]
        kv_write(pool.rows[index], batch.slots, kv)
        return paged_attention(
            queries.view(-1, config.kv_heads, config.group, config.head_dim),
            kv.view(-1, 2, config.kv_heads, config.head_dim),
            pool.keys[index],
            pool.values[index],
            tiles=batch.sliding if config.sliding_layers[index] else batch.full,
            scale=self._scale,
        )
