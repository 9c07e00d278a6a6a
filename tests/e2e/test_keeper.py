"""Two engines over one keeper: what one computed the other loads."""

import httpx
import pytest

from tests.e2e.server_process import ServerProcess

pytestmark = pytest.mark.processes

PROMPT = [3000 + i for i in range(300)]  # nine blocks of 32, and a rest
FLAGS = ("--engines", "2", "--routing", "round-robin", "--kv-blocks", "40", "--kv-host-gib", "0.1")


@pytest.fixture(scope="module")
def pool():
    server = ServerProcess(*FLAGS)
    server.wait_until(lambda: all(card["state"] == "ready" for card in cards(server)))
    yield server
    assert server.stop() == 0, "".join(server.output)


def cards(server):
    return httpx.get(f"{server.url}/v1/engines", timeout=30).json()["data"]


def ask(server, prompt=PROMPT, **body):
    """Text and cached tokens of a greedy answer."""
    answer = httpx.post(
        f"{server.url}/v1/completions",
        json={"prompt": prompt, "max_tokens": 12, "temperature": 0, "ignore_eos": True, **body},
        timeout=60,
    )
    assert answer.status_code == 200, answer.text
    body = answer.json()
    return body["choices"][0]["text"], body["usage"]["prompt_tokens_details"]["cached_tokens"]


def tier(server, name, engine):
    return server.metrics()[f'headrace_kv_tier_{name}{{engine="{engine}",tier="host"}}']


def test_what_one_engine_computed_the_other_loads(pool):
    text, cached = ask(pool)
    assert cached == 0
    pool.wait_until(lambda: tier(pool, "saved_blocks_total", "engine-0") == 9)
    assert ask(pool) == (text, 288), "the other engine's turn"
    assert tier(pool, "loaded_blocks_total", "engine-1") == 9
