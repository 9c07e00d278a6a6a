"""What the routes work with: made once at start, passed by hand, replaced by nothing."""

from dataclasses import dataclass
from typing import Protocol, Self

from configs.settings import Settings
from scheduler.types.messages import AddRequest, Output, Ready
from server.errors import ApiError, ModelNotFound
from server.telemetry.lifetime import Lifetime
from server.text.chat_template import ChatTemplate
from server.text.tokenizer import Tokenizer


class Stream(Protocol):
    """The outputs of one sequence. It ends after the output with a finish reason, or raises `EngineDied`."""

    def __aiter__(self) -> Self: ...

    async def __anext__(self) -> Output: ...

    def close(self) -> None:
        """End now; what still runs in the engine is aborted."""


class Engine(Protocol):
    """As much of `EngineClient` as the routes use."""

    info: Ready | None

    def ensure_room(self, sequences: int) -> None:
        """Raise `QueueFull` or `Unavailable` unless so many sequences would be taken now."""

    def submit(self, request: AddRequest, lifetime: Lifetime) -> Stream:
        """Queue one sequence. Raises as `ensure_room`."""

    def unavailable(self) -> ApiError:
        """Why no request is taken now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """The server's parts as the routes see them.

    `model_names` are the names clients may use, the first of which answers carry when the request names none.
    `fingerprint` changes when the model or the server's version does. `created` is in Unix seconds.
    """

    settings: Settings
    engine: Engine
    tokenizer: Tokenizer
    template: ChatTemplate | None
    model_names: tuple[str, ...]
    fingerprint: str
    created: int

    def info(self) -> Ready:
        """What the engine said when it was ready.

        Raises:
            Unavailable: it never was.
        """
        if self.engine.info is None:
            raise self.engine.unavailable()
        return self.engine.info

    def model_name(self, asked: str | None) -> str:
        """The name the answer carries.

        Raises:
            ModelNotFound: `asked` is none of the served names.
        """
        if asked is None:
            return self.model_names[0]
        if asked not in self.model_names:
            names = ", ".join(f"`{name}`" for name in self.model_names)
            raise ModelNotFound(f"The model `{asked[:200]}` does not exist; served is {names}.", param="model")
        return asked
