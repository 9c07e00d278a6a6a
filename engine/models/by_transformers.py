"""What a model without a family is like, as transformers' own classes say. Imports transformers when it is asked."""

from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

from configs.model.config import ModelConfig
from configs.model.ends import EndToken
from configs.model.safetensors_header import has_safetensors, read_safetensors
from configs.model.source import ModelError

_KINDS = {"full_attention", "sliding_attention"}


def classes_in_words(config: ModelConfig) -> str:
    """Who computes a model, and what that costs, for the start-up log."""
    return (
        f"transformers' own classes, as --model-impl asks or as no family here describes {config.architecture}: every answer "
        "is theirs, and steps take many times as long as a family's"
    )


def describe(folder: Path, ends: Callable[[int], tuple[EndToken, ...]]) -> ModelConfig:
    """The description of the decoder in a Hugging Face folder whose architecture has no family.

    Args:
        folder: config.json and safetensors.
        ends: makes the ends of answers of a vocabulary's size.

    Raises:
        ModelError: transformers does not know it either, or computes what our blocks cannot hold.
    """
    from transformers import AutoConfig

    try:
        config: Any = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (ValueError, OSError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"{folder.name}: neither a family here nor transformers reads it: {_first_line(error)}"
        ) from error
    from transformers import AutoModelForCausalLM  # which imports torch

    classes: Any = AutoModelForCausalLM._model_mapping
    if type(config) not in classes:
        raise ModelError(f"{folder.name}: transformers has no class that generates text by {config.model_type}.")
    cls: Any = classes[type(config)]
    try:
        _refuse(folder, config, cls)
        return _description(config, ends)
    except (AttributeError, TypeError, ValueError, ZeroDivisionError) as error:
        raise ModelError(
            f"{folder.name}: transformers' description of {config.model_type} lacks a size or has it for each layer: "
            f"{_first_line(error)}"
        ) from error


def _description(config: Any, ends: Callable[[int], tuple[EndToken, ...]]) -> ModelConfig:
    heads = int(config.num_attention_heads)
    window = getattr(config, "sliding_window", None)
    layers = int(config.num_hidden_layers)
    sliding = tuple(kind == "sliding_attention" for kind in _types(config, layers))
    return ModelConfig(
        architecture=config.model_type,
        implementation="transformers",
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=int(getattr(config, "intermediate_size", None) or 4 * config.hidden_size),
        layers=layers,
        heads=heads,
        kv_heads=heads if _latent(config) else int(getattr(config, "num_key_value_heads", None) or heads),
        head_dim=_latent(config) or int(getattr(config, "head_dim", None) or config.hidden_size // heads),
        rms_norm_eps=1e-6,
        rope_theta=10000.0,
        rope_scaling=None,
        sliding_window=window if any(sliding) else None,
        sliding_layers=sliding if window is not None else (False,) * layers,
        qkv_bias=False,
        o_bias=False,
        mlp_bias=False,
        qk_norm=False,
        tie_word_embeddings=bool(config.tie_word_embeddings),
        max_position=int(config.max_position_embeddings),
        ends=ends(config.vocab_size),
        dtype="float32",
    )


def stored_bytes(folder: Path) -> int:
    """Memory of all of a folder's tensors in fp32, in bytes; 0 where there are none."""
    return 4 * sum(prod(tensor.shape) for tensor in read_safetensors(folder).values()) if has_safetensors(folder) else 0


def _refuse(folder: Path, config: Any, cls: Any) -> None:
    """What is computed otherwise than by attention over keys and values of one shape."""
    where, name = folder.name, config.model_type
    if config.is_encoder_decoder or config.get_text_config() is not config:
        raise ModelError(f"{where}: {name} is not a decoder of text alone.")
    if getattr(config, "quantization_config", None):
        raise ModelError(f"{where}: quantized safetensors are not implemented; use the unquantized model.")
    if not cls._supports_attention_backend or cls._is_stateful:
        raise ModelError(f"{where}: {cls.__name__} of transformers lets nobody else store its keys and values.")
    if of_batch := _rope_types(config) & {"dynamic", "longrope"}:
        raise ModelError(
            f"{where}: transformers turns positions of type {of_batch.pop()} by the longest sequence of a step, so that one "
            "request would change another's answer."
        )
    if others := set(_types(config, int(config.num_hidden_layers))) - _KINDS:
        raise ModelError(
            f"{where}: {name} has layers of {', '.join(sorted(others))}, which blocks of keys and values do not hold."
        )


def _rope_types(config: Any) -> set[str]:
    """Of all layers: one object, or one for each type of layers."""
    rope = getattr(config, "rope_parameters", None) or {}
    each = [value for value in rope.values() if isinstance(value, dict)] or [rope]
    return {str(one.get("rope_type", "default")) for one in each}


def _types(config: Any, layers: int) -> list[str]:
    given = getattr(config, "layer_types", None)
    if given:
        return list(given)
    windowed = getattr(config, "sliding_window", None) is not None and getattr(config, "use_sliding_window", True)
    return ["sliding_attention" if windowed else "full_attention"] * layers


def _latent(config: Any) -> int | None:
    """The width of a head whose keys are made of a latent vector and a rotated part (DeepSeek); each head has keys of its own."""
    plain, rotated = getattr(config, "qk_nope_head_dim", None), getattr(config, "qk_rope_head_dim", None)
    return None if plain is None or rotated is None else int(plain + rotated)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
