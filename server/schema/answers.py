"""The JSON of answers. Generated text is written from templates for speed; a test holds what is written against these."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

FinishReason = Literal["stop", "length", "tool_calls", "function_call"]


class AnswerBody(BaseModel):
    """Base: an answer holds what its class declares, and nothing else."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class ErrorDetail(AnswerBody):
    """What went wrong. All four fields are always present."""

    message: str
    type: str
    param: str | None = Field(description="The request field at fault, as a path.")
    code: str = Field(description="Stable; also the label of the metric.")


class ErrorAnswer(AnswerBody):
    """Every answer with a status of 400 or above."""

    error: ErrorDetail


class PromptDetails(AnswerBody):
    """Where the prompt's tokens came from."""

    cached_tokens: int = Field(description="Taken from the prefix cache instead of computed.")


class CompletionDetails(AnswerBody):
    """What generated tokens were for."""

    reasoning_tokens: int = Field(description="What the model thought before it answered, with the tags around it.")
    accepted_prediction_tokens: int = Field(
        description="Where the request has a `prediction`: tokens that were guessed ahead and right."
    )
    rejected_prediction_tokens: int = Field(
        description="Likewise: tokens that were guessed ahead in vain; they cost nothing."
    )


class Usage(AnswerBody):
    """Token counts of the request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails


class Timings(AnswerBody):
    """Milliseconds of the choice that finished last. An extension."""

    queue_ms: float = Field(description="From the request's arrival to its first step.")
    prefill_ms: float = Field(description="To the first token.")
    decode_ms: float = Field(description="From the first token to the last.")
    total_ms: float
    prefill_tokens_per_second: float | None = None
    decode_tokens_per_second: float | None = None


class PromptLogprob(AnswerBody):
    """One candidate at one position of the prompt."""

    logprob: float
    rank: int
    decoded_token: str


class AnswerChoice(AnswerBody):
    """What the choices of all endpoints that generate have in common."""

    index: int
    finish_reason: FinishReason
    stop_reason: str | int | None = Field(
        description="Extension: the stop string or stop token id that ended the text."
    )
    token_ids: list[int] | None = Field(None, description="With `return_token_ids`.")
    prompt_token_ids: list[int] | None = Field(None, description="With `return_token_ids`.")
    prompt_logprobs: list[dict[str, PromptLogprob] | None] | None = Field(None, description="With `prompt_logprobs`.")


class CompletionLogprobs(AnswerBody):
    """Four lists of equal length."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(AnswerChoice):
    """One text."""

    text: str
    logprobs: CompletionLogprobs | None


class NamedLogprob(AnswerBody):
    """A token and how likely it was."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(NamedLogprob):
    """A token of the message, with its alternatives."""

    top_logprobs: list[NamedLogprob]


class ChatLogprobs(AnswerBody):
    """One entry for each token."""

    content: list[TokenLogprob]
    refusal: None


class CalledFunction(AnswerBody):
    """What is called."""

    name: str
    arguments: str = Field(description="JSON text of an object; cut off where the answer is.")


class ToolCall(AnswerBody):
    """A call of a tool."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class AnswerMessage(AnswerBody):
    """What the assistant says."""

    role: Literal["assistant"]
    content: str | None = Field(description="Null where it only calls tools, or has not ended thinking.")
    refusal: None
    reasoning_content: str | None = Field(None, description="Extension: what the model thought first.")
    reasoning: str | None = Field(None, description="Extension: the same by its other name.")
    tool_calls: list[ToolCall] | None = Field(None, description="What it calls.")
    function_call: CalledFunction | None = Field(None, description="Where `functions` were offered.")


class ChatChoice(AnswerChoice):
    """One message."""

    message: AnswerMessage
    logprobs: ChatLogprobs | None


class Generated(AnswerBody):
    """What endpoints that generate answer besides the choices."""

    id: str
    created: int = Field(description="Unix seconds.")
    model: str
    system_fingerprint: str
    usage: Usage
    timings: Timings


class CompletionAnswer(Generated):
    """The answer of `/v1/completions`."""

    object: Literal["text_completion"]
    choices: list[CompletionChoice]


class ChatAnswer(Generated):
    """The answer of `/v1/chat/completions`."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]


class ModelCard(AnswerBody):
    """A name under which the model is served."""

    id: str
    object: Literal["model"] = "model"
    created: int = Field(description="Unix seconds at which the server started.")
    owned_by: Literal["headrace"] = "headrace"
    max_model_len: int | None = Field(
        description="Longest prompt plus output, in tokens; null until the engine is ready."
    )


class ModelList(AnswerBody):
    """All names."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class TokenizeAnswer(AnswerBody):
    """Token ids of a text."""

    tokens: list[int]
    count: int
    max_model_len: int
    token_strs: list[str] | None = Field(None, description="With `return_token_strs`.")


class DetokenizeAnswer(AnswerBody):
    """Text of token ids."""

    prompt: str


class StatusAnswer(AnswerBody):
    """The answer of `/live`."""

    status: Literal["live"]


EngineState = Literal["starting", "ready", "draining", "drained", "hanging", "dead", "stopped"]


class ReadyAnswer(AnswerBody):
    """The answer of `/ready`. `engines`, by name, where the server has several: it is ready while any of them is."""

    status: Literal["ready"]
    engines: dict[str, EngineState] = {}


Doing = Literal["idle", "step", "transfer"]


class EngineHealthAnswer(AnswerBody):
    """One engine of several, in the answer of `/health`."""

    status: Literal["healthy", "unhealthy"]
    trouble: str | None
    doing: Doing
    steps: int
    last_token_seconds_ago: float | None


class KeeperAnswer(AnswerBody):
    """The process that keeps the KV tiers of several engines. They serve without it, and compute what it would have had."""

    state: Literal["starting", "ready", "hanging", "dead", "stopped"] = Field(
        description="`dead`: it was given up until the server is started again."
    )
    trouble: str | None = Field(description="Why there are no KV tiers below the devices now.")
    restarts: int = Field(description="How often it was started again.")


class HealthAnswer(AnswerBody):
    """The answer of `/health`. `engines`, by name, where the server has several: it is healthy while any of them is, and the first
    fields are then those of the healthy one with the newest token. `keeper` where these engines have KV tiers; `keepers`, by the
    addresses of their nodes, where these engines run on several machines."""

    status: Literal["healthy"]
    doing: Doing = Field(description="What the engine waits for: a request, a step, or a transfer between KV tiers.")
    steps: int = Field(description="Steps that have ended since the engine started.")
    last_token_seconds_ago: float
    engines: dict[str, EngineHealthAnswer] = {}
    keeper: KeeperAnswer | None = None
    keepers: dict[str, KeeperAnswer] = {}


class EngineLoad(AnswerBody):
    """How much an engine has to do, in sequences."""

    running: int
    waiting: int = Field(description="In the engine, or on the way to it.")


class EngineKv(AnswerBody):
    """The KV pool of an engine, in blocks."""

    blocks: int
    used: int = Field(description="By sequences that run.")
    cached: int = Field(description="By prefixes that may be asked for again.")
    free: int


class EngineCard(AnswerBody):
    """One engine, as `/v1/engines` lists it."""

    id: str = Field(description="Its name.")
    object: Literal["engine"] = "engine"
    role: Literal["mixed", "prefill", "decode"]
    state: EngineState = Field(
        description="`draining`: it takes no new requests and works on open ones; `drained`: those have ended. `dead`: it was "
        "given up, and a restart starts it anew."
    )
    restarting: bool = Field(
        description="A restart was asked for: it is under way, or waits for another engine's to end."
    )
    trouble: str | None = Field(description="Why it does not work now.")
    load: EngineLoad
    kv: EngineKv
    version: str | None = Field(description="headrace's; null until it has been ready.")
    fingerprint: str | None = Field(description="`system_fingerprint` of its answers.")
    device: str | None


class EngineList(AnswerBody):
    """All engines of the server."""

    object: Literal["list"] = "list"
    data: list[EngineCard]
    keeper: KeeperAnswer | None = Field(
        None,
        description="Of their KV tiers; null where they have none, one engine has its own, or other machines have them.",
    )
    keepers: dict[str, KeeperAnswer] = Field({}, description="Those of other machines, by the addresses of these.")


class DeletedStream(AnswerBody):
    """A resumable stream that is no more."""

    id: str
    object: Literal["stream"] = "stream"
    deleted: Literal[True] = True


class VersionAnswer(AnswerBody):
    """The answer of `/version`."""

    version: str


class IndexAnswer(AnswerBody):
    """Where to look next, on a server without a page."""

    name: str
    openapi: str = Field(description="Path of the API's schema.")
    models: str = Field(description="Path of the served models.")


ERRORS = {
    400: "Something in the request is wrong; the message names the field, the limit and the value.",
    401: "No API key, or a wrong one.",
    403: "This key may not do that.",
    404: "No such model, engine, stream, file or batch.",
    409: "Not possible in the state that the engine is in.",
    410: "The events that come next are not kept any more.",
    413: "The body is too large.",
    415: "The body is no JSON in UTF-8, or its content coding is not served.",
    429: "The queue is full; Retry-After says when to come back.",
    500: "The server or the engine failed on this request.",
    507: "There is no room for the file.",
    503: "Starting, draining, or the engine died; with Retry-After.",
}


def errors(*statuses: int, body: type[AnswerBody] = ErrorAnswer) -> dict[int | str, dict[str, Any]]:
    """FastAPI's `responses` for these statuses, with errors of this form.

    They refer to it by name, and `components` has it: of a model FastAPI would make a validator for each status of each endpoint.
    """
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{body.__name__}"}}}
    return {status: {"description": ERRORS[status], "content": content} for status in statuses}


def components(body: type[AnswerBody]) -> dict[str, Any]:
    """The schema of an answer and of what it is made of, by the names that OpenAPI refers to them by."""
    schema = body.model_json_schema(ref_template="#/components/schemas/{model}")
    return {**schema.pop("$defs", {}), body.__name__: schema}
