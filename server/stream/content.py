"""Prompts and answers as text, for the access log and traces of operators who ask for them (`--log-content`)."""

from collections.abc import Callable

from server.stream.job import Job
from server.telemetry.lifetime import Exchange
from server.text.detokenizer import text_of_tokens
from server.text.tokenizer import Tokenizer

_MOST = 16_384  # characters of one text


def content_of(job: Job, exchange: Exchange, tokenizer: Tokenizer) -> Callable[[], dict[str, object]]:
    """What gives the texts of a job's sequences once it has ended."""

    def content() -> dict[str, object]:
        prompts = [sequence.prompt for sequence in job.sequences]
        return {
            "prompts": [(each.text or text_of_tokens(tokenizer, each.ids))[:_MOST] for each in prompts],
            "answers": [text_of_tokens(tokenizer, each.output_ids)[:_MOST] for each in exchange.lifetimes],
        }

    return content
