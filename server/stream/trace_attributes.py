"""What a request asked for, as attributes of its span, by OpenTelemetry's conventions for generative AI."""

import json
from collections.abc import Callable
from typing import Any

from server.stream.job import Job, TextJob
from server.telemetry.lifetime import Exchange
from server.telemetry.traces.spans import Attribute


def attributes_of(job: Job, exchange: Exchange) -> Callable[[], dict[str, Attribute]]:
    """What gives the attributes once the job has ended. Texts are among them if `exchange.content` is set."""

    def attributes() -> dict[str, Attribute]:
        sampling = job.sequences[0].request.sampling
        found: dict[str, Attribute] = {
            "gen_ai.request.model": job.model,
            "gen_ai.request.max_tokens": sampling.max_tokens,
            "gen_ai.request.temperature": sampling.temperature,
            "gen_ai.request.top_p": sampling.top_p,
            "gen_ai.request.frequency_penalty": sampling.frequency_penalty,
            "gen_ai.request.presence_penalty": sampling.presence_penalty,
        }
        if sampling.top_k:
            found["gen_ai.request.top_k"] = sampling.top_k
        if isinstance(job, TextJob):
            found |= _of_body(job.body)
        if exchange.session is not None:
            found["gen_ai.conversation.id"] = exchange.session
        return found | _texts(job, exchange)

    return attributes


def _of_body(body: Any) -> dict[str, Attribute]:
    found: dict[str, Attribute] = {"gen_ai.request.choice.count": body.n, "gen_ai.request.stream": body.stream}
    if body.seed is not None:
        found["gen_ai.request.seed"] = body.seed
    if body.stop:
        found["gen_ai.request.stop_sequences"] = list(body.stop)
    return found


def _texts(job: Job, exchange: Exchange) -> dict[str, Attribute]:
    """Messages in the conventions' JSON; prompts as the model read them, chat templates included."""
    if exchange.content is None:
        return {}
    content = exchange.content()
    messages = {"gen_ai.input.messages": ("user", "prompts"), "gen_ai.output.messages": ("assistant", "answers")}
    return {
        name: json.dumps(
            [{"role": role, "parts": [{"type": "text", "content": text}]} for text in _list(content[key])],
            ensure_ascii=False,
        )
        for name, (role, key) in messages.items()
    }


def _list(texts: object) -> list[object]:
    return texts if isinstance(texts, list) else []
