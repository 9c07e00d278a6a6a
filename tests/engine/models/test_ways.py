"""Every family gives the same tokens whatever the engine does on the way, transformers' own with the exact arithmetic.

Five ways: all together, alone, one after the other in small chunks, with a warm prefix cache, with too few blocks.
"""

import random
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from configs.model.source import resolve_model
from configs.settings import Settings
from engine.cpu.decoder import Decoder
from engine.cpu.formats import choose_arithmetic
from engine.cpu.kv_pool import KvPool, PackedKvPool
from engine.cpu.model import ExactModel, FastModel
from engine.cpu.packed_weights import assemble_packed
from engine.cpu.weights import load_weights
from engine.cpu.worker import CpuWorker
from engine.loading import load
from engine.models.registry import read_config
from kernels.cpu.build import build, compiler
from kernels.cpu.variants import supported
from tests.engine.cpu.test_decoder import prompt, run_chunks, scattered_table
from tests.engine.models.test_seam_family import ThreadGroup
from tests.engine.samplers import cpu_sampler
from tests.engine.token_suite import is_greedy
from tests.scheduler.sim import Engine

NAMES = ["gemma", "gemma2", "gemma3", "smollm3", "granite", "phi3", "phi3-sliding", "olmo2", "olmo3"]
BLOCK, OUTPUT = 16, 20
SHARED = random.Random(1).choices(range(3, 320), k=2 * BLOCK)
PROMPTS = [
    *(random.Random(length).choices(range(3, 320), k=length) for length in (1, 5, 17, 33)),
    *(SHARED + random.Random(length).choices(range(3, 320), k=length) for length in (3, 20, 41)),
]


@pytest.fixture(params=["exact", "fast"])
def model(request, tiny_model):
    """Makes a recipe's model over a pool of some blocks."""
    if request.param == "fast":
        if not supported() or compiler() is None:
            pytest.skip("no C++ compiler, or another processor")
        build(supported()[:1])

    def make(name, blocks):
        source = resolve_model(str(tiny_model(name)[1]))
        config = read_config(source)
        if request.param == "exact":
            decoder = Decoder(config, load_weights(source, config, "auto"))
            return config, ExactModel(decoder, KvPool(config, blocks, BLOCK))
        arithmetic, pool = choose_arithmetic(Settings(block_size=BLOCK), config), PackedKvPool(config, blocks, BLOCK)
        weights = load(source, config, "auto", assemble_packed)
        return config, FastModel(config, weights, pool, arithmetic=arithmetic, context=512, threads=2)

    make.precision = request.param
    return make


def engine(model, name, blocks=64, **how):
    config, computed = model(name, blocks)
    worker = CpuWorker(computed, cpu_sampler(config.vocab_size, ()))
    return Engine(blocks=blocks, block_size=BLOCK, worker=worker, eos=frozenset(), context=256, **how)


def generate(on, prompts=PROMPTS, name="p", ticks=None):
    for index, ids in enumerate(prompts):
        on.add(f"{name}{index}", ids, max_tokens=OUTPUT, ignore_eos=True)
        for _ in range(ticks or 0):
            on.tick()
    on.drain()
    return [on.outputs[f"{name}{index}"] for index in range(len(prompts))]


@pytest.mark.parametrize("name", NAMES)
def test_tokens_are_the_same_in_every_way(model, tiny_model, name):
    together = engine(model, name)
    expected = generate(together)
    if model.precision == "exact":
        theirs = tiny_model(name)[0]
        assert all(is_greedy(theirs, ids, out) for ids, out in zip(PROMPTS, expected, strict=True))
    assert len({tuple(out) for out in expected}) > 4
    assert generate(together, name="warm") == expected
    cached = [together.ends[f"warm{index}"].times.cached_tokens for index in range(len(PROMPTS))]
    assert sum(cached) >= sum((len(ids) - 1) // BLOCK * BLOCK for ids in PROMPTS)
    assert generate(engine(model, name, max_running=1)) == expected
    assert generate(engine(model, name, max_step_tokens=7), ticks=2) == expected
    crowded = engine(model, name, blocks=8, decode_watermark=0.0)
    assert generate(crowded) == expected
    assert crowded.scheduler.snapshot().preemptions > 0


@pytest.mark.parametrize(
    ("name", "size"), [*((name, 2) for name in NAMES), ("olmo2", 4), pytest.param("gemma3", 4, marks=pytest.mark.long)]
)
def test_ranks_compute_it_together(tiny_model, name, size):
    """Over four ranks two KV heads are kept twice each, and count so in a norm over all heads."""
    theirs, folder = tiny_model(name)
    source = resolve_model(str(folder))
    config, parts, barrier = read_config(source), [None] * size, threading.Barrier(size)
    ids = prompt(config.vocab_size, 40)

    def rank(number):
        weights = load_weights(source, config, "auto", rank=number, size=size)
        decoder = Decoder(config, weights, ThreadGroup(number, parts, barrier))
        return run_chunks(decoder, KvPool(decoder.config, 40, 8), ids, scattered_table(10), 17)

    with ThreadPoolExecutor(size) as threads:
        found = list(threads.map(rank, range(size)))
    with torch.inference_mode():
        expected = theirs(torch.tensor([ids])).logits[0]
    for own in found:
        torch.testing.assert_close(own, expected, atol=1e-4, rtol=0)
