"""KV that outlives the pool, the engine and the server: with real processes and a real folder."""

import mmap
import os
import signal

import httpx
import pytest

from loadtest.bench.tiers import main as tier_bench
from loadtest.bench.tiers import per_copy
from tests.e2e.server_process import ServerProcess

pytestmark = pytest.mark.processes

PROMPT = [3000 + i for i in range(300)]  # nine blocks of 32, and a rest
LAST = [2000 + i for i in range(700)]  # 21 blocks
FLAGS = ("--kv-blocks", "40")


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


def tier(server, name):
    return server.metrics()[f'headrace_kv_tier_{name}{{tier="disk"}}']


def test_a_prefix_is_served_from_disk_after_a_kill_and_after_a_restart(tmp_path):
    """Also one that was answered just before Ctrl-C, past a tier between. Another server on the folder is refused by a sentence."""
    flags = (*FLAGS, "--kv-disk-path", str(tmp_path / "kv"))
    server = ServerProcess(*flags, "--kv-host-gib", "0.1")
    try:
        text, cached = ask(server)
        assert cached == 0
        server.wait_until(lambda: tier(server, "saved_blocks_total") == 9)
        server.engine.send_signal(signal.SIGKILL)
        server.wait_until(lambda: httpx.get(f"{server.url}/ready").status_code == 503)
        server.wait_until(lambda: httpx.get(f"{server.url}/ready").status_code == 200)
        assert ask(server) == (text, 288)
        assert tier(server, "loaded_blocks_total") == 9
        last, _ = ask(server, LAST)
    finally:
        assert server.stop(signal.SIGINT) == 0
    server = ServerProcess(*flags)
    try:
        assert ask(server) == (text, 288)
        assert ask(server, LAST) == (last, 672)
        assert ask(server, cache_salt="another") == (text, 0)
        assert tier(server, "up") == 1
        a_second_server_is_refused(flags, str(tmp_path / "kv"))
        assert ask(server) == (text, 288)
    finally:
        assert server.stop() == 0


def a_second_server_is_refused(flags, folder):
    second = ServerProcess(*flags, wait=False)
    try:
        assert second.process.wait(60) != 0
        assert folder in "".join(second.output)
    finally:
        second.stop()


@pytest.mark.long
def test_the_benchmark_of_tiers_tells_what_was_loaded(capsys):
    tier_bench(["--only", "host", "--rounds", "1", "--tokens", "400", "--kv-blocks", "40"])
    line = capsys.readouterr().out
    assert line.startswith("host ") and "x; saved" in line and "loaded 12 blocks" in line


def test_an_unknown_case_is_refused(capsys):
    with pytest.raises(SystemExit):
        tier_bench(["--only", "host,moon"])
    assert "moon" in capsys.readouterr().err


def test_blocks_per_copy():
    metrics = {'saved_blocks_total{tier="host"}': 12.0, 'copies_total{direction="save",tier="host"}': 3.0}
    assert per_copy(metrics, "host") == "saved 12 blocks, 4.0 a copy; loaded 0 blocks, 0.0 a copy"


def flip_signs(server) -> None:
    """Of every number that the host's tier keeps: KV in bf16 stays finite, and means something else."""
    folder = f"/proc/{server.process.pid}/fd"
    (slab,) = [name for name in os.listdir(folder) if "headrace-kv" in os.readlink(f"{folder}/{name}")]
    with open(f"{folder}/{slab}", "r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        size, mask = 2**20, int.from_bytes(b"\x00\x80" * 2**19, "little")
        for begin in range(0, len(memory) // size * size, size):
            part = memory[begin : begin + size]
            if any(part):
                memory[begin : begin + size] = (int.from_bytes(part, "little") ^ mask).to_bytes(size, "little")


@pytest.mark.long
def test_the_canary_sings_by_every_way_and_hears_bytes_that_change_in_a_tier():
    flags = ("--roles", "prefill:1,decode:1", "--kv-host-gib", "0.1", "--kv-blocks", "64", "--device", "cpu")
    server = ServerProcess(*flags, "--canary", "0.02")

    def checks(path: str, outcome: str) -> float:
        return server.metrics()[f'headrace_canary_checks_total{{outcome="{outcome}",path="{path}"}}']

    paths = ("cold", "warm", "swapped", "handed_over")
    try:
        server.wait_until(lambda: all(checks(path, "equal") for path in paths))
        assert not any(checks(path, "differs") for path in paths)
        flip_signs(server)
        server.wait_until(lambda: checks("swapped", "differs"))
        assert checks("cold", "differs") == checks("cold", "failed") == 0
        server.wait_for("the canary's tokens differ from those of the start .*KV swapped")
    finally:
        assert server.stop() == 0, "".join(server.output)
