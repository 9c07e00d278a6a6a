"""Which model families there are, and a model's description by the rules of its family. No torch, no tensor data."""

import logging
import pkgutil
from collections.abc import Iterable
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from configs.model.config import ModelConfig
from configs.model.encoder import EncoderConfig, encoder_from_hf
from configs.model.ends import TokenNames, read_token_names
from configs.model.fields import Fields, read_json
from configs.model.gguf import config_from_gguf
from configs.model.gguf_header import GgufHeader, read_gguf_header
from configs.model.hf import config_from_hf
from configs.model.pooling import read_pooling
from configs.model.safetensors_header import has_safetensors, read_safetensors
from configs.model.source import ModelError, ModelSource
from engine.models import families
from engine.models.encoder_family import EncoderFamily
from engine.models.family import Family

log = logging.getLogger("headrace.engine")


def _described() -> list[Family | EncoderFamily]:
    """What the modules of `engine.models.families` describe."""
    names = sorted(module.name for module in pkgutil.iter_modules(families.__path__))
    return [import_module(f"{families.__name__}.{name}").FAMILY for name in names]


def known_families() -> dict[str, Family]:
    """Every family of decoders by its name."""
    return {family.name: family for family in _described() if isinstance(family, Family)}


def known_encoders() -> dict[str, EncoderFamily]:
    """Every family of encoders by its name."""
    return {family.name: family for family in _described() if isinstance(family, EncoderFamily)}


def family_of(config: ModelConfig) -> Family:
    """The family of a model.

    Raises:
        ModelError: there is none with that name.
    """
    known = known_families()
    if config.architecture not in known:
        raise _unknown("the model", config.architecture, known)
    return known[config.architecture]


def encoder_family_of(config: EncoderConfig) -> EncoderFamily:
    """The family of an encoder.

    Raises:
        ModelError: there is none with that name.
    """
    known = known_encoders()
    if config.architecture not in known:
        raise _unknown("the model", config.architecture, known)
    return known[config.architecture]


_INSTALL = "pip install 'headrace[transformers]'"
Implementation = Literal["auto", "headrace", "transformers"]


def read_description(source: ModelSource, by: Implementation = "auto") -> ModelConfig | EncoderConfig:
    """Read the description of the model at `source`, whatever kind of model it is; raises what `read_config` does.

    Args:
        source: its files.
        by: whose code is to compute it: a family here, transformers' classes, or those only where there is no family.
    """
    if source.kind == "hf":
        raw, known = read_json(source.path / "config.json"), known_encoders()
        name = raw.get("model_type")
        if isinstance(name, str) and name in known:
            if by == "transformers":
                raise ModelError(
                    f"{source.name}: --model-impl transformers computes decoders, and {name} is an encoder; leave it out."
                )
            return encoder_from_hf(raw, name, known[name].hf, read_pooling(source.path))
        if by == "transformers" and not _installed():
            raise ModelError(f"--model-impl transformers needs it: {_INSTALL}.")
        if by == "transformers" or (by == "auto" and name not in known_families() and _installed()):
            return _by_transformers(source.path, raw)
    elif by == "transformers":
        raise ModelError(f"{source.name}: --model-impl transformers reads Hugging Face folders, not GGUF files.")
    return read_config(source)


def _installed() -> bool:
    """Whether transformers is there; it is an extra, as no family needs it."""
    return find_spec("transformers") is not None


def _by_transformers(folder: Path, raw: dict[str, Any]) -> ModelConfig:
    """The description of a decoder that transformers' classes compute."""
    from engine.models.by_transformers import describe

    names, path = read_token_names(folder), folder / "generation_config.json"
    generation = read_json(path) if path.is_file() else {}
    eos = [
        (file, Fields(values, file).tokens("eos_token_id"))
        for file, values in (("generation_config.json", generation), ("config.json", raw))
    ]
    config = describe(folder, lambda vocab_size: names.end_tokens(eos, vocab_size))
    return replace(config, pooling=read_pooling(folder))


def read_config(source: ModelSource) -> ModelConfig:
    """Read the description of the decoder at `source`. A head that the files hold beside the embedding is one of its own.

    Raises:
        ModelError: unreadable, an unknown architecture, or a feature that is not implemented.
        OSError: the model's tensors cannot be read.
    """
    if source.kind == "gguf":
        return read_gguf_config(read_gguf_header(source.path))
    generation = source.path / "generation_config.json"
    config = read_hf_config(
        read_json(source.path / "config.json"),
        read_json(generation) if generation.is_file() else {},
        read_token_names(source.path),
    )
    return replace(_with_stored_head(config, source.path), pooling=read_pooling(source.path))


def read_hf_config(raw: dict[str, object], generation: dict[str, object], names: TokenNames) -> ModelConfig:
    """The description in the JSON files of a Hugging Face folder; raises what `read_config` does."""
    name, known = Fields(raw, "config.json").text("model_type", "unnamed"), known_families()
    if name not in known:
        how = "use --model-impl auto" if _installed() else _INSTALL
        error = _unknown("config.json", name, (*known, *known_encoders()))
        raise ModelError(f"{error} transformers' own class may compute it, slowly: {how}.")
    return config_from_hf(raw, generation, names, name, known[name].hf)


def read_gguf_config(header: GgufHeader) -> ModelConfig:
    """The description in the header of a GGUF file; raises what `read_config` does."""
    file = header.path.name
    name = Fields(header.metadata, file).text("general.architecture", "unnamed")
    known = dict[str, Family]()
    for family in known_families().values():
        if family.gguf is not None and known.setdefault(family.gguf, family) is not family:
            raise ValueError(
                f"two families are named {family.gguf!r} in GGUF: {known[family.gguf].name}, {family.name}"
            )
    if name not in known:
        raise _unknown(file, name, known)
    return config_from_gguf(header, known[name].name, known[name].gguf_rules)


def _unknown(where: str, name: str, known: Iterable[str]) -> ModelError:
    return ModelError(f"{where}: the architecture {name!r} is not implemented; known: {', '.join(known)}.")


def _with_stored_head(config: ModelConfig, folder: Path) -> ModelConfig:
    """`config`, untied if the folder's head is not its embedding: as in transformers, the files know better than a flag."""
    if not config.tie_word_embeddings or not has_safetensors(folder):
        return config
    tensors, family = read_safetensors(folder), family_of(config)
    head, embedding = (tensors.get(family.tensor(role).hf) for role in ("head", "embedding"))
    if head is None or embedding is None or head.equals(embedding):
        return config
    log.warning(
        "%s: config.json says tie_word_embeddings, but %s differs from %s; it is used",
        folder,
        head.name,
        embedding.name,
    )
    return replace(config, tie_word_embeddings=False)
