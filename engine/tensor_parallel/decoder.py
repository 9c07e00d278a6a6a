"""The exact decoder (`engine/cpu/decoder.py`) with its weights split over processes: every rank computes every step."""

import torch
from torch import Tensor

from configs.model.config import ModelConfig
from engine.cpu.batch import Batch
from engine.cpu.decoder import Decoder
from engine.cpu.kv_pool import KvPool
from engine.loading.weights import Weights
from engine.tensor_parallel.shards import (
    ParallelLayer,
    Ranks,
    VocabularyEmbedding,
    VocabularyHead,
    split_config,
    split_weights,
)
from kernels.cpu.ops.rms_norm import rms_norm
from kernels.cpu.ops.silu_mul import silu_mul


class ParallelDecoder(Decoder):
    """One rank's part of a model, behind the decoder's own interface.

    All ranks call `forward` with the same batch, each over its own pool, and get the same result; then `logits`.

    Args:
        config: of the whole model. `self.config` describes this rank's part: the pool must be made for that.
        weights: of the whole model; they are copied from.
        ranks: who computes it.

    Raises:
        ValueError: see `split_config`.
    """

    def __init__(self, config: ModelConfig, weights: Weights, ranks: Ranks) -> None:
        part = split_weights(weights, config, ranks.rank, ranks.size)
        super().__init__(split_config(config, ranks.size), part)
        self._layers = [ParallelLayer.of(layer, ranks) for layer in part.layers]
        self._embedding = VocabularyEmbedding(part.embedding, ranks)
        self._head = VocabularyHead(part.head, config.vocab_size, ranks)

    @torch.inference_mode()
    def forward(self, batch: Batch, pool: KvPool) -> Tensor:
        """See `Decoder`."""
        eps = self.config.rms_norm_eps
        turns = self._rope.rows(batch.positions)
        hidden = self._embedding(batch.token_ids)
        for index, layer in enumerate(self._layers):
            qkv = layer.qkv(rms_norm(hidden, layer.input_norm, eps))
            self._place(qkv, layer.qk_norm, turns)
            hidden += layer.o(self._attend(qkv, index, batch, pool))
            hidden += layer.down(silu_mul(layer.gate_up(rms_norm(hidden, layer.post_norm, eps))))
        return rms_norm(hidden, self._weights.final_norm, eps)

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """See `Decoder`."""
        return self._head(hidden)
