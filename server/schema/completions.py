"""The body of `POST /v1/completions`."""

from typing import Any, ClassVar

from pydantic import Field

from configs.settings import Settings
from server.schema.base import INT32_MAX, both, either, given, where
from server.schema.fields import Count, Prompt
from server.schema.sampling import Sampling

DEFAULT_MAX_TOKENS = 16  # OpenAI's
# A schema says that two numbers are equal by a branch for each. Generators multiply the branches of all rules, and give up soon.
PUBLISHED_BEST_OF = 3


class CompletionRequest(Sampling):
    """Text or token ids in, text out."""

    UNSUPPORTED: ClassVar[dict[str, tuple[Any, ...]]] = {
        **Sampling.UNSUPPORTED,
        "prompt_embeds": (),
        "suffix": ("",),
        "thinking_token_budget": (),
    }
    ELSEWHERE: ClassVar[dict[str, str]] = {"messages": "POST /v1/chat/completions"}

    prompt: Prompt = Field(description="A string, strings, token ids, or arrays of token ids.")
    echo: bool = Field(False, description="Begin the text with the prompt.")
    logprobs: Count | None = Field(None, description="Logprobs of the tokens, with this many alternatives each.")
    best_of: Count | None = Field(None, description="Served only where it equals `n`.")
    add_special_tokens: bool = Field(True, description="Extension: begin a text prompt as the model's tokenizer does.")

    @classmethod
    def rules(cls, settings: Settings) -> list[dict[str, Any]]:
        """`best_of` equals `n`; without `max_tokens`, `min_tokens` is at most what stands for it."""
        alike = [
            both(where("best_of", n), where("n", n, *([None] if n == 1 else [])))
            for n in range(1, min(settings.max_n, PUBLISHED_BEST_OF) + 1)
        ]
        default = min(settings.default_max_tokens or DEFAULT_MAX_TOKENS, settings.max_output_tokens or INT32_MAX)
        return [
            *super().rules(settings),
            either(where("best_of", None), *alike),
            either({"properties": {"min_tokens": {"maximum": default}}}, given("max_tokens")),
        ]
