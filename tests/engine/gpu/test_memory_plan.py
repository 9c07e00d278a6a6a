"""Sharing out a GPU's memory, with what is free injected."""

from dataclasses import replace

import pytest
import torch

from configs.model.source import ModelError
from configs.settings import Settings
from engine.bench.steps import LLAMA_3_8B
from engine.cpu.memory_plan import USUAL_STEP as USUAL_CPU_STEP
from engine.device import StepLimits, step_limits
from engine.gpu.backend import USUAL_STEP
from engine.gpu.formats import GpuArithmetic
from engine.gpu.memory_plan import (
    CUBLAS_BYTES,
    NCCL_BYTES,
    GpuActivations,
    graph_bytes,
    plan_gpu_memory,
    states_bytes,
    step_bytes,
)
from engine.models.registry import read_config

GIB = 2**30
BF16 = GpuArithmetic("dense", torch.bfloat16, reason="for the test")
LIMITS = StepLimits(2048, 256)


@pytest.fixture
def plan(smollm2_source):
    config = read_config(smollm2_source)

    def make(gib, arithmetic=BF16, model=config, ranks=1, **settings):
        free = int(gib * GIB)
        return plan_gpu_memory(Settings(**settings), smollm2_source, model, arithmetic, LIMITS, free=free, ranks=ranks)

    return make


def pool_bytes(made):
    return made.kv_per_token * made.block_size * made.blocks


def test_an_8b_model_on_a_free_h200(plan):
    made = plan(139, model=LLAMA_3_8B)
    weights = 2 * (2 * 128256 * 4096 + 32 * (4096 * 6144 + 4096 * 4096 + 3 * 4096 * 14336))
    assert made.weights == weights
    assert made.kv_per_token == 2 * 32 * 8 * 128 * 2
    left = 139 * GIB - weights - made.activations
    assert 0.9 * left - 2**22 < pool_bytes(made) <= 0.9 * left
    assert made.activations < 4 * GIB
    assert (made.context, made.available) == (8192, 139 * GIB)


def test_each_of_two_gpus_has_half_of_the_weights_and_of_every_block(plan):
    whole, half = plan(30, model=LLAMA_3_8B), plan(30, model=LLAMA_3_8B, ranks=2)
    assert half.weights == whole.weights // 2
    assert half.kv_per_token == whole.kv_per_token // 2
    assert half.activations < whole.activations + activations(ranks=2).exchange
    assert half.blocks > 3 * whole.blocks  # 13 GiB are left of 30, and 22


def test_all_that_is_counted_stays_within_what_is_free(plan):
    for gib in (2, 4, 24):
        made = plan(gib, gpu_memory_fraction=1.0)
        together = made.weights + made.activations + pool_bytes(made)
        assert gib * GIB - made.kv_per_token * made.block_size < together <= gib * GIB


def test_eight_bit_keys_are_nearly_twice_as_many_and_graphs_cost_memory(plan):
    plain, halved = plan(24), plan(24, replace(BF16, fp8_kv=True))
    assert 1.9 < halved.blocks / plain.blocks < 2.0
    eager = plan(24, cuda_graphs=False)
    assert eager.activations < plain.activations
    assert eager.blocks > plain.blocks


def test_longer_contexts_and_wider_steps_are_counted():
    small = step_bytes(LLAMA_3_8B, StepLimits(128, 16), 2)
    assert step_bytes(LLAMA_3_8B, StepLimits(256, 16), 2) > small
    assert step_bytes(LLAMA_3_8B, StepLimits(128, 300), 2) > small  # up to 100 or so, scoring a prompt takes more
    few, many = (graph_bytes(LLAMA_3_8B, StepLimits(128, rows), 2, 8192, 32) for rows in (8, 64))
    assert many > few
    assert graph_bytes(LLAMA_3_8B, StepLimits(128, 8), 2, 131072, 32) > few
    assert graph_bytes(LLAMA_3_8B, StepLimits(512, 8), 2, 8192, 32) > few  # steps with chunks have graphs, too
    wide, wider = (graph_bytes(LLAMA_3_8B, StepLimits(tokens, 8), 2, 8192, 32) for tokens in (512, 4096))
    assert wide == wider  # but not the widest


def activations(context=8192, ranks=1, limits=LIMITS, **settings):
    return GpuActivations.of(Settings(**settings), LLAMA_3_8B, limits, BF16, context, ranks=ranks)


def test_partial_states_are_there_once_whatever_is_recorded():
    """At 131,072 keys a sequence has 64 parts: for 256 of 32 heads 271 MB, with graphs and without. Chunks of few rows
    have up to 16: for 2048 rows twice that."""
    long = activations(131072)
    assert long.states == states_bytes(LLAMA_3_8B, LIMITS, 131072) == 4 * 16 * 2048 * 32 * 129
    assert long.states == activations(131072, cuda_graphs=False).states
    assert states_bytes(LLAMA_3_8B, StepLimits(256, 256), 131072) == 4 * 64 * 256 * 32 * 129
    assert states_bytes(LLAMA_3_8B, LIMITS, 256) == 0  # one part is written at once


def test_every_part_is_counted_and_only_what_is_on():
    alone = activations()
    assert alone.libraries > CUBLAS_BYTES
    assert (alone.exchange, alone.prefixes) == (0, 0)
    assert activations(ranks=2).exchange > NCCL_BYTES
    assert activations(gpu_shared_prefixes=True).prefixes > 0
    assert activations(cuda_graphs=False).graphs == 0
    parts = (alone.step, alone.states, alone.graphs, alone.libraries)
    assert all(parts) and alone.total == sum(parts)
    assert all(name in str(alone) for name in ("a step", "partial states", "graphs", "libraries"))
    assert "ranks" not in str(alone)


def test_what_does_not_fit_is_refused_with_both_numbers(plan):
    with pytest.raises(ModelError, match=r"needs 1\.\d\d GiB .* 1\.00 GiB are free on the GPU"):
        plan(1)
    with pytest.raises(ModelError, match=r"--kv-blocks 1000000 takes .* at most \d+ blocks fit"):
        plan(4, kv_blocks=1000000)
    needs = (plan(4).weights + plan(4).activations) / GIB
    with pytest.raises(ModelError, match="left for the KV cache on the GPU"):
        plan(needs + 0.0001)


def test_the_floor_of_the_pool_is_what_one_step_needs(plan):
    assert plan(4, kv_blocks=8).blocks == 8
    assert plan(4, kv_blocks=8).context == 8 * 32
    assert plan(4).activations > CUBLAS_BYTES


def test_limits_follow_the_device_unless_they_are_set():
    assert step_limits(Settings(), USUAL_CPU_STEP) == (128, 64)
    assert step_limits(Settings(), USUAL_STEP) == LIMITS
    assert step_limits(Settings(max_step_tokens=7, max_running=3), USUAL_STEP) == (7, 3)
