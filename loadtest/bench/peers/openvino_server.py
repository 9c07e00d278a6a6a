"""OpenVINO GenAI's continuous batching behind the part of OpenAI's API that a measurement asks: it comes as a library.

    .peers/bin/python loadtest/bench/peers/openvino_server.py MODEL.gguf PORT

Runs in an environment of its own and imports nothing of headrace. Every answer is greedy and as long as it is asked to be.
"""

import json
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from queue import Queue
from typing import Any

import openvino_genai

_KV_GIB = 2
_PAUSE_SECONDS = 0.001  # after a step, in which threads that write answers get Python's lock
Ids = list[int] | None  # new tokens of an answer; None is its end


class Batching:
    """The pipeline and the thread that drives it. Only that thread touches it."""

    def __init__(self, path: str) -> None:
        config = openvino_genai.SchedulerConfig()
        config.cache_size = _KV_GIB
        config.max_num_batched_tokens, config.max_num_seqs = 512, 64
        config.enable_prefix_caching = config.dynamic_split_fuse = True
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(path, config, "CPU")
        self.tokenizer = self._pipeline.get_tokenizer()
        self._new: Queue[tuple[Any, int, Queue[Ids]]] = Queue()
        self._running: list[tuple[Any, Queue[Ids]]] = []
        self._count = 0
        threading.Thread(target=self._run, daemon=True).start()

    def ask(self, prompt: Any, tokens: int) -> "Queue[Ids]":
        """Where the new tokens of this prompt (ids, shape [1, tokens]) arrive."""
        answer: Queue[Ids] = Queue()
        self._new.put((prompt, tokens, answer))
        return answer

    def _run(self) -> None:
        while True:
            self._take()
            self._pipeline.step()
            self._running = [each for each in self._running if not self._deliver(*each)]
            time.sleep(_PAUSE_SECONDS)

    def _take(self) -> None:
        """What has come; waits if there is nothing else to do."""
        while not self._running or not self._new.empty():
            prompt, tokens, answer = self._new.get()
            config = openvino_genai.GenerationConfig()
            config.max_new_tokens, config.ignore_eos = tokens, True
            config.do_sample = config.apply_chat_template = False
            self._running.append((self._pipeline.add_request(self._count, prompt, config), answer))
            self._count += 1

    @staticmethod
    def _deliver(handle: Any, answer: "Queue[Ids]") -> bool:
        """Hand over what the step has made. Returns whether that was all."""
        ended = handle.get_status() != openvino_genai.GenerationStatus.RUNNING
        while handle.can_read():
            for output in handle.read().values():
                answer.put(list(output.generated_ids))
        if ended:
            answer.put(None)
        return bool(ended)


class CompletionsHandler(BaseHTTPRequestHandler):
    """One connection. An answer ends with it."""

    batching: Batching

    def do_GET(self) -> None:
        """The models."""
        self._whole({"object": "list", "data": [{"id": "model", "object": "model"}]})

    def do_POST(self) -> None:
        """A completion."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        tokenizer, limit = self.batching.tokenizer, body.get("max_tokens", 16)
        prompt = tokenizer.encode(body["prompt"], add_special_tokens=False).input_ids
        answer, tokens, texts = self.batching.ask(prompt, limit), 0, []
        if body.get("stream"):
            self._begin("text/event-stream")
        while (ids := answer.get()) is not None:
            tokens += len(ids)
            texts.append(tokenizer.decode(ids) or " ")
            if body.get("stream"):
                self._event({"choices": [{"index": 0, "text": texts[-1], "finish_reason": None}]})
        usage = {
            "prompt_tokens": prompt.shape[1],
            "completion_tokens": tokens,
            "total_tokens": prompt.shape[1] + tokens,
        }
        end = {"index": 0, "text": "", "finish_reason": "length"}
        if body.get("stream"):
            self._event({"choices": [end], "usage": usage})
            self.wfile.write(b"data: [DONE]\n\n")
        else:
            self._whole({"choices": [{**end, "text": "".join(texts)}], "usage": usage})

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: a line a request would be part of what is timed."""

    def _begin(self, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.end_headers()

    def _whole(self, content: object) -> None:
        self._begin("application/json")
        self.wfile.write(json.dumps(content).encode())

    def _event(self, content: object) -> None:
        self.wfile.write(f"data: {json.dumps(content)}\n\n".encode())


if __name__ == "__main__":
    CompletionsHandler.batching = Batching(sys.argv[1])
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[2])), CompletionsHandler).serve_forever()
