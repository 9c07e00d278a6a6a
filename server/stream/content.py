"""Prompts and answers as text, for the access log and traces of operators who ask for them (`--log-content`)."""

from collections.abc import Callable, Sequence

from server.stream.job import Job
from server.telemetry.lifetime import Exchange
from server.text.detokenizer import text_of_tokens
from server.text.tokenizer import Tokenizer

_MOST = 16_384  # characters of one text


def content_of(job: Job, exchange: Exchange, tokenizer: Tokenizer) -> Callable[[], dict[str, object]]:
    """What gives the texts of a job's sequences once it has ended."""

    def beginning(ids: Sequence[int]) -> str:
        """Of so many tokens as have that many characters; to make text of a whole long one would keep everybody waiting."""
        return text_of_tokens(tokenizer, ids[:_MOST])[:_MOST]

    def content() -> dict[str, object]:
        prompts = [sequence.prompt for sequence in job.sequences]
        return {
            "prompts": [each.text[:_MOST] if each.text else beginning(each.ids) for each in prompts],
            "answers": [beginning(each.output_ids) for each in exchange.lifetimes],
        }

    return content
