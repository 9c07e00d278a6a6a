"""What a request asks of the sampler and of the stop rules: plain data, valid by the time it exists."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """Settings of one sequence. The HTTP layer has checked every bound; nothing below re-checks them.

    Token ids are vocabulary indices. Zero or one is "off" where the comment says so.
    """

    max_tokens: int  # >= 0; 0 only computes the prompt (echo)
    min_tokens: int = 0  # EOS and stop tokens are masked until this many are generated
    temperature: float = 1.0  # 0 = greedy
    top_k: int = 0  # 0 = off
    top_p: float = 1.0  # 1 = off
    min_p: float = 0.0  # 0 = off
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0  # 1 = off; counts prompt and output tokens, as transformers does
    logit_bias: dict[int, float] = field(default_factory=dict)
    bad_words: tuple[tuple[int, ...], ...] = ()  # token sequences that must not be completed
    allowed_token_ids: tuple[int, ...] = ()  # no others are sampled; empty = all
    seed: int = 0  # always set: the HTTP layer draws one if the client sent none
    stop_token_ids: tuple[int, ...] = ()  # besides the model's own EOS ids
    ignore_eos: bool = False
    logprobs: int | None = None  # None = none; n = the sampled token's and the n likeliest
    prompt_logprobs: int | None = None  # the same for every prompt token but the first
    grammar: str = ""  # which the output must fit, as llguidance serializes it; empty: none
    vocabulary: str = ""  # path of the file that says what the model's tokens spell; with `grammar`
    thinking_tokens: int | None = None  # most tokens of reasoning; None = no bound
    # The token that opens reasoning; None: the prompt ends within it. With `thinking_tokens`.
    think_begin: int | None = None
    think_end: int = 0  # the token that closes it
    speculation: bool = True  # whether tokens may be guessed ahead where the engine does
    prediction_ids: tuple[int, ...] = ()  # what the output may be like, for who guesses

    @property
    def greedy(self) -> bool:
        """Whether the next token is the arg-max."""
        return self.temperature == 0.0
