"""What is asked of a server whose engines are on two nodes; and the ways of the token-exact suite, over HTTP."""

import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import httpx

from loadtest.bench.ray_nodes import HEAD, OTHER
from tests.engine.token_suite import BLOCK, FULL, tight_pool

OUTCOMES = ("loaded", "computed", "stays", "waits")  # of hand-overs


def until(condition, seconds=120.0):
    """Wait for what other processes bring about."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.1)
    return value


def cards(server):
    return {card["id"]: card for card in httpx.get(f"{server.url}/v1/engines", timeout=60).json()["data"]}


def health(server):
    return httpx.get(f"{server.url}/health", timeout=60).json()


def ready(server):
    server.wait_until(lambda: all(card["state"] == "ready" for card in cards(server).values()), 300)


def whole(server):
    """Wait until both nodes have an engine and a keeper that serve."""
    ready(server)
    until(lambda: [each["state"] for each in health(server)["keepers"].values()] == ["ready", "ready"])
    assert {node_of(server, name) for name in cards(server)} == {HEAD, OTHER}


def ask(server, prompt, **body):
    body = {"prompt": prompt, "max_tokens": 12, "temperature": 0, "ignore_eos": True, "return_token_ids": True, **body}
    answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=300)
    assert answer.status_code == 200, answer.text
    return answer.json()


def post(server, path, **body):
    assert httpx.post(f"{server.url}/v1/engines/{path}", json=body or None, timeout=60).status_code == 200


def tokens_of(answer):
    return answer["choices"][0]["token_ids"]


def sample(server, name, **labels):
    inside = ",".join(f'{key}="{value}"' for key, value in sorted(labels.items()))
    return server.metrics()[f"{name}{{{inside}}}"]


def known(server, engine):
    """Blocks of the other node of which the engine knows; one at rest tells nothing new of itself."""
    ask(server, [5, 6], max_tokens=1)
    return sample(server, "headrace_kv_tier_blocks", engine=engine, tier="peer")


def node_of(server, engine):
    """Where its latest incarnation is, by the log."""
    lines = [line for line in server.output if f"{engine}: process" in line and "on node" in line]
    return lines[-1].split("on node ")[1].split()[0].rstrip(";:,")


def compute_on(server, node):
    """Roles by where the engines are: this node computes prompts, and hands them over to the other one."""
    wanted = {name: "prefill" if node_of(server, name) == node else "decode" for name in cards(server)}
    for name in wanted:
        post(server, f"{name}/role", role="mixed")
    for name, role in wanted.items():
        post(server, f"{name}/role", role=role)


class Stream(threading.Thread):
    """One streamed answer, its usage, all that told of its end, and the longest pause between two of its tokens."""

    def __init__(self, server, prompt, output=96, **body):
        super().__init__()
        self.server, self.prompt, self.output, self.body = server, prompt, output, body
        self.tokens, self.ends, self.error, self.pause, self.usage = [], [], None, 0.0, None

    def run(self):
        last, body = None, {"prompt": self.prompt, "max_tokens": self.output, "temperature": 0, "ignore_eos": True}
        body |= {"stream": True, "stream_options": {"include_usage": True}, "return_token_ids": True, **self.body}
        with httpx.stream("POST", f"{self.server.url}/v1/completions", json=body, timeout=600) as answer:
            for line in answer.iter_lines():
                if line.startswith("data: {"):
                    event = json.loads(line.removeprefix("data: "))
                    self.error = self.error or event.get("error")
                    self.usage = event.get("usage") or self.usage
                    choices = event.get("choices", ())
                    self.tokens += [token for choice in choices for token in choice["token_ids"]]
                    self.ends += [choice["finish_reason"] for choice in choices if choice["finish_reason"]]
                    now = time.monotonic()
                    self.pause, last = max(self.pause, now - (last or now)), now
                elif line.startswith("data: "):
                    self.ends.append(line)

    @property
    def cached(self):
        """Tokens of its prompt that were found in the cache."""
        return self.usage["prompt_tokens_details"]["cached_tokens"]

    def first_token(self):
        """The same request for one token."""
        return Stream(self.server, self.prompt, 1, **self.body)


# --- ways ---


def at_once(streams):
    for stream in streams:
        stream.start()
    for stream in streams:
        stream.join()


def one_by_one(streams):
    for stream in streams:
        at_once([stream])


def staggered(streams):
    """Each comes when the one before has brought two tokens."""
    for stream in streams:
        stream.start()
        until(lambda stream=stream: len(stream.tokens) >= 2 or not stream.is_alive())
    for stream in streams:
        stream.join()


def warm(streams):
    """Each prompt has been computed before, but for what is not a whole block."""
    at_once([stream.first_token() for stream in streams])
    at_once(streams)


@dataclass(frozen=True)
class Way:
    """How the prompts of the suite pass through a server, as in `tests/engine/test_token_exact.py`.

    Attributes:
        name: for people.
        server: its name among `SERVERS`.
        run: has the streams run to their ends.
        long: whether the longest prompts are among them.
    """

    name: str
    server: str
    run: Callable[[list[Stream]], None]
    long: bool = True

    def prompts(self, prompts):
        """Those of the suite that pass."""
        return prompts if self.long else prompts[: -FULL.long]


WAYS = [
    Way("alone", "large steps", one_by_one),
    Way("whole prompts", "large steps", at_once),
    Way("warm cache", "large steps", warm),
    Way("staggered arrival", "steps of 128", staggered),
    Way("small chunks", "steps of 7", at_once),
    Way("preemption", "tight pool", at_once, long=False),
]


def flags_of(server, prompts):
    """Of a server of `WAYS` for these prompts, beside those that all have.

    No step is short enough for its `decode_slo_ms`, and no first token late: so no prompt is computed where it is decoded, however
    short it is.
    """
    apart = ("--roles", "prefill:1,decode:1", "--ttft-slo-ms", "600000", "--decode-slo-ms", "0.001")
    tight = tight_pool(prompts[: -FULL.long], FULL)
    return {
        "large steps": (*apart, "--kv-blocks", "400", "--max-step-tokens", "512"),
        "steps of 128": (*apart, "--kv-blocks", "400", "--max-step-tokens", "128"),
        "steps of 7": (*apart, "--kv-blocks", "400", "--max-step-tokens", "7"),
        "tight pool": (*apart, "--kv-blocks", str(tight), "--decode-watermark", "0"),
    }[server]


class Counts:
    """What a server has counted since this was made."""

    def __init__(self, server):
        self._server = server
        self._before = server.metrics()

    def since(self, name, **labels):
        """By how much a counter has grown, of all engines."""
        wanted = [f'{key}="{value}"' for key, value in labels.items()]

        def total(metrics):
            named = {key: value for key, value in metrics.items() if key.startswith(f"headrace_{name}{{")}
            return sum(value for key, value in named.items() if all(part in key for part in wanted))

        return round(total(self._server.metrics()) - total(self._before))


def third_of_tokens(streams):
    """Whether so much has arrived."""
    return sum(len(stream.tokens) for stream in streams) >= sum(stream.output for stream in streams) // 3


def prompts_computed(server, node, streams):
    """Whether an engine of this node has work, a third of the prompts are done, and one that takes a while is on its way."""
    on_their_way = [stream for stream in streams if stream.is_alive() and not stream.tokens]
    if sum(bool(stream.tokens) for stream in streams) < len(streams) // 3:
        return False
    if not any(len(stream.prompt) > 4 * BLOCK for stream in on_their_way):
        return False
    loads = [card["load"] for name, card in cards(server).items() if node_of(server, name) == node]
    return any(load["running"] + load["waiting"] for load in loads)


def run_beside(way, streams, when, disturb):
    """Have the streams run, and call `disturb` as soon as `when` says so."""

    def strike():
        until(when, 600)
        disturb()

    with ThreadPoolExecutor(1) as thread:
        struck = thread.submit(strike)
        way.run(streams)
        struck.result()


def whole_blocks(prompt):
    """Tokens of a prompt that can be found in the cache: its last one is always computed."""
    return (len(prompt) - 1) // BLOCK * BLOCK
