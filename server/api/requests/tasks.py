"""What a request may ask of the model that is served: text, vectors or scores."""

from collections.abc import Sequence

from scheduler.types.output_kind import OutputKind
from server.api.context import ServerContext
from server.errors import TaskNotServed

_TASKS = {OutputKind.TOKENS: "generate", OutputKind.VECTOR: "embed", OutputKind.SCORES: "rerank"}


def check_task(context: ServerContext, *kinds: OutputKind) -> OutputKind:
    """The first of these kinds that the model is served for.

    Raises:
        TaskNotServed: it is for none; names its tasks and those that the endpoint needs.
        Unavailable: no engine was ever ready.
    """
    made = context.info().produces
    for kind in kinds:
        if kind in made:
            return kind
    raise TaskNotServed(
        f"The model `{context.model_names[0]}` is served for the task {_named(made)}; this endpoint needs {_named(kinds, 'or')} "
        "(--task)",
        param="model",
    )


def _named(kinds: Sequence[OutputKind], last: str = "and") -> str:
    names = [f"`{_TASKS[kind]}`" for kind in kinds]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} {last} {names[-1]}"
