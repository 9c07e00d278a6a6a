"""Engines on two nodes of a real Ray cluster: where they are, whose KV they read, and that nothing is lost with a node.

Printed with `-s`: placement, hit, hand-over, death. Answers are held against those of a server on one machine.
"""

import json
import threading
import time

import httpx
import pytest

from tests.e2e.server_process import ServerProcess

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
    flags = ("--engines", "2", "--kv-blocks", "400", "--kv-host-gib", "0.25", "--max-step-tokens", "256")
    served = ServerProcess("--ray", nodes.address, *flags, "--http-processes", "2")
    ready(served)
    yield served
    assert served.stop() == 0, "".join(served.output)


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
    body = {"prompt": prompt, "max_tokens": 12, "temperature": 0, "ignore_eos": True, **body}
    answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=300)
    assert answer.status_code == 200, answer.text
    return answer.json()


def post(server, path, **body):
    assert httpx.post(f"{server.url}/v1/engines/{path}", json=body or None, timeout=60).status_code == 200


def text_of(answer):
    return answer["choices"][0]["text"]


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
def test_what_one_node_computed_the_other_loads(spread, server):
    expected = text_of(ask(server))
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
    assert text_of(first) == text_of(second) == expected
    assert (cached, loaded) == (288, 9)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_prompt_computed_on_one_node_is_decoded_on_the_other(spread, server):
    def outcomes():
        return {
            how: sample(spread, "headrace_hand_overs_total", outcome=how) for how in ("loaded", "computed", "stays")
        }

    before = outcomes()
    post(spread, "engine-0/role", role="prefill")
    post(spread, "engine-1/role", role="decode")
    for number in range(3):
        body = {"prompt": f"{number}. {LONG}", "max_tokens": 24}
        assert text_of(ask(spread, **body)) == text_of(ask(server, **body))
    seeded = {"prompt": f"9. {LONG}", "max_tokens": 24, "temperature": 1.0, "seed": 7}
    assert text_of(ask(spread, **seeded)) == text_of(ask(server, **seeded))
    after = outcomes()
    tokens = sample(spread, "headrace_hand_over_tokens_total", how="loaded")
    print(f"\nhand-over: {before} -> {after}, {tokens:g} tokens loaded from the other node")
    post(spread, "engine-1/role", role="mixed")
    post(spread, "engine-0/role", role="mixed")
    assert after["loaded"] > before["loaded"] and tokens > 0


class Stream(threading.Thread):
    """One streamed answer, and the longest pause between two of its tokens."""

    def __init__(self, server, number):
        super().__init__()
        self.url, self.number = f"{server.url}/v1/completions", number
        self.text, self.error, self.tokens, self.pause = "", None, 0, 0.0

    def body(self):
        return {"prompt": f"Tale {self.number}. {LONG}", "max_tokens": 96, "temperature": 0, "ignore_eos": True}

    def run(self):
        last = None
        with httpx.stream("POST", self.url, json={**self.body(), "stream": True}, timeout=300) as answer:
            for line in answer.iter_lines():
                if line.startswith("data: {"):
                    event = json.loads(line.removeprefix("data: "))
                    self.error = self.error or event.get("error")
                    self.text += "".join(choice["text"] for choice in event.get("choices", ()))
                    self.tokens += 1
                    now = time.monotonic()
                    self.pause, last = max(self.pause, now - (last or now)), now


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_node_that_dies_under_load_loses_no_request(spread, server, nodes):
    for death in range(2):
        ready(spread)
        streams = [Stream(spread, 10 * death + number) for number in range(6)]
        expected = [text_of(ask(server, **stream.body())) for stream in streams]
        for stream in streams:
            stream.start()
        until(lambda streams=streams: all(stream.tokens > 3 for stream in streams))
        killed = nodes.kill_other()
        for stream in streams:
            stream.join()
        replayed = {name: sample(spread, "headrace_replayed_requests_total", engine=name) for name in cards(spread)}
        print(
            f"\ndeath {death + 1}: {killed} processes killed, {len(streams)} streams whole, longest pause "
            f"{max(stream.pause for stream in streams):.2f} s, replayed {replayed}"
        )
        assert [stream.error for stream in streams] == [None] * len(streams)
        assert [stream.text for stream in streams] == expected
        until(lambda: set(health(spread)["keepers"]) == {HEAD})
        nodes.start_other()
    ready(spread)
    until(lambda: [each["state"] for each in health(spread)["keepers"].values()] == ["ready", "ready"])
    assert {node_of(spread, name) for name in cards(spread)} == {HEAD, OTHER}
