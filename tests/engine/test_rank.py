"""One of several ranks as a process: how it ends, and that whoever waits for it learns why."""

import os
import subprocess

import pytest
import torch

from configs.model.source import resolve_model
from configs.settings import Settings
from engine.ipc.failures import EXIT_MODEL
from engine.ipc.private_folder import private_folder
from engine.tensor_parallel.group import loopback, rank_arguments, rendezvous
from engine.tensor_parallel.shards import Joined
from tests import tiny_models

SETTINGS = Settings(tensor_parallel=2, device="cuda", kv_blocks=16, start_seconds=60)


@pytest.fixture
def rank(tmp_path):
    """Start rank 1 of a model with three heads; (process, the ranks' folder)."""
    shape = {"num_hidden_layers": 1, "hidden_size": 48, "num_attention_heads": 3, "num_key_value_heads": 3}
    tiny_models.save(tiny_models.made(tiny_models.Tiny("Llama", shape), 0), tmp_path / "model")
    folder = private_folder("headrace-ranks-")
    command = [*rank_arguments(SETTINGS, resolve_model(str(tmp_path / "model")), folder), "--rank", "1"]
    environment = os.environ | loopback() | {"TRITON_INTERPRET": "1"}
    with (tmp_path / "said").open("w") as said:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=said, env=environment)
    yield process, folder
    process.kill()
    process.wait()
    process.stdin.close()


def test_a_rank_that_cannot_serve_the_model_says_why(rank, tmp_path, monkeypatch):
    process, folder = rank
    for name, value in loopback().items():
        monkeypatch.setenv(name, value)
    ranks = Joined(0, 2, rendezvous(folder), torch.device("cpu"), timeout=60)
    try:
        assert process.wait(60) == EXIT_MODEL
    finally:
        ranks.close()
    said = (tmp_path / "said").read_text()
    assert "--tensor-parallel 2: 3 attention heads cannot be split over 2 ranks evenly" in said
    assert "Fatal" not in said


def test_a_rank_ends_with_the_first_wherever_it_is(rank):
    """Here it waits for the first to join, in a call that looks at nothing else."""
    process, folder = rank
    process.stdin.close()
    assert process.wait(60) == 0
    assert not folder.exists()
