"""What `/v1/completions` and `/v1/chat/completions` have in common: sampling, stopping, reporting."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from configs.settings import Settings
from server.schema.base import INT32_MAX, Array, Body, both, either, given, where
from server.schema.fields import Count, Early, Int64, LogitBias, ModelName, OutputTokens, Stop, Text, TokenId
from server.schema.structured import Choices, ResponseFormat, Schema, Source, StructuredOutputs

Penalty = Annotated[float, Field(ge=-2, le=2)]


class StreamOptions(Body):
    """What a stream reports besides its text."""

    IGNORED: ClassVar[frozenset[str]] = frozenset({"include_obfuscation"})

    include_usage: bool = Field(False, description="End the stream with a chunk that holds `usage` and no choices.")
    continuous_usage_stats: bool = Field(
        False, description="Extension: every chunk holds the usage so far. Only with `include_usage`."
    )

    @classmethod
    def rules(cls, settings: Settings) -> list[dict[str, Any]]:
        """`continuous_usage_stats` needs `include_usage`."""
        return [either(where("continuous_usage_stats", False, None), where("include_usage", True))]


class Sampling(Body):
    """The shared fields. Bounds that an operator may set stand in `limits.py`."""

    IGNORED: ClassVar[frozenset[str]] = frozenset(
        {
            *("metadata", "safety_identifier", "service_tier", "session_id", "spaces_between_special_tokens", "store"),
            *(
                "prompt_cache_key",
                "prompt_cache_options",
                "prompt_cache_retention",
            ),  # prefixes are cached for everybody
        }
    )
    # Fields other servers know: named here so that the refusal says "not served" instead of guessing at a typo.
    UNSUPPORTED: ClassVar[dict[str, tuple[Any, ...]]] = {
        "kv_transfer_params": (),
        "logits_processors": ([],),
        "logprob_token_ids": (),
        "repetition_detection": (),
        "vllm_xargs": ({},),
    }
    NESTED: ClassVar[dict[str, type[Body]]] = {
        "stream_options": StreamOptions,
        "response_format": ResponseFormat,
        "structured_outputs": StructuredOutputs,
    }
    VERBATIM: ClassVar[frozenset[str]] = frozenset({"response_format", "structured_outputs", "guided_json"})

    model: ModelName | None = Field(None, description="One of the served names; the served model if absent.")
    max_tokens: OutputTokens | None = Field(
        None, description="Most tokens to generate, the operator's default if absent. 0 only computes the prompt."
    )
    temperature: float = Field(1.0, ge=0, le=2, description="0 is greedy.")
    top_p: float = Field(
        1.0, ge=0, le=1, description="Sample from the likeliest tokens whose probabilities sum up to this; 0 is greedy."
    )
    n: int = Field(1, ge=1, description="Choices for each prompt.")
    stream: bool = Field(False, description="Answer with server-sent events.")
    stream_options: StreamOptions | None = Field(None, description="Only with `stream`.")
    resumable: bool = Field(
        False,
        description="Extension: the stream's events have ids, and when the connection breaks the answer goes on: `GET "
        "/v1/streams/{id}` has the rest. Only with `stream`.",
    )
    stop: Stop = Field(
        default_factory=list,
        description="Strings that end the text; they are not part of it. A stop string that spells a special token stops at that "
        "token, even if the text does not show it.",
    )
    seed: Int64 | None = Field(None, description="The same seed gives the same text, whatever else runs.")
    presence_penalty: Penalty = Field(0.0, description="Subtracted once from every token that was generated.")
    frequency_penalty: Penalty = Field(0.0, description="Subtracted from a token for each time it was generated.")
    logit_bias: LogitBias = Field(
        default_factory=dict, description="Token ids mapped to what is added to their logits."
    )

    response_format: ResponseFormat | None = Field(
        None, description="The form of the answer: `text`, `json_object`, or `json_schema` with a schema that it fits."
    )

    structured_outputs: StructuredOutputs | None = Field(
        None, description="Extension, as in vLLM: a schema, regular expression, choice or grammar that the answer fits."
    )
    guided_json: Schema | None = Field(None, description="Extension: older name of `structured_outputs.json`.")
    guided_regex: Source | None = Field(None, description="Extension: older name of `structured_outputs.regex`.")
    guided_choice: Choices | None = Field(None, description="Extension: older name of `structured_outputs.choice`.")
    guided_grammar: Source | None = Field(None, description="Extension: older name of `structured_outputs.grammar`.")
    guided_whitespace_pattern: Source | None = Field(
        None, description="Extension: older name of `structured_outputs.whitespace_pattern`. Only with `guided_json`."
    )
    top_k: int = Field(
        0, ge=-1, le=INT32_MAX, description="Extension: sample from the k likeliest tokens; 0 and -1 are off."
    )
    min_p: float = Field(
        0.0, ge=0, le=1, description="Extension: lowest probability, relative to the likeliest token's."
    )
    repetition_penalty: float = Field(
        1.0, ge=0.1, le=10, description="Extension: divides the logits of tokens in the prompt or the text; 1 is off."
    )
    min_tokens: OutputTokens = Field(0, description="Extension: no end before this many tokens.")
    ignore_eos: bool = Field(False, description="Extension: continue past the model's end tokens.")
    speculation: bool = Field(
        True,
        description="Extension: let the server guess tokens ahead, where it does (`--speculation`); the answer is the same.",
    )
    stop_token_ids: Array[TokenId] = Field(default_factory=list, description="Extension: tokens that end the text.")
    bad_words: Array[Text] = Field(default_factory=list, description="Extension: words that are never generated.")
    include_stop_str_in_output: bool = Field(False, description="Extension: keep what stopped the text in it.")
    skip_special_tokens: bool = Field(True, description="Extension: leave special tokens out of the text.")
    user: str = Field(
        "",
        max_length=512,
        description="On whose behalf the request is made. With `--scheduling fair` each user has a share; where the server asks "
        "for keys, the key counts instead.",
    )
    priority: int = Field(
        0,
        ge=-(2**31),
        le=INT32_MAX,
        description="Extension: lower numbers run first, and preempt running requests of higher numbers. Among whose requests "
        "it holds, `--priority-scope` says. Not with `--scheduling fcfs`.",
    )
    cache_salt: str = Field(
        "",
        max_length=256,
        description="Extension: cached prefixes are shared only between requests with the same salt.",
    )
    cache_pin_seconds: float = Field(
        0.0,
        ge=0,
        le=86400,
        description="Extension: keep the prompt's cached KV for this long, up to a quarter of the cache; what is not pinned is "
        "evicted first.",
    )
    deadline_ms: float | None = Field(
        None,
        gt=0,
        le=86_400_000,
        description="Extension: milliseconds from the request's arrival within which its first token has to be there, or its end "
        "(`deadline_for`). What cannot be expected in time is refused at once with 429 and the quote. For one prompt.",
    )
    deadline_for: Literal["first_token", "end"] = Field(
        "first_token", description="Extension: what has to be there within `deadline_ms`."
    )
    prompt_logprobs: Count | None = Field(
        None,
        description="Extension: logprobs of the prompt's tokens, with this many alternatives each; at most 2,097,152 in "
        "one answer, over all prompts and choices.",
    )
    return_token_ids: bool = Field(False, description="Extension: the answer also holds the token ids.")
    return_tokens_as_token_ids: bool = Field(
        False,
        description="Extension: logprobs name tokens by their ids, as in `token_id:42`, instead of by their text.",
    )
    truncate_prompt_tokens: int | None = Field(
        None,
        ge=-1,
        le=INT32_MAX,
        description="Extension: keep this many of the prompt's tokens and drop the others, at least 1; -1: as many as the context "
        "has room for beside `max_tokens`.",
    )
    truncation_side: Literal["left", "right"] = Field(
        "left", description="Extension: the side on which `truncate_prompt_tokens` drops."
    )
    allowed_token_ids: Array[TokenId] = Field(
        default_factory=list, description="Extension: only these tokens are generated; empty: all."
    )

    use_beam_search: bool = Field(
        False,
        description="Extension: search for the likeliest texts with `n` beams (completions: `best_of`) instead of sampling, and "
        "answer the `n` best, the best first. Not with `stream`, `stop`, `tools`, grammars, and what changes the distribution.",
    )
    length_penalty: float = Field(
        1.0,
        ge=-10,
        le=10,
        description="Extension: a text's score is its log probability over its number of tokens to this power. Only with "
        "`use_beam_search`.",
    )
    early_stopping: Early = Field(
        False,
        description="Extension: true ends a search as soon as it has as many whole texts as beams, false when a better one is "
        "unlikely, `never` when there can be none. Only with `use_beam_search`.",
    )

    @property
    def beams(self) -> int:
        """How many beams a search has."""
        return self.n

    @property
    def candidates(self) -> int:
        """Sequences that are generated for each prompt; `n` of them are answered."""
        return self.n

    @classmethod
    def rules(cls, settings: Settings) -> list[dict[str, Any]]:
        """Fields that need others, and three that need what the operator may have turned off."""
        unasked = both(where("stream_options", None), where("resumable", False, None))
        rules = [
            either(unasked, where("stream", True)),
            either(where("truncation_side", "left", None), given("truncate_prompt_tokens")),
            {"properties": {"truncate_prompt_tokens": {"not": {"const": 0}}}},
        ]
        if not settings.resume_seconds:
            rules.append(where("resumable", False, None))
        if settings.scheduling == "fcfs":
            rules.append(where("priority", 0, None))
        if not settings.prefix_caching:
            rules.append(where("cache_pin_seconds", 0, None))
        return rules
