"""What a server's model is used for: which kinds of output requests may ask for. No torch."""

from typing import Literal

from configs.model.config import ModelConfig
from configs.model.encoder import EncoderConfig
from configs.model.source import ModelError
from configs.settings import Settings
from scheduler.types.output_kind import OutputKind

Task = Literal["generate", "embed", "rerank"]
KINDS: dict[Task, OutputKind] = {"generate": OutputKind.TOKENS, "embed": OutputKind.VECTOR, "rerank": OutputKind.SCORES}
_LACKING: dict[Task, str] = {
    "generate": "it is an encoder, which makes no text",
    "embed": "it makes no vectors",
    "rerank": "that takes a cross-encoder: an encoder whose classification head has 1 label; an embedding model answers "
    "/v1/rerank by similarity, under --task embed",
}


def kinds_of(settings: Settings, config: ModelConfig | EncoderConfig) -> frozenset[OutputKind]:
    """The kinds of the tasks that the settings name, or of the model's own.

    Raises:
        ModelError: the model is not made for a task.
    """
    tasks, able = settings.task or [own_task(config)], abilities_of(config)
    for task in tasks:
        if KINDS[task] not in able:
            raise ModelError(f"--task {task} does not fit a {config.architecture} model: {_LACKING[task]}.")
    return frozenset(KINDS[task] for task in tasks)


def abilities_of(config: ModelConfig | EncoderConfig) -> frozenset[OutputKind]:
    """The kinds that a model can be asked for: a decoder makes vectors beside text."""
    if not isinstance(config, EncoderConfig):
        return frozenset({OutputKind.TOKENS, OutputKind.VECTOR})
    head = {OutputKind.SCORES} if config.labels == 1 else set[OutputKind]()
    return frozenset({OutputKind.VECTOR, *head})


def own_task(config: ModelConfig | EncoderConfig) -> Task:
    """What the model is made for, by its files: a classification head scores; an encoder, and whatever states how vectors are
    pooled, embeds; other decoders generate."""
    if isinstance(config, EncoderConfig):
        return "rerank" if config.labels else "embed"
    return "embed" if config.pooling.stated else "generate"
