"""The body of `POST /v1/completions`."""

from typing import Any, ClassVar

from pydantic import Field

from configs.settings import Settings
from server.schema.base import INT32_MAX, both, either, given, where
from server.schema.fields import Count, Prompt, Suffix
from server.schema.sampling import Sampling

DEFAULT_MAX_TOKENS = 16  # OpenAI's


class CompletionRequest(Sampling):
    """Text or token ids in, text out."""

    UNSUPPORTED: ClassVar[dict[str, tuple[Any, ...]]] = {
        **Sampling.UNSUPPORTED,
        "prompt_embeds": (),
        "thinking_token_budget": (),
    }
    ELSEWHERE: ClassVar[dict[str, str]] = {"messages": "POST /v1/chat/completions"}

    prompt: Prompt = Field(description="A string, strings, token ids, or arrays of token ids.")
    echo: bool = Field(False, description="Begin the text with the prompt.")
    logprobs: Count | None = Field(None, description="Logprobs of the tokens, with this many alternatives each.")
    suffix: Suffix = Field(
        "",
        description="What stands behind the text: the model fills the gap between `prompt` and it, if it was trained to "
        "(fill in the middle). Not with `echo` and `truncate_prompt_tokens`.",
    )
    best_of: int | None = Field(
        None,
        ge=1,
        le=INT32_MAX,
        description="Generate this many choices and answer the `n` with the highest log probability per token; `usage` counts all "
        "of them. At least `n`; with `stream` only 1. With `use_beam_search` the number of beams.",
    )
    add_special_tokens: bool = Field(True, description="Extension: begin a text prompt as the model's tokenizer does.")

    @property
    def beams(self) -> int:
        """A search has as many as would be chosen from."""
        return self.best_of or self.n

    @property
    def candidates(self) -> int:
        """As many as are to be chosen from. A search chooses by itself."""
        return self.n if self.use_beam_search else self.beams

    @classmethod
    def rules(cls, settings: Settings) -> list[dict[str, Any]]:
        """No choosing in a stream, no echo and no cut where a gap is filled; `min_tokens` is at most the usual `max_tokens`."""
        default = min(settings.default_max_tokens or DEFAULT_MAX_TOKENS, settings.max_output_tokens or INT32_MAX)
        return [
            *super().rules(settings),
            either(where("best_of", 1, None), where("stream", False, None)),
            either(where("suffix", "", None), both(where("echo", False, None), where("truncate_prompt_tokens", None))),
            either({"properties": {"min_tokens": {"maximum": default}}}, given("max_tokens")),
        ]
