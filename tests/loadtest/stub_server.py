"""A server to test the load tester with: real sockets, canned answers, and faults by order. Runs as a process of its own.

    python tests/loadtest/stub_server.py --gap 0.02 --fault double --every 3

It prints its port. A token is a word. Streams keep docs/sse.md, or with --dialect vllm the looser habits of others: a finish
reason with the last text, usage keys that come and go. Every `--every`th generated answer has the fault.
"""

import argparse
import asyncio
import json
import signal
import zlib

import httptools

try:
    from uvloop import new_event_loop
except ImportError:
    from asyncio import new_event_loop

WORDS = [f"word{number}" for number in range(97)]
TEMPLATE_TOKENS = 5  # what "the chat template" adds
FAULTS = (
    "drop",  # the connection closes in the middle
    "cut",  # the stream ends early, as if it were whole
    "stall",  # it falls silent
    "double",  # an event is sent twice
    "lost",  # an event is not sent
    "miscount",  # usage counts one token too many
    "miscount-prompt",
    "sum",  # usage does not add up
    "finish",  # finish reason `stop` though the length ended it
    "no-finish",
    "no-usage",
    "after-done",  # an event after [DONE]
    "error",  # an error event
    "refuse",  # status 503
    "silent",  # the connection closes without an answer
    "garbage",  # not HTTP
    "other-text",  # the unstreamed answer differs
)
CACHE_BLOCK = 4
cached_blocks = set()
options = argparse.Namespace(generated=0)  # answers so far, beside what the command line says


def ids_of(text):
    return [zlib.crc32(word.encode()) & 0xFFFFFF for word in text.split()]


def word_after(seed, place):
    return " " + WORDS[(seed + 7 * place) % len(WORDS)]


def cache(words):
    """How many leading words an earlier prompt had, in blocks as a server keeps them; from now on all of them are there."""
    found, chain, known = 0, 0, True
    for end in range(CACHE_BLOCK, len(words) + 1, CACHE_BLOCK):
        chain = hash((chain, *words[end - CACHE_BLOCK : end]))
        known = known and chain in cached_blocks
        found = end if known else found
        cached_blocks.add(chain)
    return found


class Stub(asyncio.Protocol):
    """One connection."""

    def connection_made(self, transport):
        self.transport = transport
        self.parser = httptools.HttpRequestParser(self)

    def connection_lost(self, error):
        self.transport = None

    def data_received(self, data):
        self.parser.feed_data(data)

    def on_message_begin(self):
        self.body = bytearray()

    def on_url(self, url):
        self.path = url.decode()

    def on_body(self, data):
        self.body += data

    def on_message_complete(self):
        routes = {
            "/v1/models": self.models,
            "/v1/embeddings": self.embed,
            "/metrics": self.metrics,
            "/tokenize": self.tokenize,
        }
        routes.get(self.path, self.generate)()

    def models(self):
        entry = {"id": "stub", "object": "model", "owned_by": options.dialect, "max_model_len": options.context}
        self.answer(200, {"object": "list", "data": [entry]})

    def metrics(self):
        self.write(
            200, "text/plain", f'# HELP x\nstub_requests_total{{kind="generated"}} {options.generated}\n'.encode()
        )

    def tokenize(self):
        if options.no_tokenizer:
            return self.answer(404, {"error": {"message": "no such route", "type": "x", "param": None, "code": "x"}})
        ids = ids_of(json.loads(self.body)["prompt"])
        return self.answer(200, {"tokens": ids, "count": len(ids), "max_model_len": options.context})

    def answer(self, status, content):
        self.write(status, "application/json", json.dumps(content).encode())

    def write(self, status, kind, body):
        head = f"HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
        self.transport.write(head.encode() + body)

    def embed(self):
        text = json.loads(self.body)["input"]
        options.generated += 1
        faulty = options.generated % options.every == 0
        vector = [0.5, -0.5, float("nan") if faulty and options.fault == "garbage" else 1.0]
        tokens = len(text.split()) + (faulty and options.fault == "miscount-prompt")
        data = [] if faulty and options.fault == "lost" else [{"object": "embedding", "index": 0, "embedding": vector}]
        self.answer(
            200,
            {
                "object": "list",
                "data": data,
                "model": "stub",
                "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
            },
        )

    def generate(self):
        request = json.loads(self.body)
        refused = sorted(set(options.refuse_fields) & request.keys())
        if refused:
            error = {"message": f"unknown field {refused[0]}", "type": "invalid", "param": refused[0], "code": "x"}
            return self.answer(400, {"error": error})
        chat = self.path.endswith("/chat/completions")
        stream = bool(request.get("stream"))
        options.generated += stream
        faulty = stream and options.generated % options.every == 0
        generation = Generation(self, request, chat, options.fault if faulty else None)
        return generation.begin() if stream else generation.whole(options.fault)


class Generation:
    """One answer."""

    def __init__(self, connection, request, chat, fault):
        self.connection, self.request, self.chat, self.fault = connection, request, chat, fault
        text = request["messages"][-1]["content"] if chat else request["prompt"]
        self.seed = zlib.crc32(text.encode())
        self.prompt = len(text.split()) + (TEMPLATE_TOKENS if chat else 0)
        self.cached = cache(text.split()) if options.prefix_cache and request.get("stream") else 0
        self.limit = request.get("max_tokens") or request["max_completion_tokens"]
        self.total = min(self.limit, options.answer) if not request.get("ignore_eos") else self.limit
        self.sent = 0
        self.at = 0.0
        self.loop = asyncio.get_running_loop()
        kind = "chat.completion.chunk" if chat else "text_completion"
        shared = {"id": f"r-{options.generated}", "object": kind, "created": 1790000000, "model": "stub"}
        self.head = b"data: " + json.dumps(shared)[:-1].encode() + b', "choices": ['

    @property
    def reason(self):
        if self.fault == "finish":
            return "stop"
        return "length" if self.total == self.limit else "stop"

    def usage(self):
        prompt, output = self.prompt + (self.fault == "miscount-prompt"), self.total + (self.fault == "miscount")
        total = prompt + output + (self.fault == "sum")
        details = {"cached_tokens": self.cached if options.prefix_cache else self.prompt // 2}
        return {
            "prompt_tokens": prompt,
            "completion_tokens": output,
            "total_tokens": total,
            "prompt_tokens_details": details,
        }

    def whole(self, fault):
        text = "".join(word_after(self.seed + (fault == "other-text"), place) for place in range(self.total))
        said = {"message": {"role": "assistant", "content": text}} if self.chat else {"text": text}
        if self.request.get("return_token_ids"):
            said["token_ids"] = ids_of(text)
        choice = {"index": 0, **said, "finish_reason": self.reason}
        self.connection.answer(200, {"id": "r", "choices": [choice], "usage": self.usage()})

    def begin(self):
        transport = self.connection.transport
        if self.fault == "refuse":
            error = {"message": "not now", "type": "x", "param": None, "code": "x"}
            return self.connection.answer(503, {"error": error})
        if self.fault == "silent":
            return transport.close()
        if self.fault == "garbage":
            transport.write(b"no such protocol\r\n\r\n")
            return transport.close()
        transport.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        self.at = self.loop.time() + options.ttft
        if options.ttft:
            return self.loop.call_at(self.at, self.first)
        return self.first()

    def first(self):
        if self.chat:
            self.event({"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None})
        self.step()

    def step(self):
        """One token, and the next one `gap` later."""
        while self.connection.transport is not None:
            if self.sent == self.total // 2 and self.fault in ("drop", "cut", "stall", "error"):
                return self.fail()
            if self.sent == self.total - (options.dialect != "headrace"):
                return self.finish()
            place, self.sent = self.sent, self.sent + 1
            if not (place == 0 and self.fault == "lost"):
                self.token(place)
            if place == 0 and self.fault == "double":
                self.token(place)
            if options.gap:
                self.at += options.gap
                return self.loop.call_at(self.at, self.step)
        return None

    def token(self, place, reason=None):
        word = word_after(self.seed, place)
        choice = {"index": 0, **({"delta": {"content": word}} if self.chat else {"text": word})}
        if self.request.get("return_token_ids"):
            choice["token_ids"] = ids_of(word)
        self.event(choice | {"logprobs": None, "finish_reason": reason})

    def finish(self):
        if options.dialect != "headrace":
            self.token(self.total - 1, None if self.fault == "no-finish" else self.reason)
        elif self.fault != "no-finish":
            body = {"delta": {}} if self.chat else {"text": ""}
            choice = {"index": 0, **body, "finish_reason": self.reason}
            self.event(choice, b', "timings": {"queue_ms": 1.5, "prefill_ms": 2.0, "decode_ms": 3.0}')
        if self.fault != "no-usage":
            self.chunk(self.head + b'], "usage": ' + json.dumps(self.usage()).encode() + b"}\n\n")
        self.chunk(b"data: [DONE]\n\n")
        if self.fault == "after-done":
            self.token(0)
        self.connection.transport.write(b"0\r\n\r\n")

    def fail(self):
        if self.fault == "stall":
            return
        if self.fault == "error":
            error = {"message": "the engine died", "type": "x", "param": None, "code": "engine_died"}
            self.chunk(b"data: " + json.dumps({"error": error}).encode() + b"\n\n")
        if self.fault == "drop":
            self.connection.transport.close()
        else:
            self.connection.transport.write(b"0\r\n\r\n")

    def event(self, choice, extra=b""):
        usage = b', "usage": null' if options.dialect == "headrace" else b""
        self.chunk(self.head + json.dumps(choice).encode() + b"]" + usage + extra + b"}\n\n")

    def chunk(self, event):
        if self.connection.transport is not None:
            self.connection.transport.write(b"%x\r\n%s\r\n" % (len(event), event))


async def serve():
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Stub, "127.0.0.1", options.port, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    stopped = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stopped.set)
    await stopped.wait()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--ttft", type=float, default=0.0, help="seconds to the first token")
    parser.add_argument("--gap", type=float, default=0.0, help="seconds between tokens")
    parser.add_argument("--answer", type=int, default=20, help="tokens of an answer that may end by itself")
    parser.add_argument("--context", type=int, default=100_000)
    parser.add_argument("--dialect", choices=["headrace", "vllm", "other"], default="headrace")
    parser.add_argument("--fault", choices=FAULTS)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--prefix-cache", action="store_true", help="count what an earlier prompt began with as cached")
    parser.add_argument("--no-tokenizer", action="store_true")
    parser.add_argument("--refuse-fields", nargs="*", default=[])
    parser.parse_args(namespace=options)
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(serve())


if __name__ == "__main__":
    main()
