"""What endpoints work with: made once at start-up and handed to each of them; none of it is global."""

from dataclasses import dataclass, field

from configs.settings import Settings
from scheduler.types.messages import Ready
from server.body_room import BodyRoom
from server.drain import Drain
from server.engines.engines import Engines
from server.engines.supervision.keeper import KeeperSupervisor
from server.engines.supervision.restarts import Restarts
from server.errors import ModelNotFound
from server.schema.openapi import ModelBounds
from server.stream.resumables import ResumableStreams
from server.structured.compiler import GrammarCompiler
from server.telemetry.black_box import BlackBox
from server.telemetry.metrics import Metrics
from server.telemetry.traces.sending import Tracing
from server.text.chat_renderer import ChatRenderer
from server.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerContext:
    """The server's parts as its endpoints see them.

    `model_names` are the names clients may use; answers carry the first when the request names none.
    `created` is in Unix seconds. `restarts` are those of engines that operators ask for.
    `keeper`: of the KV tiers that engines share, if they do. `grammars` compiles what answers have to fit.
    """

    settings: Settings
    engines: Engines
    restarts: Restarts
    drain: Drain
    streams: ResumableStreams
    metrics: Metrics
    tokenizer: Tokenizer
    chat: ChatRenderer | None
    model_names: tuple[str, ...]
    created: int
    grammars: GrammarCompiler
    keeper: KeeperSupervisor | None = None
    bodies: BodyRoom = field(default_factory=BodyRoom)
    black_box: BlackBox = field(default_factory=BlackBox)
    tracing: Tracing | None = None

    def info(self) -> Ready:
        """What an engine said when it became ready.

        Raises:
            Unavailable: no engine was ever ready.
        """
        if self.engines.info is None:
            raise self.engines.unavailable()
        return self.engines.info

    def bounds(self) -> ModelBounds | None:
        """What the model adds to the bounds of a body; None before an engine was ready."""
        info = self.engines.info
        if info is None:
            return None
        begins = bool(self.tokenizer.encode(""))
        return ModelBounds(vocab_size=info.vocab_size, context=info.context, names=self.model_names, begins=begins)

    def model_name(self, asked: str | None) -> str:
        """The name the answer carries.

        Raises:
            ModelNotFound: `asked` is not one of the served names.
        """
        if asked is None:
            return self.model_names[0]
        if asked not in self.model_names:
            names = ", ".join(f"`{name}`" for name in self.model_names)
            raise ModelNotFound(f"The model `{asked[:200]}` does not exist; served is {names}.", param="model")
        return asked
