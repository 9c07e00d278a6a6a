"""What a bidirectional encoder (BERT and its like) is, read from `config.json`: it makes vectors and scores, and no text."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from configs.model.ends import EndToken
from configs.model.fields import Fields
from configs.model.pooling import UNSTATED, PoolingRules
from configs.model.source import ModelError

_WHERE = "config.json"
_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}
_SCORES = {"Sigmoid": "sigmoid", "Identity": "identity"}
_CROSS_ENCODER = "sbert_ce_default_activation_function"


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderConfig:
    """Shape of one encoder; `architecture` names the family that says what its tensors are called.

    Attributes:
        activation: of the MLP: `gelu` by the error function, `gelu_tanh` by its approximation, or `relu`.
        position_offset: row of the table of positions that a text's first token has.
        types: kinds of tokens (first and second text of a pair); 0: the model tells none apart.
        labels: numbers that its classification head gives; 0: it has no such head.
        score: what becomes of the number of a head with one label: `sigmoid` or `identity`.
        pooling: how vectors are made.
    """

    ends: ClassVar[tuple[EndToken, ...]] = ()  # it writes no answer
    eos_token_ids: ClassVar[tuple[int, ...]] = ()

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    norm_eps: float
    activation: str
    max_position: int
    position_offset: int
    types: int
    labels: int
    score: str
    dtype: str
    pooling: PoolingRules = UNSTATED

    def __post_init__(self) -> None:
        for name in ("vocab_size", "hidden_size", "intermediate_size", "heads"):
            if getattr(self, name) < 1:
                raise ModelError(f"the model's {name} is {getattr(self, name)}; it must be at least 1.")
        if self.hidden_size % self.heads:
            raise ModelError(f"{self.heads} attention heads cannot share the hidden size {self.hidden_size} evenly.")
        if self.positions < 1:
            raise ModelError(
                f"the model's max_position_embeddings is {self.max_position}, of which {self.position_offset} are not used; "
                "none is left."
            )

    @property
    def positions(self) -> int:
        """How many tokens have a position."""
        return self.max_position - self.position_offset

    @property
    def max_model_len(self) -> int:
        """The longest text in tokens, special ones included."""
        return min(self.positions, self.pooling.max_length or self.positions)


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderRules:
    """How the transformers classes of one family read a `config.json`.

    Attributes:
        body: its class without a head, as `architectures` names it.
        classifier: its class with a classification head.
        max_position: `max_position_embeddings` where it is left out.
        norm_eps: `layer_norm_eps` where it is left out.
        types: `type_vocab_size` where it is left out; 0: the class has no types of tokens.
        pad_token_id: where it is left out, of classes whose positions begin behind it; None: positions begin at 0.
        keys: what the class calls values that are usually called otherwise.
    """

    body: str
    classifier: str
    max_position: int = 512
    norm_eps: float = 1e-12
    types: int = 2
    pad_token_id: int | None = None
    keys: Mapping[str, str] = field(default_factory=dict)


def encoder_from_hf(
    raw: dict[str, Any], architecture: str, rules: EncoderRules, pooling: PoolingRules
) -> EncoderConfig:
    """Build an `EncoderConfig` from the JSON object of `config.json` by the rules of its family.

    A model whose files state no pooling has that of sentence-transformers for such a model: the mean.

    Raises:
        ModelError: a missing value, or a feature that is not implemented.
    """
    fields = Fields(raw, _WHERE, rules.keys)
    fields.must_be("position_embedding_type", "absolute")
    fields.must_be("is_decoder", False)
    fields.must_be("add_cross_attention", False)
    activation = fields.text("hidden_act", "gelu")
    if activation not in _ACTIVATIONS:
        fields.must_be("hidden_act", *_ACTIVATIONS)
    offset = 0 if rules.pad_token_id is None else fields.integer("pad_token_id", rules.pad_token_id) + 1
    labels = _labels(fields) if rules.classifier in (fields.value("architectures") or ()) else 0
    return EncoderConfig(
        architecture=architecture,
        vocab_size=fields.integer("vocab_size"),
        hidden_size=fields.integer("hidden_size", 768),
        intermediate_size=fields.integer("intermediate_size", 3072),
        layers=fields.layers("num_hidden_layers"),
        heads=fields.integer("num_attention_heads", 12),
        norm_eps=fields.number("layer_norm_eps", rules.norm_eps),
        activation=_ACTIVATIONS[activation],
        max_position=fields.integer("max_position_embeddings", rules.max_position),
        position_offset=offset,
        types=fields.integer("type_vocab_size", rules.types) if rules.types else 0,
        labels=labels,
        score=_score(fields),
        dtype=str(raw.get("dtype") or raw.get("torch_dtype") or "float32"),
        pooling=pooling if pooling.stated else PoolingRules(kind="mean", normalize=pooling.normalize),
    )


def _labels(fields: Fields) -> int:
    """How many labels there are: transformers writes their names, or nothing where there are two."""
    names = fields.value("id2label")
    return len(names) if isinstance(names, dict) else fields.integer("num_labels", 2)


def _score(fields: Fields) -> str:
    """What sentence-transformers' CrossEncoder makes of a single label's number: its sigmoid, unless the file says otherwise."""
    newer = fields.value("sentence_transformers")
    named = newer.get("activation_fn") if isinstance(newer, dict) else None
    name = str(named or fields.value(_CROSS_ENCODER) or "Sigmoid").rpartition(".")[2]
    if name not in _SCORES:
        raise fields.refusal(f"the activation {name} of scores is not implemented; known: {', '.join(_SCORES)}")
    return _SCORES[name]
