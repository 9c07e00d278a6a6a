"""Two engines over one keeper: what one computed the other loads, whoever was killed meanwhile, and the next server finds it."""

import signal

import httpx
import psutil
import pytest

from tests.e2e.server_process import ServerProcess

pytestmark = pytest.mark.processes

PROMPT = [3000 + i for i in range(300)]  # nine blocks of 32, and a rest
LAST = [2500 + i for i in range(700)]  # 21 blocks
FLAGS = ("--engines", "2", "--routing", "round-robin", "--kv-blocks", "40", "--kv-host-gib", "0.1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(tmp_path_factory.mktemp("kv"))


@pytest.fixture(scope="module")
def pool(folder):
    server = ServerProcess(*FLAGS, "--kv-disk-path", folder)
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


def up(server):
    return [tier(server, "up", f"engine-{number}") for number in (0, 1)]


def test_a_keeper_that_is_killed_costs_no_request_and_is_back_with_what_it_had(pool):
    prompt = [2000 + i for i in range(300)]
    text, _ = ask(pool, prompt)
    pool.wait_until(lambda: sum(tier(pool, "saved_blocks_total", f"engine-{number}") for number in (0, 1)) == 18)
    keeper = process(pool, "engine.keeper")
    keeper.send_signal(signal.SIGSTOP)  # so that it is away for a while
    keeper.kill()
    pool.wait_for(r"keeper: process \d+ was killed by SIGKILL; starting it again")
    pool.wait_until(lambda: up(pool) == [1, 1] and "".join(pool.output).count("KV tier host is back, with 18") == 2)
    assert "found 18 KV blocks in memory, dropped 0" in "".join(pool.output)
    assert ask(pool, prompt) == (text, 288), "the other engine's turn"


def test_an_engine_that_is_killed_takes_nothing_with_it_that_was_saved(pool):
    text, _ = ask(pool)
    for child in psutil.Process(pool.process.pid).children():
        if "--share" in child.cmdline():
            child.kill()
    pool.wait_until(lambda: not any(card["state"] == "ready" for card in cards(pool)))
    pool.wait_until(lambda: all(card["state"] == "ready" for card in cards(pool)))
    assert [ask(pool), ask(pool)] == [(text, 288)] * 2


def process(server, module):
    """The child that runs this module."""
    (found,) = [child for child in psutil.Process(server.process.pid).children() if module in child.cmdline()]
    return found


def test_what_only_memory_has_is_on_the_disk_after_a_stop(pool, folder):
    """Answered just before; past all that was written meanwhile. A server of one engine finds it, too."""
    last, _ = ask(pool, LAST)
    assert pool.stop(signal.SIGINT) == 0
    server = ServerProcess("--kv-blocks", "40", "--kv-disk-path", folder)
    try:
        assert ask(server, LAST) == (last, 672)
        assert ask(server)[1] == 288
    finally:
        assert server.stop() == 0
