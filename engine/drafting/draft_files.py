"""The draft model's files: found, described, and held against the model's token by token. Only headers and JSON are read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from configs.model.config import ModelConfig
from configs.model.ends import read_token_texts
from configs.model.gguf_file import GgufTexts
from configs.model.gguf_header import read_gguf_header
from configs.model.source import ModelError, ModelSource, resolve_model
from configs.settings import Settings
from engine.models.registry import read_config

_UNUSED = 5  # of `tokenizer.ggml.token_type`: what fills up a vocabulary, under any name


@dataclass(frozen=True, slots=True)
class DraftFiles:
    """A draft model before it is loaded."""

    source: ModelSource
    config: ModelConfig


def find_draft(settings: Settings, model: ModelSource) -> DraftFiles | None:
    """The draft model that the settings name for `model`; None: they name none.

    Raises:
        ModelError: it cannot be found or read, or has other tokens.
    """
    if settings.draft_model is None:
        return None
    source = resolve_model(settings.draft_model)
    config = read_config(source)
    check_same_tokens(model, source)
    return DraftFiles(source, config)


def check_same_tokens(model: ModelSource, draft: ModelSource) -> None:
    """Compare what each id spells. Ids that one of them has no token for, which fill up its vocabulary, are no difference.

    Raises:
        ModelError: they differ. Names the first token that does.
    """
    ours, theirs = token_texts(model), token_texts(draft)
    for token, (one, other) in enumerate(zip_longest(ours, theirs)):
        if one != other and one is not None and other is not None:
            raise ModelError(
                f"--draft-model {draft.name} has other tokens than {model.name}: token {token} is {other!r} there and {one!r} "
                "here; a draft model needs the same vocabulary, so take a smaller one of the same family."
            )
    if any(ours) != any(theirs):
        nameless = draft if any(ours) else model
        raise ModelError(
            f"--draft-model {draft.name} cannot be held against {model.name}: {nameless.name} does not say what its tokens are."
        )


def token_texts(source: ModelSource) -> Sequence[str | None]:
    """How each token is spelled, by id; None where an id has no token."""
    if source.kind == "gguf":
        return _gguf_texts(read_gguf_header(source.path).metadata)
    by_id = read_token_texts(source.path)
    return [by_id.get(token) for token in range(max(by_id, default=-1) + 1)]


def _gguf_texts(metadata: Mapping[str, object]) -> Sequence[str | None]:
    texts, types = metadata.get("tokenizer.ggml.tokens"), metadata.get("tokenizer.ggml.token_type")
    if not isinstance(texts, GgufTexts | list):
        return []
    kinds = types if isinstance(types, list) and len(types) == len(texts) else [0] * len(texts)
    return [None if kind == _UNUSED else str(text) for text, kind in zip(texts, kinds, strict=True)]
