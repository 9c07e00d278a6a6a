"""Engines on two nodes of a real Ray cluster: where they are, whose KV they read, and that nothing is lost with a node.

Printed with `-s`: placement, hit, hand-over, death. Greedy answers are held against transformers, token by token: its arg-max after
the prompt and each of our tokens has to be our next one.
"""

import json
import threading
import time

import httpx
import pytest
import torch

from tests.e2e.server_process import ServerProcess
from tests.engine.test_token_exact import PROMPTS

pytest.importorskip("ray", reason="Ray is not installed: pip install 'headrace[ray]'")
from loadtest.bench.ray_nodes import HEAD, OTHER, RayNodes

pytestmark = pytest.mark.processes

PROMPT = [3000 + i for i in range(300)]  # nine blocks of 32, and a rest
LONG = " ".join(f"The {number}th wheel of the old mill turns." for number in range(40))


@pytest.fixture(scope="module")
def nodes():
    made = RayNodes()
    yield made
    made.close()


@pytest.fixture(scope="module")
def spread(nodes):
    flags = ("--engines", "2", "--kv-blocks", "400", "--kv-host-gib", "0.5", "--max-step-tokens", "256")
    exact = ("--cpu-precision", "exact")  # fp32, as transformers computes here
    served = ServerProcess("--ray", nodes.address, *flags, *exact, "--http-processes", "2")
    ready(served)
    yield served
    assert served.stop() == 0, "".join(served.output)


@pytest.fixture(scope="module")
def prompts(smollm2_tokenizer):
    """Twenty real prompts of all lengths up to 500 tokens, as token ids."""
    texts = [json.loads(line)["prompt"] for line in PROMPTS.read_text().splitlines()]
    ids = sorted((ids for text in texts if len(ids := smollm2_tokenizer.encode(text)) < 500), key=len)
    return [ids[place * len(ids) // 20] for place in range(20)]


@pytest.fixture(scope="module")
def greedy(smollm2_reference):
    """Says whether transformers would have answered this prompt with these tokens."""

    def check(prompt, output):
        with torch.inference_mode():
            logits = smollm2_reference(torch.tensor([prompt + output])).logits[0, len(prompt) - 1 : -1]
        return logits.argmax(-1).tolist() == output

    return check


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


def ask(server, prompt=PROMPT, **body):
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
    ask(server, prompt=[5, 6], max_tokens=1)
    return sample(server, "headrace_kv_tier_blocks", engine=engine, tier="peer")


def node_of(server, engine):
    """Where its latest incarnation is, by the log."""
    lines = [line for line in server.output if f"{engine}: process" in line and "on node" in line]
    return lines[-1].split("on node ")[1].split()[0].rstrip(";:,")


@pytest.mark.long
@pytest.mark.timeout(900)
def test_engines_are_on_different_nodes(spread):
    places = {name: node_of(spread, name) for name in cards(spread)}
    print(f"\nplacement: {places}")
    assert sorted(places.values()) == [HEAD, OTHER]


@pytest.mark.long
@pytest.mark.timeout(900)
def test_http_processes_keepers_and_who_may_command_ray_are_told(spread):
    """All requests of this file pass through two HTTP processes."""
    up = {name: value for name, value in spread.metrics().items() if name.startswith("headrace_http_process_up")}
    assert up == {f'headrace_http_process_up{{process="http-{number}"}}': 1 for number in range(2)}
    whole = {"state": "ready", "trouble": None, "restarts": 0}
    until(lambda: health(spread)["keepers"] == {HEAD: whole, OTHER: whole})
    assert health(spread)["keeper"] is None
    assert sample(spread, "headrace_keeper_up", node=HEAD) == sample(spread, "headrace_keeper_up", node=OTHER) == 1
    assert any("Ray takes commands of anybody who reaches its ports" in line for line in spread.output)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_what_one_node_computed_the_other_loads(spread, greedy):
    post(spread, "engine-1/drain")
    first = ask(spread)
    until(lambda: sample(spread, "headrace_kv_tier_saved_blocks_total", engine="engine-0", tier="host") >= 9)
    post(spread, "engine-1/undrain")
    post(spread, "engine-0/drain")
    until(lambda: known(spread, "engine-1") >= 9)
    second = ask(spread)
    post(spread, "engine-0/undrain")
    cached = second["usage"]["prompt_tokens_details"]["cached_tokens"]
    loaded = sample(spread, "headrace_kv_tier_loaded_blocks_total", engine="engine-1", tier="peer")
    print(f"\nhit: {cached} of {len(PROMPT)} tokens, {loaded:g} blocks from the other node's keeper")
    assert tokens_of(first) == tokens_of(second) and greedy(PROMPT, tokens_of(first))
    assert (cached, loaded) == (288, 9)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_prompt_computed_on_one_node_is_decoded_on_the_other(spread, prompts, greedy, smollm2_tokenizer):
    def outcomes():
        return {
            how: sample(spread, "headrace_hand_overs_total", outcome=how) for how in ("loaded", "computed", "stays")
        }

    before = outcomes()
    post(spread, "engine-0/role", role="prefill")
    post(spread, "engine-1/role", role="decode")
    long = [[*smollm2_tokenizer.encode(f"{number}. {LONG}"), *ids] for number, ids in enumerate(prompts[::2])]
    answers = [tokens_of(ask(spread, prompt=prompt, max_tokens=24)) for prompt in long]
    seeded = {"prompt": f"99. {LONG}", "max_tokens": 24, "temperature": 1.0, "seed": 7}
    sampled = tokens_of(ask(spread, **seeded))
    after = outcomes()
    tokens = sample(spread, "headrace_hand_over_tokens_total", how="loaded")
    print(f"\nhand-over: {before} -> {after}, {tokens:g} tokens loaded from the other node")
    post(spread, "engine-1/role", role="mixed")
    post(spread, "engine-0/role", role="mixed")
    assert [greedy(prompt, answer) for prompt, answer in zip(long, answers, strict=True)] == [True] * len(long)
    assert sampled == tokens_of(ask(spread, **seeded)), "the same by one engine alone"
    assert after["loaded"] == before["loaded"] + len(long) + 1 and tokens > 0


class Stream(threading.Thread):
    """One streamed answer, and the longest pause between two of its tokens."""

    def __init__(self, server, prompt):
        super().__init__()
        self.url, self.prompt = f"{server.url}/v1/completions", prompt
        self.tokens, self.error, self.pause = [], None, 0.0

    def run(self):
        last, body = None, {"prompt": self.prompt, "max_tokens": 96, "temperature": 0, "ignore_eos": True}
        body |= {"stream": True, "return_token_ids": True}
        with httpx.stream("POST", self.url, json=body, timeout=300) as answer:
            for line in answer.iter_lines():
                if line.startswith("data: {"):
                    event = json.loads(line.removeprefix("data: "))
                    self.error = self.error or event.get("error")
                    self.tokens += [token for choice in event.get("choices", ()) for token in choice["token_ids"]]
                    now = time.monotonic()
                    self.pause, last = max(self.pause, now - (last or now)), now


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_node_that_dies_under_load_loses_no_request(spread, nodes, prompts, greedy):
    for death in range(2):
        ready(spread)
        streams = [Stream(spread, prompt) for prompt in prompts[death::2]]
        for stream in streams:
            stream.start()
        until(lambda streams=streams: all(len(stream.tokens) > 3 for stream in streams))
        killed = nodes.kill_other()
        for stream in streams:
            stream.join()
        replayed = {name: sample(spread, "headrace_replayed_requests_total", engine=name) for name in cards(spread)}
        print(
            f"\ndeath {death + 1}: {killed} processes killed, {len(streams)} streams whole, longest pause "
            f"{max(stream.pause for stream in streams):.2f} s, replayed {replayed}"
        )
        assert [stream.error for stream in streams] == [None] * len(streams)
        assert [len(stream.tokens) for stream in streams] == [96] * len(streams)
        assert all(greedy(stream.prompt, stream.tokens) for stream in streams)
        until(lambda: set(health(spread)["keepers"]) == {HEAD})
        nodes.start_other()
    ready(spread)
    until(lambda: [each["state"] for each in health(spread)["keepers"].values()] == ["ready", "ready"])
    assert {node_of(spread, name) for name in cards(spread)} == {HEAD, OTHER}
