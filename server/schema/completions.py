"""The body of `POST /v1/completions`."""

from typing import Any, ClassVar

from pydantic import Field

from server.schema.fields import Prompt
from server.schema.sampling import Count, Sampling

DEFAULT_MAX_TOKENS = 16  # OpenAI's


class CompletionRequest(Sampling):
    """Text or token ids in, text out."""

    UNSUPPORTED: ClassVar[dict[str, tuple[Any, ...]]] = {**Sampling.UNSUPPORTED, "prompt_embeds": (), "suffix": ("",)}

    prompt: Prompt = Field(description="A string, strings, token ids, or arrays of token ids.")
    echo: bool = Field(False, description="Begin the text with the prompt.")
    logprobs: Count | None = Field(None, description="Logprobs of the tokens, with this many alternatives each.")
    best_of: Count | None = Field(None, description="Served only where it equals `n`.")
    add_special_tokens: bool = Field(True, description="Extension: begin a text prompt as the model's tokenizer does.")
