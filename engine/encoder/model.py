"""The forward pass of an encoder, by torch, on any device: Devlin et al. 2019, arXiv 1810.04805, section 3, without dropout.

Texts of any lengths lie end to end, without padding: only attention knows where one ends. Texts of equal length attend in one call.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor

from configs.model.encoder import EncoderConfig
from engine.encoder.weights import Weights
from engine.models.registry import encoder_family_of

_ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "tanh": torch.tanh,
}


@dataclass(frozen=True, slots=True)
class EncoderInput:
    """One whole text, or pair of texts.

    Attributes:
        token_ids: special ones included.
        pair_start: index of the second text's first token, from which on tokens are of the second type; 0: one text.
    """

    token_ids: Sequence[int]
    pair_start: int = 0


@dataclass(frozen=True, slots=True)
class _Linear:
    weight: Tensor  # [out, in]
    bias: Tensor  # [out]

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


@dataclass(frozen=True, slots=True)
class _Norm:
    weight: Tensor  # [hidden]
    bias: Tensor
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


@dataclass(frozen=True, slots=True)
class _EncoderLayer:
    qkv: _Linear  # stacked along outputs
    o: _Linear
    attention_norm: _Norm
    up: _Linear
    down: _Linear
    output_norm: _Norm


class Encoder:
    """A loaded model without its head. Stateless.

    Args:
        config: of the model.
        weights: its tensors (`engine.encoder.weights`), all of one type and on one device; they are taken over.
    """

    def __init__(self, config: EncoderConfig, weights: Weights) -> None:
        self._config = config
        self._family = family = encoder_family_of(config)
        self._words = weights[f"{family.weight('words')}.weight"]
        self._positions = weights[f"{family.weight('positions')}.weight"]
        self._types = weights[f"{family.weight('types')}.weight"] if config.types else None
        self._activation = _ACTIVATIONS[config.activation]
        self._embedding_norm = self._norm(weights, "embedding_norm")
        self._layers = [self._layer(weights, index) for index in range(config.layers)]

    def _norm(self, weights: Weights, role: str, layer: int | None = None) -> _Norm:
        name = self._family.weight(role, layer)
        return _Norm(weights[f"{name}.weight"], weights[f"{name}.bias"], self._config.norm_eps)

    def _layer(self, weights: Weights, index: int) -> _EncoderLayer:
        def linear(*roles: str) -> _Linear:
            names = [self._family.weight(role, index) for role in roles]
            parts = [[weights.pop(f"{name}.{part}") for name in names] for part in ("weight", "bias")]
            return _Linear(*(torch.cat(part) if len(part) > 1 else part[0] for part in parts))

        return _EncoderLayer(
            qkv=linear("q", "k", "v"),
            o=linear("o"),
            attention_norm=self._norm(weights, "attention_norm", index),
            up=linear("up"),
            down=linear("down"),
            output_norm=self._norm(weights, "output_norm", index),
        )

    def forward(self, texts: Sequence[EncoderInput]) -> Tensor:
        """The last layer's states of all tokens: [tokens, hidden] in the weights' type. It is fastest if texts of equal length are
        neighbours."""
        lengths = [len(text.token_ids) for text in texts]
        x = self._embedding_norm(self._embed(texts, lengths))
        spans = [(length, len(list(group))) for length, group in groupby(lengths)]
        for layer in self._layers:
            x = layer.attention_norm(x + layer.o(self._attend(layer.qkv(x), spans)))
            x = layer.output_norm(x + layer.down(self._activation(layer.up(x))))
        return x

    def _embed(self, texts: Sequence[EncoderInput], lengths: Sequence[int]) -> Tensor:
        device, offset = self._words.device, self._config.position_offset
        ids = torch.tensor([token for text in texts for token in text.token_ids])
        places = torch.cat([torch.arange(offset, offset + length) for length in lengths])
        x = F.embedding(ids.to(device), self._words) + F.embedding(places.to(device), self._positions)
        if self._types is None:
            return x
        if self._config.types < 2 or not any(text.pair_start for text in texts):
            return x + self._types[0]
        second = torch.cat(
            [torch.arange(length) >= (text.pair_start or length) for text, length in zip(texts, lengths, strict=True)]
        )
        return x + F.embedding(second.long().to(device), self._types)

    def _attend(self, qkv: Tensor, spans: Sequence[tuple[int, int]]) -> Tensor:
        """From [tokens, 3 * hidden] to [tokens, hidden]; a span is the length of neighbouring texts, and their number."""
        heads = self._config.heads
        mixed = qkv.new_empty(len(qkv), self._config.hidden_size)
        begin = 0
        for length, count in spans:
            end = begin + length * count
            q, k, v = qkv[begin:end].view(count, length, 3, heads, -1).permute(2, 0, 3, 1, 4)
            out = F.scaled_dot_product_attention(q, k, v)  # [texts, heads, length, dim]
            mixed[begin:end].view(count, length, heads, -1).copy_(out.transpose(1, 2))
            begin = end
        return mixed


class ScoringHead:
    """The classification head of a cross-encoder with one label: from the first token's state to a score.

    Args:
        config: of the model.
        weights: its tensors.
    """

    def __init__(self, config: EncoderConfig, weights: Weights) -> None:
        family = encoder_family_of(config)
        self._dense, self._labels = (
            _Linear(weights[f"{family.head[role]}.weight"], weights[f"{family.head[role]}.bias"])
            for role in ("dense", "labels")
        )
        self._activation = _ACTIVATIONS[family.head_activation]
        self._squash = config.score == "sigmoid"

    def score(self, first: Tensor) -> Tensor:
        """The first token's state, [hidden], to one score, [1]."""
        score = self._labels(self._activation(self._dense(first))).float()
        return score.sigmoid() if self._squash else score
