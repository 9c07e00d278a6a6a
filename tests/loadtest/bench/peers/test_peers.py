"""Servers take turns, are asked the same, and are gone after it; what is wrong is said before anything is measured."""

import asyncio
import json
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil
import pytest

from loadtest.bench.peers import __main__ as peers
from loadtest.bench.peers.servers import OURS, Server, _peak, known, named, ours, turn
from loadtest.bench.peers.table import table
from loadtest.bench.peers.workloads import WORKLOADS, Answer, Workload, ask, figure, measure
from loadtest.grid.server import ServerFailed

pytestmark = pytest.mark.processes
STUB = str(Path(__file__).parents[2] / "stub_server.py")
SMALL = Workload(requests=3, at_once=2, words=5, shared=4, output=6, figure="output")


@pytest.fixture
def port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def stub(name: str, *more: str) -> Server:
    return Server(name, (sys.executable, STUB, "--port", "{port}", *more))


def command(*more: str) -> str:
    return " ".join([sys.executable, STUB, "--port", "{port}", *more])


def test_prompts_are_the_seeds_and_share_what_they_should():
    prompts = SMALL.prompts(3)
    assert prompts == SMALL.prompts(3) != SMALL.prompts(4)
    words = [prompt.split() for prompt in prompts]
    assert [len(each) for each in words] == [9, 9, 9]
    assert words[0][:4] == words[1][:4] == words[2][:4] and len({tuple(each[4:]) for each in words}) == 3


def test_every_workload_says_what_it_is():
    assert str(WORKLOADS["W4"]) == (
        "32 prompts, 8 at once, 1,024 shared words + 64 words in, 32 tokens out: tokens/s of all streams"
    )
    assert str(WORKLOADS["Q5"]).startswith("1 x one stream, 900 words in, 2 tokens out: seconds to the first")


def test_a_turn_is_alone_and_tells_when_it_answers_and_what_memory_it_took(port, tmp_path):
    with turn(stub("a"), "model", port, tmp_path / "log") as at:
        assert at.ready > 0 and 5e6 < at.peak_bytes() < 1e9
        with (
            pytest.raises(ServerFailed, match="something answers"),
            turn(stub("b"), "model", port, tmp_path / "other"),
        ):
            pass
        pid = at.pid
    assert not psutil.pid_exists(pid) and _peak(pid) == 0


def test_figures_are_of_all_answers(port, tmp_path):
    answers = [Answer(ttft=0.5, tpot=0.1, tokens=11), Answer(ttft=1.5, tpot=0.3, tokens=11)]
    assert [figure(name, answers, seconds=4.0) for name in ("ttft", "decode", "output")] == [1.0, 5.0, 5.5]
    with turn(stub("a"), "model", port, tmp_path / "log") as at:
        assert asyncio.run(measure(at.target, SMALL, SMALL.prompts(0))) > 0
        assert asyncio.run(tokens_of(at.target)) == 7


async def tokens_of(target: str) -> int:
    async with httpx.AsyncClient(base_url=target) as client:
        return (await ask(client, "stub", "a few words", 7)).tokens


@pytest.mark.parametrize(
    "fault",
    [("refuse", "not now"), ("error", "message"), ("miscount", "its usage says 7"), ("drop", "closed connection")],
)
def test_a_request_that_fails_ends_the_measurement(port, tmp_path, fault):
    with (
        turn(stub("a", "--fault", fault[0]), "model", port, tmp_path / "log") as at,
        pytest.raises((ValueError, httpx.HTTPError), match=fault[1]),
    ):
        asyncio.run(measure(at.target, SMALL, SMALL.prompts(0)))


def test_servers_take_turns_in_the_opposite_order_each_round(port, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(peers, "ours", lambda flags: stub(OURS, *flags.split()))
    monkeypatch.setitem(WORKLOADS, "Q1", SMALL)
    (tmp_path / "m.gguf").write_bytes(b"")
    words = [str(tmp_path / "m.gguf"), "--against", f"one={command()}", f"two={command('--gap', '0.001')}"]
    idle, pause = [], time.sleep
    monkeypatch.setattr(peers.time, "sleep", lambda seconds: idle.append(seconds) or pause(seconds % 1))
    more = ["--only", "Q1", "--rounds", "2", "--settle", "77", "--port", str(port), "--flags", "--gap 0.002"]
    assert peers.main([*words, *more, "--output", str(tmp_path / "all.json")]) == 0
    assert idle.count(77) == 6  # each in each turn
    lines = capsys.readouterr().out.splitlines()
    turns = [line.split()[:3] for line in lines if line.startswith("round")]
    assert [(number, name) for _, number, name in turns] == [
        *(("1", name) for name in (OURS, "one", "two")),
        *(("2", name) for name in ("two", "one", OURS)),
    ]
    assert lines[-5].startswith(f"|  | {OURS} | one | two | {OURS} over the best other |")
    told = json.loads((tmp_path / "all.json").read_text())
    assert {name: {key: len(values) for key, values in of.items()} for name, of in told["figures"].items()} == {
        name: {"ready": 2, "Q1": 2, "memory": 2} for name in (OURS, "one", "two")
    }


def test_a_server_that_does_not_start_is_named(port, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(peers, "ours", lambda flags: stub(OURS))
    (tmp_path / "m.gguf").write_bytes(b"")
    few = ["--rounds", "1", "--only", "Q5", "--settle", "0"]
    words = [str(tmp_path / "m.gguf"), *few, "--port", str(port), "--against"]
    monkeypatch.setitem(WORKLOADS, "Q5", SMALL)
    assert peers.main([*words, f"broken={sys.executable} -c exit(3) {{port}}"]) == 1
    assert "broken: it ended with status 3" in capsys.readouterr().err
    assert peers.main([*words, "absent=/no/such/program {port}"]) == 1
    assert "absent: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--against", "vllm"], "'vllm' is none of openvino, llama.cpp, and no NAME=COMMAND"),
        (["--against", "llama.cpp"], "is not installed in nowhere: `make peers` does it"),
        (["--against", "x=serve"], "'x=serve': NAME=COMMAND with {port}"),
        (["--against", "headrace=a {port}"], "headrace is ours"),
        (["--against", "x=a {port}", "x=b {port}"], "two servers of one name"),
        (["--against", "x=a {port}", "--only", "Q1,W9"], "W9 is none of W1, W2"),
        (["--against", "x=a {port}", "--rounds", "0"], "--rounds: '0' is not"),
        (["--against", "x=a {port}", "--settle", "-1"], "--settle: '-1' is not a number of at least 0"),
        (["absent.gguf", "--against", "x=a {port}"], "there is no absent.gguf"),
    ],
)
def test_what_cannot_be_measured_is_refused(words, said, capsys):
    with pytest.raises(SystemExit):
        peers.arguments_of([*words, "--peers", "nowhere"])
    assert said in capsys.readouterr().err


def test_without_a_model_it_is_the_embedded_one(smollm2_source):
    assert peers.arguments_of(["--against", "x=a {port}"]).model == smollm2_source.path


def test_commands_get_model_and_port(tmp_path):
    assert named("x=run --at {port} '{model} file'", tmp_path).words("m", 7) == ["run", "--at", "7", "m file"]
    assert ours("--speculation off").words("m", 7)[1:] == ["serve", "m", "--port", "7", "--speculation", "off"]
    for server in known(tmp_path).values():
        assert server.words("m", 7)[-2:] == ["m", "7"] and Path(server.command[1]).is_file()


def test_the_table_has_medians_and_the_best_of_the_others():
    figures = {
        OURS: {"ready": [2.0, 1.0, 9.0], "Q1": [30.0, 10.0, 20.0], "Q5": [1.0, 1.0, 1.0]},
        "a": {"ready": [4.0, 4.0, 4.0], "Q1": [10.0, 10.0, 10.0], "Q5": [3.0, 3.0, 3.0]},
        "b": {"ready": [1.0, 1.0, 1.0], "Q1": [5.0, 5.0, 5.0], "Q5": [2.0, 2.0, 2.0]},
    }
    rows = [line.split(" | ") for line in table(figures).splitlines()[2:]]
    assert [row[1:] for row in rows] == [
        ["2 (1 to 9)", "4 (4 to 4)", "1 (1 to 1)", "0.50 x |"],
        ["20 (10 to 30)", "10 (10 to 10)", "5 (5 to 5)", "2.00 x |"],
        ["1 (1 to 1)", "3 (3 to 3)", "2 (2 to 2)", "2.00 x |"],
    ]


@pytest.mark.skipif(not shutil.which("node"), reason="needs node")
def test_what_node_runs_is_a_program():
    script = known(Path("nowhere"))["llama.cpp"].command[1]
    assert subprocess.run(["node", "--check", script], capture_output=True, check=False, timeout=60).returncode == 0
