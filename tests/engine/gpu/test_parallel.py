"""The GPU's model split over two real processes (gloo, interpreted kernels) against the same model in one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests import tiny_models
from tests.engine.gpu import rank_process
from tests.engine.loading.test_loading import Kind, write_gguf
from tests.tiny_models import Tiny

pytestmark = pytest.mark.processes

# Two KV heads split, biases, norms, a tied head; and one KV head kept by both ranks, in 8-bit groups (a rank's head is one group).
SMALL = {"num_hidden_layers": 1, "hidden_size": 64, "intermediate_size": 128}
WITH_NORMS = {"head_dim": 16, "attention_bias": True, "tie_word_embeddings": True}
MODELS = {
    "split": (Tiny("Qwen3", SMALL | WITH_NORMS), "dense"),
    "kept": (Tiny("Llama", SMALL | {"num_attention_heads": 2, "num_key_value_heads": 1}), "groups"),
}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """Paths, and each rank's results. Bounded: a rank waits 60 s for the other, the test for none longer than 120 s."""
    folder = tmp_path_factory.mktemp("ranks")
    paths = {}
    for seed, (name, (tiny, form)) in enumerate(MODELS.items()):
        model = tiny_models.made(tiny, seed)
        grouped = form == "groups"
        paths[name] = (
            write_gguf(folder / f"{name}.gguf", model, Kind.Q8_0) if grouped else tiny_models.save(model, folder / name)
        )
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[3])
    outs = [folder / f"rank{rank}.pt" for rank in range(2)]
    models = [f"{form}={paths[name]}" for name, (_, form) in MODELS.items()]
    quiet = "ignore:Conversion of an array:DeprecationWarning"  # of Triton 3.6's interpreter; see pyproject.toml
    command = [sys.executable, "-W", "error", "-W", quiet, rank_process.__file__]
    processes = [
        subprocess.Popen([*command, str(rank), "2", f"file://{folder}/meet", out, *models], env=environment)
        for rank, out in enumerate(outs)
    ]
    try:
        assert [process.wait(120) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return paths, [torch.load(out) for out in outs]


@pytest.mark.parametrize("name", MODELS)
def test_two_ranks_give_the_logits_and_tokens_of_one(ranks, name):
    paths, (first, second) = ranks
    expected = rank_process.alone(str(paths[name]), MODELS[name][1])
    assert len(set(expected["tokens"][0][-rank_process.TOKENS :])) > 2, "a model that repeats itself would hide a fault"
    for rank in (first, second):
        result = rank[paths[name].name]
        torch.testing.assert_close(result["logits"], expected["logits"], atol=1e-4, rtol=0)
        assert result["tokens"] == expected["tokens"]
        assert result["kv_heads"] == 1
    assert torch.equal(first[paths[name].name]["logits"], second[paths[name].name]["logits"])
