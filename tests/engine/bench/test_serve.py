"""The benchmarks of serving and of starting, tiny and on CPU tensors."""

import json
import os
import sys

import pytest
import torch

from configs.model.source import resolve_model
from engine.bench import start as start_bench
from engine.bench.serve import Load, ServeBench
from engine.models.registry import read_config
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
