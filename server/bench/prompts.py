"""How long a chat body of 100,000 tokens takes to be parsed, validated and tokenized: anew, and as the next turn of a session.

    python -m server.bench.prompts

The two are measured in turn; each round has another session, of which nothing is known at first. Nothing is asserted.
"""

import argparse
import json
import statistics
import time
from collections.abc import Sequence

from configs.model.source import resolve_model
from configs.settings import Settings
from scheduler.types.messages import Ready
from server.api.chat import chat_job
from server.api.context import ServerContext
from server.api.requests.parse import parse
from server.drain import Drain
from server.engines.client import EngineClient
from server.engines.engines import Engines
from server.engines.supervision.restarts import Restarts
from server.schema.chat import ChatRequest
from server.stream.background import BackgroundResponses
from server.stream.response_store import ResponseStore
from server.stream.resumables import ResumableStreams
from server.structured.compiler import GrammarCompiler
from server.telemetry.metrics import Metrics
from server.text import load_tokenizer
from server.text.chat_renderer import load_chat_renderer

WORDS = "The quick brown fox jumps over the lazy dog and tells number {} of what it saw on its way to the water wheel. "
TURN_TOKENS = 500
CONTEXT = 1_000_000


def context_of(settings: Settings) -> ServerContext:
    """A server's parts, with an engine that is said to have a long context."""
    source = resolve_model(None)
    tokenizer, metrics, drain = load_tokenizer(source.path), Metrics(), Drain()
    client = EngineClient("engine", settings, metrics)
    engines = Engines([client])
    client.status.became_ready(_ready(), time.monotonic())
    return ServerContext(
        settings=settings,
        engines=engines,
        restarts=Restarts(engines, {}, 0.0),
        drain=drain,
        streams=ResumableStreams(settings, metrics, drain),
        responses=ResponseStore(settings),
        background=BackgroundResponses(settings, metrics, drain),
        metrics=metrics,
        tokenizer=tokenizer,
        chat=load_chat_renderer(tokenizer),
        model_names=("bench",),
        created=0,
        grammars=GrammarCompiler(source.path),
    )


def _ready() -> Ready:
    return Ready(
        context=CONTEXT,
        vocab_size=49152,
        block_size=16,
        blocks=100_000,
        eos_token_ids=[2],
        ends="",
        device="none",
        version="bench",
        computes="bench",
        kv_fingerprint="bench",
        max_step_tokens=8192,
        max_running=1024,
    )


def session(tokens: int, name: int) -> list[dict[str, str]]:
    """Messages of about so many tokens, different for each name."""
    text = WORDS * (TURN_TOKENS // 25)
    roles = ("user", "assistant")
    count = max(1, tokens // TURN_TOKENS) | 1  # the last one is the user's
    return [
        {"role": roles[turn % 2], "content": f"{name}.{turn} " + text.format(*[turn] * 20)} for turn in range(count)
    ]


def timed(messages: Sequence[dict[str, str]], context: ServerContext) -> tuple[float, int]:
    """Seconds from the body's bytes to a valid job, and the prompt's tokens."""
    content = json.dumps({"messages": messages, "max_tokens": 16}).encode()
    began = time.perf_counter()
    body = parse(ChatRequest, content, "application/json", context.settings).request
    job = chat_job(body, context)
    return time.perf_counter() - began, len(job.sequences[0].prompt.ids)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m server.bench.prompts", description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(argv)
    context = context_of(Settings.model_validate({"max_body_bytes": 2**30}))
    anew, extended, size = [], [], 0
    for name in range(options.rounds):
        messages = session(options.tokens, name)
        anew.append(timed(messages, context)[0])
        more = [{"role": "assistant", "content": "It went on."}, {"role": "user", "content": "And then?"}]
        seconds, size = timed([*messages, *more], context)
        extended.append(seconds)
    first, next_one = statistics.median(anew), statistics.median(extended)
    told = f"anew {1e3 * first:.0f} ms, as a session's next turn {1e3 * next_one:.1f} ms, {next_one / first:.3f} of it"
    print(f"{size} tokens: {told}")


if __name__ == "__main__":
    main()
