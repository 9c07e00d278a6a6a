"""A model's shape from the header of a GGUF file, with the bits that its tensors take there."""

from pathlib import Path

from configs.model.fields import Fields
from configs.model.gguf_header import GgufHeader, read_gguf_header
from configs.model.gguf_parts import model_stem
from loadtest.simulate.specs import ModelSpec, SpecError

_EMBEDDING, _HEAD = "token_embd.weight", "output.weight"
_QUANTIZED_BELOW = 12.0  # bits of a weight: its products are computed in int8


def read_gguf_file(path: Path) -> ModelSpec:
    """The shape of the model in the file at `path`.

    Raises:
        ModelError: the file is none, is damaged, or lacks something.
        SpecError: it has what is not modelled.
    """
    header = read_gguf_header(path)
    architecture = str(header.metadata.get("general.architecture"))
    prefix = f"{architecture}."
    fields = Fields({key.removeprefix(prefix): value for key, value in header.metadata.items()}, path.name)
    if _EMBEDDING not in header.tensors:
        raise SpecError(f"{path} has no tensor {_EMBEDDING}: it is no whole model")
    heads, hidden = _one(fields, "attention.head_count"), fields.integer("embedding_length")
    layers, dense_size = fields.layers("block_count"), _one(fields, "feed_forward_length", 0)
    experts, dense = fields.integer("expert_count", 0), fields.integer("leading_dense_block_count", 0)
    own_head = _HEAD if _HEAD in header.tensors else _EMBEDDING
    bits, head_bits = _bits(header, own_head)
    mixture = {
        "experts": experts,
        "experts_per_token": fields.integer("expert_used_count", 1),
        "dense_layers": dense,
        "dense_intermediate_size": dense_size if dense else 0,
        "shared_intermediate_size": fields.integer("expert_shared_feed_forward_length", 0),
    }
    return ModelSpec(
        name=model_stem(path),
        layers=layers,
        hidden_size=hidden,
        intermediate_size=fields.integer("expert_feed_forward_length", dense_size) if experts else dense_size,
        mlp_matrices=3 if any(".ffn_gate" in name for name in header.tensors) else 2,
        heads=heads,
        kv_heads=_one(fields, "attention.head_count_kv", heads),
        head_dim=fields.integer("attention.key_length", hidden // max(1, heads)),
        vocab_size=header.tensors[_EMBEDDING].shape[0],
        tied_head=_HEAD not in header.tensors,
        max_position=fields.integer("context_length"),
        weight_bits=bits,
        head_bits=head_bits,
        compute="int8" if bits < _QUANTIZED_BELOW else "bf16",
        kv_bits=16,
        **(mixture if experts > 1 else {}),
    )


def _one(fields: Fields, key: str, default: int | None = None) -> int:
    """A number, or the largest of a list with one for each layer."""
    value = fields.value(key)
    if isinstance(value, list) and value and all(isinstance(each, int) for each in value):
        return int(max(value))
    return fields.integer(key, default)


def _bits(header: GgufHeader, head: str) -> tuple[float, float]:
    """Of a weight in the layers' matrices on average, and of one in the head: from one tensor's place to the next one's."""
    sizes = _sizes(header)
    matrices = [
        each for each in header.tensors.values() if len(each.shape) > 1 and each.name not in (_EMBEDDING, _HEAD)
    ]
    head_bits = 8 * sizes[head] / header.tensors[head].elements
    weights = sum(each.elements for each in matrices)
    size = sum(sizes[each.name] for each in matrices)
    return (8 * size / weights if weights else head_bits), head_bits


def _sizes(header: GgufHeader) -> dict[str, int]:
    """Bytes from each tensor's place to the next one's in its file, or to the file's end."""
    ends: dict[Path, int] = {}
    sizes = {}
    for each in sorted(header.tensors.values(), key=lambda each: each.offset, reverse=True):
        sizes[each.name] = (ends.get(each.path) or each.path.stat().st_size) - each.offset
        ends[each.path] = each.offset
    return sizes
