"""The decoder on a GPU: the arithmetic of `engine/decoder.py` by Triton kernels, over the same kind of blocks.

Runs on CPU tensors too where Triton interprets (`TRITON_INTERPRET=1`), which is how it is tested without a GPU.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from configs.model_config import ModelConfig
from engine.batch import SequenceInput
from engine.gpu_batch import GpuBatch
from engine.loading.weights import LayerWeights, Weights
from engine.rope import Rope
from kernels.gpu.decode_attention import decode_attention
from kernels.gpu.embedding import embed
from kernels.gpu.paged_attention import paged_attention
from kernels.gpu.rms_norm import rms_norm
from kernels.gpu.silu_mul import silu_mul
from kernels.gpu.write_kv import write_kv


class GpuKvPool:
    """Keys and values, block-major: one block is one contiguous range over all layers.

    Attributes:
        storage: [blocks, layers, 2, kv_heads, block_size, dim] in the model's type.
        layers: views of it, one a layer: [blocks, 2, kv_heads, block_size, dim].
    """

    def __init__(
        self, config: ModelConfig, blocks: int, block_size: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.block_size = block_size
        shape = (blocks, config.layers, 2, config.kv_heads, block_size, config.head_dim)
        self.storage = torch.empty(shape, device=device, dtype=dtype)
        self.layers = list(self.storage.unbind(1))


@dataclass(frozen=True, slots=True)
class _Turns:
    cos: Tensor  # fp32 [positions, dim / 2]
    sin: Tensor


class GpuModel:
    """A model on one GPU, behind the same interface as the CPU's (`engine.model.Model`).

    Args:
        config: of the model.
        weights: any type, anywhere; they are moved to `device` in `dtype`, norms stay fp32.
        pool: its KV cache, on that device.
        device: where it computes.
        dtype: of weights, activations and cache: bf16, fp16, or fp32 to compare with the exact path.
        context: longest sequence, in tokens.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        pool: GpuKvPool,
        *,
        device: torch.device,
        dtype: torch.dtype,
        context: int,
    ) -> None:
        self.config = config
        self.pool = pool
        self._device = device
        self._weights = _moved(weights, device, dtype)
        cos, sin = Rope(config, weights.rope_factors).rows(torch.arange(context))
        self._turns = _Turns(cos.flatten(1).contiguous().to(device), sin[:, 0, 1].contiguous().to(device))

    @torch.inference_mode()
    def forward(self, inputs: Sequence[SequenceInput]) -> Tensor:
        """Compute the chunks: [results, hidden] in the model's type after the final norm."""
        return self.compute(GpuBatch.build(inputs, self.pool.block_size, self._device))

    @torch.inference_mode()
    def compute(self, batch: GpuBatch) -> Tensor:
        """What `forward` computes, of a batch on the device. Waits for nothing there: it can be captured as a CUDA graph, whose
        padding rows are single tokens with a slot of -1 and a kv_length of 0."""
        eps = self.config.rms_norm_eps
        residual = embed(self._weights.embedding, batch.token_ids)
        change: Tensor | None = None
        for index, layer in enumerate(self._weights.layers):
            normed, residual = _norm(residual, change, layer.input_norm, eps)
            normed, residual = _norm(residual, self._attend(normed, index, layer, batch), layer.post_norm, eps)
            change = F.linear(
                silu_mul(F.linear(normed, layer.gate_up, layer.gate_up_bias)), layer.down, layer.down_bias
            )
        if change is not None:
            residual = residual + change
        return rms_norm(residual[batch.results], self._weights.final_norm, eps)[0]

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of all tokens: [n, hidden] to fp32 [n, vocab]."""
        return F.linear(hidden, self._weights.head).float()

    def _attend(self, normed: Tensor, index: int, layer: LayerWeights, batch: GpuBatch) -> Tensor:
        """Attention of one layer with its projections: [rows, hidden]."""
        config, kv = self.config, self.pool.layers[index]
        heads, kv_heads = config.heads, config.kv_heads
        q_norm, k_norm = _halves(layer.qk_norm, heads)
        queries = write_kv(
            F.linear(normed, layer.qkv, layer.qkv_bias),
            kv,
            batch.positions,
            batch.slots,
            self._turns.cos,
            self._turns.sin,
            heads=heads,
            kv_heads=kv_heads,
            q_norm=q_norm,
            k_norm=k_norm,
            eps=config.rms_norm_eps,
        )
        window = (config.sliding_window or 0) if config.sliding_layers[index] else 0
        return F.linear(self._mix(queries, kv, batch, window).flatten(1), layer.o, layer.o_bias)

    def _mix(self, queries: Tensor, kv: Tensor, batch: GpuBatch, window: int) -> Tensor:
        """Attention itself: single rows split over their keys, chunks tiled."""
        one, scale, out = batch.singles, self.config.head_dim**-0.5, torch.empty_like(queries)
        if one:
            decode_attention(
                queries[:one],
                kv,
                batch.kv_lengths[:one],
                batch.block_tables[:one],
                scale=scale,
                longest_kv=batch.longest_single,
                window=window,
                out=out[:one],
            )
        if one < len(batch.kv_lengths):
            paged_attention(
                queries[one:],
                kv,
                batch.row_starts,
                batch.kv_lengths[one:],
                batch.block_tables[one:],
                scale=scale,
                longest=batch.longest,
                window=window,
                out=out[one:],
            )
        return out


def _norm(residual: Tensor, change: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(norm of the sum, the sum)."""
    return rms_norm(residual, weight, eps) if change is None else rms_norm(change, weight, eps, residual=residual)


def _halves(qk_norm: Tensor | None, heads: int) -> tuple[Tensor | None, Tensor | None]:
    """Norms of queries and keys, [dim] each, of the rows [heads + kv_heads, dim] that the exact path keeps."""
    return (None, None) if qk_norm is None else (qk_norm[0], qk_norm[heads])


def _moved(weights: Weights, device: torch.device, dtype: torch.dtype) -> Weights:
    head = weights.head.to(device, dtype)
    tied = weights.head is weights.embedding
    return replace(
        weights,
        embedding=head if tied else weights.embedding.to(device, dtype),
        head=head,
        final_norm=weights.final_norm.to(device),
        layers=[_moved_layer(layer, device, dtype) for layer in weights.layers],
    )


def _moved_layer(layer: LayerWeights, device: torch.device, dtype: torch.dtype) -> LayerWeights:
    norms = {"input_norm", "post_norm", "qk_norm"}
    values = {field.name: getattr(layer, field.name) for field in fields(layer)}
    moved: dict[str, Any] = {
        name: None if value is None else value.to(device, torch.float32 if name in norms else dtype)
        for name, value in values.items()
    }
    return LayerWeights(**moved)
