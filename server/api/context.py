"""What endpoints work with: made once at start-up and handed to each of them; none of it is global."""

from dataclasses import dataclass, field

from configs.model.pooling import UNSTATED, PoolingRules
from configs.settings import Settings
from scheduler.types.messages import Ready
from server.api.tenants import KeyRing, Tenant
from server.batches.batches import Batches
from server.body_room import BodyRoom
from server.drain import Drain
from server.engines.engines import Engines
from server.engines.supervision.restarts import Restarts
from server.engines.supervision.stop import Keepers
from server.errors import ModelNotFound
from server.keys.accounts import Accounts
from server.schema.openapi import ModelBounds
from server.stream.background import BackgroundResponses
from server.stream.response_store import ResponseStore
from server.stream.resumables import ResumableStreams
from server.structured.compiler import GrammarCompiler
from server.telemetry.black_box import BlackBox
from server.telemetry.metrics import Metrics
from server.telemetry.traces.sending import Tracing
from server.text.chat_renderer import ChatRenderer
from server.text.fill_in_middle import fill_tokens
from server.text.input_types import input_types
from server.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerContext:
    """The server's parts as its endpoints see them.

    `model_names` are the names clients may use; answers carry the first when the request names none.
    `created` is in Unix seconds. `restarts` are those of engines that operators ask for.
    `keepers`: of the KV tiers that engines share, if they do. `grammars` compiles what answers have to fit.
    `keys`: with those of a file; None: of the settings alone. `accounts`: of keys, if what they use is counted.
    `batches`: files and batches, where there is a folder for them.
    `pooling` says what is put before texts that become vectors.
    """

    settings: Settings
    engines: Engines
    restarts: Restarts
    drain: Drain
    streams: ResumableStreams
    responses: ResponseStore
    background: BackgroundResponses
    metrics: Metrics
    tokenizer: Tokenizer
    chat: ChatRenderer | None
    model_names: tuple[str, ...]
    created: int
    grammars: GrammarCompiler
    keepers: Keepers | None = None
    pooling: PoolingRules = UNSTATED
    bodies: BodyRoom = field(default_factory=BodyRoom)
    black_box: BlackBox = field(default_factory=BlackBox)
    tracing: Tracing | None = None
    accounts: Accounts | None = None
    keys: KeyRing | None = None
    batches: Batches | None = None

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
        return ModelBounds(
            vocab_size=info.vocab_size,
            context=info.context,
            names=self.model_names,
            begins=begins,
            dimensions=info.vector_size,
            prompts=tuple(sorted(self.pooling.prompts)),
            input_types=tuple(input_types(self.pooling)),
            fills=fill_tokens(self.tokenizer) is not None,
        )

    def names_for(self, tenant: Tenant) -> list[str]:
        """The served names that this tenant may use."""
        return [name for name in self.model_names if tenant.may_use(name)]

    def model_name(self, asked: str | None, tenant: Tenant) -> str:
        """The name the answer carries: the first one that is served and that the tenant may use, if it asked for none.

        Raises:
            ModelNotFound: `asked` is not one of the served names, or the tenant may not use it. Which of the two is not told.
        """
        names = self.names_for(tenant)
        if asked in names:
            return asked
        served = "served is " + ", ".join(f"`{name}`" for name in names) if names else "this API key may use none"
        if asked is None and names:
            return names[0]
        if asked is None:
            raise ModelNotFound(f"There is no model for this request: {served}.", param="model")
        of_key = "" if tenant.models is None else " or this API key may not use it"
        raise ModelNotFound(f"The model `{asked[:200]}` does not exist{of_key}; {served}.", param="model")
