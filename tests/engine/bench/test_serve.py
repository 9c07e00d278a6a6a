"""The benchmarks of serving and of starting, tiny and on CPU tensors."""

import json
import os
import sys

import pytest
import torch

from configs.model.source import resolve_model
from engine.bench import serve as serve_bench
from engine.bench import start as start_bench
from engine.bench import steps as steps_bench
from engine.bench.serve import Load, ScriptedRequests, ServeBench
from engine.models.registry import read_config
from scheduler.types.messages import AddRequest, EngineStats, FinishReason, Output, Shutdown, StartPhase, StepOutputs
from scheduler.types.sampling_params import SamplingParams
from tests.engine.bench.test_steps import TINY


def test_every_request_is_served_and_counted():
    bench = ServeBench(TINY, torch.device("cpu"), torch.float32, Load(requests=2, prompt=3, output=4, step_tokens=8))
    served = bench.serve("tiny", 2)
    assert served.output_tokens == 8
    assert served.steps >= 4
    assert 0 < served.graph_steps < served.steps
    assert served.tokens_per_second == pytest.approx(8 / served.seconds)


def test_a_checkpoint_is_written_read_and_started_on(tmp_path, monkeypatch):
    monkeypatch.setattr(start_bench, "_SHARD_TENSORS", 5)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, sys.path)))
    size = start_bench.write_checkpoint(TINY, tmp_path, torch.device("cpu"))
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    config = read_config(resolve_model(str(tmp_path)))
    assert (config.hidden_size, config.kv_heads, config.max_position) == (64, 2, 128)
    assert json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    start_bench.drop_cache(tmp_path)
    assert start_bench.read_seconds(tmp_path) > 0
    assert size > 0
    line = start_bench.measure(tmp_path, "cpu", device="cpu")
    assert line["rc"] == 0
    assert 0 < line["first_token"] <= line["ready"]
    assert {"load weights", "first token"} <= set(line["phases"])
    assert not start_bench.failed(line)


def test_a_start_that_fails_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, sys.path)))
    line = start_bench.measure(tmp_path / "nothing", "cpu", device="cpu")
    assert line["rc"] != 0 and line["first_token"] is None
    assert start_bench.failed(line)
    assert start_bench.failed(line | {"rc": 0})


def request(name):
    return AddRequest(request_id=name, prompt_ids=[1], sampling=SamplingParams(max_tokens=9))


def events(*outputs):
    return StepOutputs(outputs=list(outputs), stats=EngineStats())


def test_a_load_is_given_at_once_and_the_engine_stopped_after_its_last_end():
    wire = ScriptedRequests([request("a"), request("b")])
    wire.wait()  # the requests that wait are as good as a wake
    assert [command.request_id for command in wire.receive()] == ["a", "b"]
    assert list(wire.receive()) == []
    wire.send(StartPhase(name="other events", seconds=1.0))
    wire.send(events(Output(request_id="a", token_ids=[1, 2]), Output(request_id="b", token_ids=[3])))
    wire.send(events(Output(request_id="b", finish_reason=FinishReason.ERROR, error="failed")))
    assert list(wire.receive()) == []
    wire.send(events(Output(request_id="a", token_ids=[4], finish_reason=FinishReason.LENGTH)))
    assert wire.tokens == 4
    wire.wait()  # nothing is open: nothing to wait for
    assert [type(command) for command in wire.receive()] == [Shutdown]


def test_no_wake_is_lost_before_the_wait():
    wire = ScriptedRequests([request("a")])
    wire.wait()
    for _ in range(3):
        wire.wake()
    for _ in range(3):
        wire.wait()  # would wait forever without them
    wire.wait(0.01)


@pytest.mark.long
def test_a_second_load_starts_from_an_empty_cache():
    bench = ServeBench(TINY, torch.device("cpu"), torch.float32, Load(requests=1, prompt=40, output=2, step_tokens=64))
    served = [bench.serve(name, 1) for name in ("same", "same")]
    assert [each.output_tokens for each in served] == [2, 2]
    assert served[0].steps == served[1].steps


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize("bench", [serve_bench, start_bench, steps_bench], ids=lambda module: module.__name__)
def test_without_a_gpu_a_benchmark_says_so_and_writes_nothing(bench, tmp_path, monkeypatch, capsys):
    out = tmp_path / "figures.json"
    monkeypatch.setattr("sys.argv", ["bench", "--json", str(out)])
    assert bench.main() == 1
    assert capsys.readouterr().out == "no GPU: torch finds none\n"
    assert not out.exists()


@pytest.mark.parametrize(
    ("changes", "bad"),
    [
        ({}, False),
        ({"rc": 1}, True),
        ({"rc": -9}, True),
        ({"first_token": None}, True),
        ({"phases": {"first token": 1.0}}, True),
    ],
)
def test_a_start_counts_only_if_it_came_to_its_end(changes, bad):
    line = {"rc": 0, "first_token": 1.0, "ready": 2.0, "phases": {"first token": 1.0, "ready": 0.0}}
    assert start_bench.failed(line | changes) == bad
