"""A model split over processes against the same model in one: real processes, gloo over the loopback device."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from configs.model.source import resolve_model
from engine.cpu.decoder import Decoder
from engine.cpu.weights import load_weights
from engine.models.registry import read_config
from engine.tensor_parallel.process_group import SingleProcess, TorchProcessGroup
from tests.engine.tensor_parallel import parallel_rank

pytestmark = pytest.mark.processes

TOLERANCE = 1e-4
TWO = [
    "llama",
    "llama-tied",
    "llama-biased",
    "llama-one-kv-head",
    "mistral-sliding",
    "qwen2",
    "qwen2-sliding",
    "qwen3",
    "qwen3-biased",
]
FOUR = ["llama-biased", "llama-one-kv-head", "qwen3-biased"]  # 2 KV heads kept by two ranks each, or one by all


def run_ranks(folder, size, models):
    """Each rank's results. Bounded: a rank waits 60 s for the others, the test for none longer than 120 s."""
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[3])
    outs = [folder / f"rank{rank}.pt" for rank in range(size)]
    command = [sys.executable, "-W", "error", parallel_rank.__file__]
    processes = [
        subprocess.Popen([*command, str(rank), str(size), f"file://{folder}/meet", out, *models], env=environment)
        for rank, out in enumerate(outs)
    ]
    try:
        assert [process.wait(120) for process in processes] == [0] * size
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return [torch.load(out) for out in outs]


@pytest.fixture(scope="module")
def two(tiny_model, tmp_path_factory):
    return run_ranks(tmp_path_factory.mktemp("two"), 2, [tiny_model(name)[1] for name in TWO])


@pytest.fixture(scope="module")
def four(tiny_model, tmp_path_factory):
    return run_ranks(tmp_path_factory.mktemp("four"), 4, [tiny_model(name)[1] for name in FOUR])


def loaded(folder):
    source = resolve_model(str(folder))
    config = read_config(source)
    return config, load_weights(source, config, "auto")


def compare(ranks, folder):
    decoder = Decoder(*loaded(folder))
    expected = parallel_rank.prompt_logits(decoder, 512)
    tokens = parallel_rank.greedy(decoder)
    assert len(set(tokens[0][-parallel_rank.TOKENS :])) > 3, "a model that repeats itself would hide a fault"
    for rank in ranks:
        result = rank[folder.name]
        for logits in result["logits"]:
            torch.testing.assert_close(logits, expected, atol=TOLERANCE, rtol=0)
        assert result["tokens"] == tokens
    assert all(torch.equal(rank[folder.name]["logits"][0], ranks[0][folder.name]["logits"][0]) for rank in ranks)


@pytest.mark.parametrize("name", TWO)
def test_two_ranks_give_the_logits_and_tokens_of_one(two, tiny_model, name):
    folder = tiny_model(name)[1]
    compare(two, folder)
    assert [rank[folder.name]["kv_heads"] for rank in two] == [1, 1]


@pytest.mark.long
@pytest.mark.parametrize("name", FOUR)
def test_four_ranks_that_share_kv_heads(four, tiny_model, name):
    compare(four, tiny_model(name)[1])


@pytest.mark.parametrize("size", ["two", pytest.param("four", marks=pytest.mark.long)])
def test_what_all_ranks_have_is_put_side_by_side(size, request):
    ranks = request.getfixturevalue(size)
    own = [torch.tensor([[1.0, 2.0], [3.0, 4.0]]) + 10 * rank for rank in range(len(ranks))]
    assert all(torch.equal(rank[""]["gathered"], torch.cat(own, dim=1)) for rank in ranks)


@pytest.mark.long
def test_sums_of_four_are_in_the_order_of_the_ranks(four):
    """1e8 + 1 - 1e8 + 0.5 in fp32 is 0.5 in this order, and 1.5, 1 or 0 in others."""
    expected = torch.full((5,), ((torch.tensor(1e8) + 1.0) - 1e8 + 0.5).item())
    assert expected[0] == 0.5
    assert all(torch.equal(rank[""]["sum"], expected) for rank in four)


@pytest.mark.parametrize(("size", "least"), [("two", 6), pytest.param("four", 4, marks=pytest.mark.long)])
def test_all_ranks_know_the_least_number(size, least, request):
    assert [rank[""]["least"].item() for rank in request.getfixturevalue(size)] == [least] * (8 - least)


def test_one_process_has_nothing_to_exchange():
    alone, x = SingleProcess(), torch.ones(2, 3)
    assert alone.sum(x) is x and alone.gather(x) is x and alone.least(7) == 7
    assert (alone.rank, alone.size) == (0, 1)


def test_a_rank_whose_company_does_not_come_gives_up(tmp_path):
    with pytest.raises(ConnectionError, match="rank 1 of 2 waited 1 s"):
        TorchProcessGroup(1, 2, f"file://{tmp_path}/nobody", torch.device("cpu"), timeout=1)
