"""The exact decoder: the forward pass of every model family in fp32, by torch, on one process or on a group of them.

What belongs here: the order of the operations of a forward pass. Never: how a weight is stored or read, which tokens run, what a
family is called.
"""

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from configs.model.config import ModelConfig
from engine.cpu.batch import Batch
from engine.cpu.formats import EXACT
from engine.cpu.kv_pool import KvPool
from engine.cpu.weights import LayerWeights, Weights
from engine.models.family import Activation, Axis
from engine.models.registry import family_of
from engine.models.rope import LayerRopes
from engine.tensor_parallel.process_group import ProcessGroup, SingleProcess
from engine.tensor_parallel.shards import Shard, split_config
from kernels.cpu.ops.gelu_mul import gelu_mul, gelu_tanh_mul
from kernels.cpu.ops.paged_attention import paged_attention
from kernels.cpu.ops.rms_norm import rms_norm
from kernels.cpu.ops.rope import rope_
from kernels.cpu.ops.silu_mul import silu_mul
from kernels.cpu.ops.soft_cap import soft_cap_
from kernels.cpu.ops.write_kv import kv_write

_GATED: Mapping[Activation, Callable[[Tensor], Tensor]] = {
    "silu": silu_mul,
    "gelu": gelu_mul,
    "gelu_tanh": gelu_tanh_mul,
}


class Decoder:
    """A loaded model. Stateless between calls: what a sequence has computed lives in the pool.

    All ranks of a group call `forward` with the same batch, each over its own pool, and get the same result; then `logits`.

    Args:
        config: of the whole model. `self.config` describes this rank's part: the pool must be made for that.
        weights: this rank's shard.
        group: the processes that compute the model; None: this one alone.

    Raises:
        ModelError: a variant of the model's family is not computed.
        ValueError: the model cannot be split over the group's ranks (`split_config`).
    """

    def __init__(self, config: ModelConfig, weights: Weights, group: ProcessGroup | None = None) -> None:
        EXACT.check(config)
        self._group: ProcessGroup = group or SingleProcess()
        self.config = split_config(config, self._group.size)
        self._weights = weights
        self._words = Shard.of(config, self._group.rank, self._group.size).axes[Axis.VOCABULARY]
        self._gated = _GATED[family_of(config).activation]
        self._ropes = LayerRopes(config, weights.rope_factors)
        self._scale = config.attention_scale
        self._query_size = self.config.heads * config.head_dim
        self._key_size = self.config.kv_heads * config.head_dim

    @torch.inference_mode()
    def forward(self, batch: Batch, pool: KvPool) -> Tensor:
        """Compute all rows of `batch`, writing their keys and values into `pool`.

        Returns:
            fp32 [rows, hidden] after the final norm.
        """
        eps, add_up, adapters = self.config.rms_norm_eps, self._group.sum, batch.adapters
        turns = [rope.rows(batch.positions) for rope in self._ropes.ropes]
        hidden = self._embed(batch.token_ids)
        if self.config.scales.embedding_scale is not None:
            hidden *= self.config.scales.embedding_scale
        share = self.config.scales.residual_scale or 1.0
        for index, layer in enumerate(self._weights.layers):
            qkv, rope = layer.qkv(_normed(hidden, layer.input_norm, eps), adapters), self._ropes.of_layer[index]
            self._place(qkv, layer, None if rope is None else turns[rope])
            mixed = add_up(layer.o(self._attend(qkv, index, batch, pool), adapters))
            hidden.add_(_normed(mixed, layer.after_attention_norm, eps), alpha=share)
            gate_up = layer.gate_up(_normed(hidden, layer.post_norm, eps), adapters)
            added = add_up(layer.down(self._gated(gate_up), adapters))
            hidden.add_(_normed(added, layer.after_mlp_norm, eps), alpha=share)
        return rms_norm(hidden, self._weights.final_norm, eps)

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of all tokens after each row: fp32 [n, hidden] from `forward` to fp32 [n, vocab], on every rank."""
        logits = self._group.gather(F.linear(hidden, self._weights.head))[:, : self.config.vocab_size]
        scale, cap = self.config.scales.logit_scale, self.config.scales.final_soft_cap
        if scale is not None:
            logits *= scale
        return logits if cap is None else soft_cap_(logits, cap)

    def _embed(self, token_ids: Tensor) -> Tensor:
        """int64 [rows] to [rows, hidden]. A row is on one rank, zero on the others: the sum is exact."""
        if self._group.size == 1:
            return F.embedding(token_ids, self._weights.embedding)
        outside = (token_ids < self._words.start) | (token_ids >= self._words.stop)
        here = (token_ids - self._words.start).masked_fill_(outside, 0)
        found = F.embedding(here, self._weights.embedding)
        return self._group.sum(found.masked_fill_(outside[:, None], 0.0))

    def _place(self, qkv: Tensor, layer: LayerWeights, turns: tuple[Tensor, Tensor] | None) -> None:
        """Norm and rotate queries and keys in place, both in one call."""
        config = self.config
        heads = qkv.view(len(qkv), -1, config.head_dim)[:, : config.heads + config.kv_heads]
        if layer.qk_norm is not None:
            heads.copy_(rms_norm(heads, layer.qk_norm, config.rms_norm_eps))
        if layer.wide_qk_norm is not None:
            self._norm_across_heads(qkv, layer.wide_qk_norm)
        if turns is not None:
            rope_(heads if config.rotary_dim is None else heads[..., : config.rotary_dim], *turns)

    def _norm_across_heads(self, qkv: Tensor, weight: Tensor) -> None:
        """Norm all queries of a row as one vector, and all its keys as another, over the heads of all ranks."""
        config, keys = self.config, self._key_size
        parts = qkv[:, : self._query_size], qkv[:, self._query_size : self._query_size + keys]
        squares = torch.stack([part.square().sum(1) for part in parts], dim=1)
        # KV heads that several ranks keep count once for each.
        widths = torch.tensor([self._query_size, keys]) * self._group.size
        scale = torch.rsqrt(self._group.sum(squares) / widths + config.rms_norm_eps)
        for index, (part, own) in enumerate(zip(parts, torch.split(weight, [self._query_size, keys]), strict=True)):
            part.mul_(scale[:, index, None]).mul_(own)

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
            soft_cap=config.scales.attention_soft_cap,
        )


def _normed(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """`x` itself where the family has no such norm."""
    return x if weight is None else rms_norm(x, weight, eps)
