"""`--cpu-precision fast` is exact in one respect: its answers are reproducible. Greedy output is the same, token by token, alone,
in any batch, for any chunk size, warm or cold, after any preemption. (How close it is to fp32: `test_fast_model.py`.)"""

import pytest

from configs.settings import Settings
from engine.cpu.formats import choose_arithmetic
from engine.cpu.kv_pool import PackedKvPool
from engine.cpu.model import FastModel
from engine.cpu.packed_weights import assemble_packed
from engine.cpu.worker import CpuWorker
from engine.loading import load
from engine.models.registry import read_config
from kernels.cpu.build import build as build_kernels
from kernels.cpu.build import compiler
from kernels.cpu.variants import supported
from tests.engine.samplers import cpu_sampler
from tests.engine.test_token_exact import COUNT, LONG, OUTPUT, SIZE, generate, prompts
from tests.engine.token_suite import BLOCK, tight_pool
from tests.scheduler.sim import Engine

pytestmark = pytest.mark.skipif(not supported() or compiler() is None, reason="no C++ compiler, or another processor")
__all__ = ["prompts"]  # a fixture


@pytest.fixture(scope="module")
def build(smollm2_source):
    """An engine on the embedded model: `build(blocks=.., **scheduler's config)`."""
    build_kernels(supported()[:1])
    config = read_config(smollm2_source)
    arithmetic = choose_arithmetic(Settings(), config)
    weights = load(smollm2_source, config, "auto", assemble_packed)
    eos = frozenset(config.eos_token_ids)

    def make(*, blocks=512, **settings):
        pool = PackedKvPool(config, blocks, BLOCK)
        model = FastModel(config, weights, pool, arithmetic=arithmetic, context=8192, threads=2)
        worker = CpuWorker(model, cpu_sampler(config.vocab_size, config.eos_token_ids))
        return Engine(
            blocks=blocks, block_size=BLOCK, worker=worker, eos=eos, context=min(8192, blocks * BLOCK), **settings
        )

    return make


@pytest.fixture(scope="module")
def alone(build, prompts):
    return generate(build(max_running=1), prompts)


def test_staggered_arrival(build, prompts, alone):
    engine = build(max_step_tokens=128)
    for i, prompt in enumerate(prompts):
        engine.add(f"p{i}", prompt, max_tokens=OUTPUT, ignore_eos=True)
        engine.tick()
        engine.tick()
    engine.drain()
    assert [engine.outputs[f"p{i}"] for i in range(COUNT)] == alone


@pytest.mark.parametrize("chunk", [pytest.param(1, marks=pytest.mark.long), 7, 512])
def test_chunks(build, prompts, alone, chunk):
    some = prompts[:-LONG] if chunk == 1 else prompts  # without the long ones: one row at a time takes a while
    assert generate(build(max_step_tokens=chunk), some) == alone[: len(some)]


def test_warm_cache(build, prompts, alone):
    engine = build()
    assert generate(engine, prompts, "cold") == alone
    assert generate(engine, prompts, "warm") == alone
    assert sum(engine.ends[f"warm{i}"].times.cached_tokens > 0 for i in range(COUNT)) >= COUNT // 2


def test_preemption(build, prompts, alone):
    some = prompts[:-LONG]
    engine = build(blocks=tight_pool(some, SIZE), decode_watermark=0.0)
    assert generate(engine, some) == alone[: len(some)]
    assert engine.scheduler.snapshot().preemptions > 0
