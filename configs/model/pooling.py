"""How a model makes one vector of a text, as its sentence-transformers files say: `modules.json` and what it names.

A model without them is no embedding model by its own account; of a decoder the newest token's state then stands for the text,
which has seen all others. Format: https://sbert.net/docs/sentence_transformer/usage/custom_models.html
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from configs.model.fields import Fields, read_json, read_json_array
from configs.model.source import ModelError

PoolingKind = Literal["cls", "lasttoken", "max", "mean", "mean_sqrt_len_tokens", "weightedmean"]

_MODULES, _PROMPTS = "modules.json", "config_sentence_transformers.json"
_KINDS = {kind: kind for kind in get_args(PoolingKind)} | {
    "cls_token": "cls",
    "max_tokens": "max",
    "mean_tokens": "mean",
}
_MODE = "pooling_mode_"
_MAX_LENGTH = "max_seq_length"
_GGUF_KINDS: Mapping[int, PoolingKind] = {1: "mean", 2: "cls", 3: "lasttoken"}  # llama.cpp's `enum llama_pooling_type`


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolingRules:
    """What becomes of the last layer's states.

    Attributes:
        kind: of which tokens the vector is made. `weightedmean` counts a token by its place, from 1 on (SGPT, arXiv 2202.08904).
        normalize: whether the vector gets length 1.
        stated: whether the model's files say so, that is, whether it is made for vectors.
        prompts: what is put before texts, by its name: `query`, `document`, or whatever the model calls its uses.
        default_prompt: the name of what is put before texts for which none is asked for; empty: nothing.
        max_length: the longest text in tokens, special ones included; None: the model's positions alone bound it.
    """

    kind: PoolingKind = "lasttoken"
    normalize: bool = True
    stated: bool = False
    prompts: Mapping[str, str] = field(default_factory=dict, hash=False)
    default_prompt: str = ""
    max_length: int | None = None


UNSTATED = PoolingRules()


def read_pooling(folder: Path) -> PoolingRules:
    """The rules of the model in a Hugging Face folder.

    Raises:
        ModelError: a file is damaged, or asks for what is not computed.
    """
    if not (folder / _MODULES).is_file():
        return UNSTATED
    modules = _modules(folder)
    body, rest = modules[0], modules[1:]
    if not rest or rest[0][0] != "Pooling":
        raise ModelError(f"{_MODULES}: after the Transformer a Pooling must follow, not {[kind for kind, _ in rest]}.")
    if unknown := [kind for kind, _ in rest[1:] if kind != "Normalize"]:
        raise ModelError(
            f"{_MODULES}: the modules {unknown} are not implemented; known: Transformer, Pooling, Normalize."
        )
    pooling = folder / rest[0][1] / "config.json"
    said = Fields(_object(folder / _PROMPTS), _PROMPTS)
    return PoolingRules(
        kind=_kind(Fields(read_json(pooling), str(pooling.relative_to(folder)))),
        normalize=len(rest) > 1,
        stated=True,
        prompts=_prompts(said),
        default_prompt=said.text("default_prompt_name", ""),
        max_length=_max_length(folder / body[1]),
    )


def gguf_pooling(fields: Fields) -> PoolingRules:
    """The rules that a GGUF file states for its architecture. llama.cpp's vectors have length 1."""
    kind = _GGUF_KINDS.get(fields.integer("pooling_type", 0))
    return UNSTATED if kind is None else PoolingRules(kind=kind, stated=True)


def _modules(folder: Path) -> list[tuple[str, str]]:
    """Kind and folder of each module, in their order."""
    listed = read_json_array(folder / _MODULES)
    try:
        modules = [(str(item["type"]).rpartition(".")[2], str(item["path"])) for item in listed]
    except (TypeError, KeyError) as error:
        raise ModelError(f"{_MODULES} is damaged: each module needs a type and a path.") from error
    if not modules or modules[0][0] != "Transformer":
        raise ModelError(f"{_MODULES}: the first module must be a Transformer.")
    if any(".." in Path(path).parts or Path(path).is_absolute() for _, path in modules):
        raise ModelError(f"{_MODULES} names a folder outside the model's.")
    return modules


def _object(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _kind(fields: Fields) -> PoolingKind:
    if not fields.flag("include_prompt", default=True):
        raise fields.refusal("include_prompt=false, a pooling that leaves the prompt's tokens out, is not implemented")
    named = fields.value("pooling_mode")
    modes = [named] if isinstance(named, str) else named
    if modes is None:
        modes = [key.removeprefix(_MODE) for key, on in fields.values.items() if key.startswith(_MODE) and on is True]
    if not isinstance(modes, list) or len(modes) != 1 or modes[0] not in _KINDS:
        raise fields.refusal(f"a pooling of {modes} is not implemented; one of {', '.join(get_args(PoolingKind))} is")
    kind: Any = _KINDS[modes[0]]
    return kind  # type: ignore[no-any-return]


def _prompts(fields: Fields) -> dict[str, str]:
    prompts = fields.value("prompts") or {}
    if not isinstance(prompts, dict) or not all(isinstance(text, str) for text in prompts.values()):
        raise fields.refusal("prompts must be an object of texts")
    return prompts


def _max_length(folder: Path) -> int | None:
    """`max_seq_length` of whichever of its historical files the Transformer has."""
    for path in sorted(folder.glob("sentence_*_config.json")):
        fields = Fields(read_json(path), path.name)
        if fields.value(_MAX_LENGTH) is not None:
            length = fields.integer(_MAX_LENGTH)
            if length < 1:
                raise fields.refusal(f"{_MAX_LENGTH} is {length}; it must be at least 1")
            return length
    return None
