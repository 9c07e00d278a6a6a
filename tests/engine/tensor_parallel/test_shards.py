"""A model split over processes against the same model in one: real processes, gloo over the loopback device."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from configs.model.read import read_config
from configs.model.source import resolve_model
from engine.cpu.decoder import Decoder
from engine.loading import load_weights
from engine.tensor_parallel.shards import Alone, Joined, split_config, split_weights
from tests.engine.tensor_parallel import parallel_rank
from tests.tiny_models import TINY

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


@pytest.mark.parametrize("name", FOUR)
def test_four_ranks_that_share_kv_heads(four, tiny_model, name):
    compare(four, tiny_model(name)[1])


@pytest.mark.parametrize("size", ["two", "four"])
def test_parts_of_a_vocabulary_that_does_not_divide(size, request):
    table = torch.arange(parallel_rank.VOCABULARY * 3.0).view(-1, 3)
    for rank in request.getfixturevalue(size):
        assert torch.equal(rank[""]["embedded"], table)
        assert torch.equal(rank[""]["scores"], table.t())


def test_sums_of_four_are_in_the_order_of_the_ranks(four):
    """1e8 + 1 - 1e8 + 0.5 in fp32 is 0.5 in this order, and 1.5, 1 or 0 in others."""
    expected = torch.full((5,), ((torch.tensor(1e8) + 1.0) - 1e8 + 0.5).item())
    assert expected[0] == 0.5
    assert all(torch.equal(rank[""]["sum"], expected) for rank in four)


@pytest.mark.parametrize(("size", "least"), [("two", 6), ("four", 4)])
def test_all_ranks_know_the_least_number(size, least, request):
    assert [rank[""]["least"].item() for rank in request.getfixturevalue(size)] == [least] * (8 - least)


@pytest.mark.parametrize("name", ["llama-biased", "llama-tied", "qwen3"])
def test_alone_is_the_decoder_itself(tiny_model, name):
    folder = tiny_model(name)[1]
    decoder = parallel_rank.load(folder, Alone())
    assert torch.equal(
        parallel_rank.prompt_logits(decoder, 5), parallel_rank.prompt_logits(Decoder(*loaded(folder)), 5)
    )


@pytest.mark.parametrize("name", TINY)
def test_parts_are_the_whole_and_nothing_twice(tiny_model, name):
    config, weights = loaded(tiny_model(name)[1])
    parts = [split_weights(weights, config, rank, 2) for rank in range(2)]
    assert torch.equal(torch.cat([part.embedding for part in parts]), weights.embedding)
    assert all((part.head is part.embedding) == (weights.head is weights.embedding) for part in parts)
    for index, layer in enumerate(weights.layers):
        shares = [part.layers[index] for part in parts]
        assert torch.equal(torch.cat([share.o for share in shares], 1), layer.o)
        assert torch.equal(torch.cat([share.down for share in shares], 1), layer.down)
        halves = [share.gate_up.chunk(2) for share in shares]
        assert torch.equal(torch.cat([half[which] for which in (0, 1) for half in halves]), layer.gate_up)
        assert [share.o_bias is None for share in shares] == [layer.o_bias is None, True]
    kept = sum(part.layers[0].qkv.numel() for part in parts)
    shared = config.kv_heads == 1
    assert kept == weights.layers[0].qkv.numel() + shared * 2 * config.head_dim * config.hidden_size


def test_a_split_holds_no_memory_of_the_whole(tiny_model):
    config, weights = loaded(tiny_model("llama")[1])
    part = split_weights(weights, config, 1, 2)
    for tensor in (part.embedding, part.head, part.layers[0].qkv, part.layers[0].o, part.layers[0].down):
        assert tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes


@pytest.mark.parametrize(
    ("changes", "size", "named"),
    [
        ({}, 3, "4 attention heads cannot be split over 3 ranks evenly; this model can be split over 1, 2, 4$"),
        ({}, 0, "over 0 ranks"),
        ({"heads": 6, "kv_heads": 3}, 2, "3 KV heads can be neither split over 2 ranks evenly .* over 1, 3, 6$"),
        ({"intermediate_size": 90}, 4, "intermediate_size of 90 .* over 4 .* over 1, 2$"),
    ],
)
def test_a_model_that_cannot_be_split_says_how_it_can(tiny_model, changes, size, named):
    config = replace(read_config(resolve_model(str(tiny_model("llama")[1]))), **changes)
    with pytest.raises(ValueError, match=named):
        split_config(config, size)


def test_three_kv_heads_are_not_split_over_two(smollm2_source):
    with pytest.raises(ValueError, match=r"9 attention heads .* over 2 .* can be split over 1, 3$"):
        split_config(read_config(smollm2_source), 2)


def test_a_rank_whose_company_does_not_come_gives_up(tmp_path):
    with pytest.raises(ConnectionError, match="rank 1 of 2 waited 1 s"):
        Joined(1, 2, f"file://{tmp_path}/nobody", torch.device("cpu"), timeout=1)
