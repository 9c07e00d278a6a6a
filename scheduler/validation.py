"""What a request must satisfy to be queued: each rule refuses with a sentence that has the numbers."""

from scheduler.types.config import SchedulerConfig
from scheduler.types.messages import AddRequest
from scheduler.types.output_kind import OutputKind


class RequestTooLong(ValueError):
    """The request could never run: it needs more tokens than fit, even alone."""


def check_request(message: AddRequest, config: SchedulerConfig) -> None:
    """Refuse a request that a scheduler of this `config` could not run even alone.

    Raises:
        RequestTooLong: prompt plus max_tokens exceeds the context; the message has both numbers.
        ValueError: it has nothing to compute, an adapter that is not loaded, or a kind of output that the worker does not make.
    """
    _check_kind(message, config)
    prompt, output = len(message.prompt_ids), message.sampling.max_tokens
    if prompt + output > config.context:
        raise RequestTooLong(
            f"prompt ({prompt} tokens) plus max_tokens ({output}) is {prompt + output}, "
            f"the longest request that fits is {config.context}"
        )
    if not message.prompt_ids:
        raise ValueError("the prompt has no tokens")
    if message.adapter and message.adapter not in config.adapters:
        known = ", ".join(sorted(config.adapters)) or "none"
        raise ValueError(f"adapter {message.adapter!r} is not loaded (loaded: {known})")
    _check_generated(message, config)
    _check_beams(message)


def _check_kind(message: AddRequest, config: SchedulerConfig) -> None:
    """Refuse a kind of output that the worker does not make, and tokens beside a kind that has none."""
    kind, most = message.produces, message.sampling.max_tokens
    if kind not in config.produces:
        made = ", ".join(sorted(config.produces))
        raise ValueError(f"this engine produces {made}, the request asks for {kind}")
    if kind is not OutputKind.TOKENS and most:
        raise ValueError(f"a request that produces {kind} generates no tokens, max_tokens is {most}")
    if kind is not OutputKind.TOKENS and message.sampling.prompt_logprobs is not None:
        raise ValueError(
            f"a request that produces {kind} has no prompt_logprobs, it asks for {message.sampling.prompt_logprobs}"
        )


def _check_beams(message: AddRequest) -> None:
    """Refuse to resume a search, or one that looks for nothing."""
    if message.beams is None:
        return
    if message.generated_ids or not message.sampling.max_tokens:
        raise ValueError(
            f"a beam search begins with its prompt and generates a token at least, got {len(message.generated_ids)} "
            f"generated_ids and max_tokens={message.sampling.max_tokens}"
        )


def _check_generated(message: AddRequest, config: SchedulerConfig) -> None:
    """Refuse to resume a request that has nothing left to generate."""
    sampling, generated = message.sampling, message.generated_ids
    if generated and len(generated) >= sampling.max_tokens:
        raise ValueError(
            f"generated_ids has {len(generated)} tokens and max_tokens is {sampling.max_tokens}: nothing is left to generate"
        )
    for count, token_id in enumerate(generated, 1):
        ends = token_id in sampling.stop_token_ids or (token_id in config.eos_token_ids and not sampling.ignore_eos)
        if ends and count >= sampling.min_tokens:
            raise ValueError(
                f"token {count} of generated_ids, {token_id}, ends the request: nothing is left to generate"
            )
