"""The body of `POST /v1/responses`."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from server.schema.base import INT32_MAX, Body, Kinds
from server.schema.dialects.responses_items import ITEMS, Input
from server.schema.fields import Count, Int64, ModelName, OutputTokens, Stop
from server.schema.sampling import Penalty

LOGPROBS = "message.output_text.logprobs"
Includable = Literal[
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
    "file_search_call.results",
    "message.input_image.image_url",
    "message.output_text.logprobs",
    "reasoning.encrypted_content",
    "web_search_call.action.sources",
    "web_search_call.results",
]
Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]], Field(max_length=16)
]


class ResponseStreamOptions(Body):
    """What a stream of events may be padded with. It is not."""

    IGNORED: ClassVar[frozenset[str]] = frozenset({"include_obfuscation"})


class ResponsesRequest(Body):
    """Items of a conversation in, the items that come next out."""

    IGNORED: ClassVar[frozenset[str]] = frozenset(
        {
            *("client_metadata", "max_tool_calls", "parallel_tool_calls", "prompt_cache_options"),
            *("prompt_cache_retention", "service_tier"),
        }
    )
    UNSUPPORTED: ClassVar[dict[str, tuple[Any, ...]]] = {
        "access_programs": (),
        "background": (False,),
        "context_management": ([],),
        "conversation": (),
        "image": (),
        "moderation": (),
        "previous_response_id": (),
        "prompt": (),
        "reasoning": ({}, {"effort": "none"}),
        "text": ({}, {"format": {"type": "text"}}, {"format": {"type": "text"}, "verbosity": "medium"}),
        "tool_choice": ("auto", "none"),
        "tools": ([],),
        "truncation": ("disabled",),
    }
    ELSEWHERE: ClassVar[dict[str, str]] = {
        "max_tokens": "POST /v1/chat/completions",
        "messages": "POST /v1/chat/completions",
    }
    NESTED: ClassVar[dict[str, type[Body] | Kinds]] = {"input": ITEMS, "stream_options": ResponseStreamOptions}

    model: ModelName | None = Field(None, description="One of the served names; the served model if absent.")
    input: Input = Field(description="A text of the user, or items.")
    instructions: str | None = Field(
        None, description="A system message in front of everything else. It is not carried over to the next response."
    )
    max_output_tokens: OutputTokens | None = Field(
        None, description="Most tokens to generate, reasoning included; what is left of the context if absent."
    )
    temperature: float = Field(1.0, ge=0, le=2, description="0 is greedy.")
    top_p: float = Field(
        1.0, ge=0, le=1, description="Sample from the likeliest tokens whose probabilities sum up to this; 0 is greedy."
    )
    presence_penalty: Penalty = Field(0.0, description="Subtracted once from every token that was generated.")
    frequency_penalty: Penalty = Field(0.0, description="Subtracted from a token for each time it was generated.")
    top_k: int = Field(
        0, ge=-1, le=INT32_MAX, description="Extension: sample from the k likeliest tokens; 0 and -1 are off."
    )
    min_p: float = Field(
        0.0, ge=0, le=1, description="Extension: lowest probability, relative to the likeliest token's."
    )
    seed: Int64 | None = Field(None, description="Extension: the same seed gives the same text, whatever else runs.")
    stop: Stop = Field(
        default_factory=list, description="Extension: strings that end the text; they are not part of it."
    )
    include: list[Includable] = Field(
        default_factory=list,
        description="What the answer holds beside the text; `message.output_text.logprobs` is served, the others say nothing here.",
    )
    top_logprobs: Count | None = Field(None, description="Alternatives for each token; more than 0 includes logprobs.")
    stream: bool = Field(False, description="Answer with server-sent events.")
    stream_options: ResponseStreamOptions | None = Field(None, description="Nothing here changes the stream.")
    store: bool = Field(True, description="Keep the response.")
    metadata: Metadata = Field(default_factory=dict, description="Up to 16 pairs, kept with the response.")
    user: str = Field("", max_length=512, description="On whose behalf the request is made, as in a chat request.")
    safety_identifier: str | None = Field(None, max_length=512, description="Comes back in the answer.")
    prompt_cache_key: str | None = Field(
        None, max_length=512, description="Comes back in the answer; prefixes are cached for everybody."
    )
    cache_salt: str = Field(
        "",
        max_length=256,
        description="Extension: cached prefixes are shared only between requests with the same salt.",
    )
