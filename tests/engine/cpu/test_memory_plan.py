"""Sharing out memory, with the machine's size injected."""

from dataclasses import replace
from pathlib import Path

import pytest

from configs.model.config import LinearScaling
from configs.model.source import ModelError
from configs.settings import Settings
from engine.cgroups import Bound
from engine.cpu import memory_plan
from engine.cpu.formats import Arithmetic
from engine.cpu.memory_plan import NO_DRAFT, activation_bytes, draft_memory, plan_memory
from engine.drafting.draft_files import DraftFiles
from engine.kv_store.tiers import DiskTier, HostTier
from engine.memory import SCORED_ROWS
from engine.models.layout import weights_bytes
from engine.models.registry import read_config

GIB = 2**30
EXACT = Arithmetic("exact", "for the test")


@pytest.fixture
def config(smollm2_source):
    return read_config(smollm2_source)


@pytest.fixture
def plan(monkeypatch, smollm2_source, config):
    """The plan for settings on a machine with `gib` GiB available."""

    def make(gib, *, model=config, tiers=(), draft=NO_DRAFT, **settings):
        monkeypatch.setattr(memory_plan, "free_memory", lambda: Bound(gib * GIB, "the test"))
        return plan_memory(Settings(**settings), smollm2_source, model, EXACT, tiers, draft=draft)

    return make


def pool_bytes(plan):
    return plan.kv_per_token * plan.block_size * plan.blocks


def test_the_pool_is_a_share_of_what_the_weights_leave(plan, config):
    made = plan(8)
    left = 8 * GIB - made.weights - made.activations - memory_plan.RUNTIME_BYTES
    block = made.kv_per_token * made.block_size
    assert made.weights == weights_bytes(config)
    assert 0.4 * left - block < pool_bytes(made) <= 0.4 * left
    assert (made.context, made.max_model_len) == (8192, 8192)
    assert made.concurrent == pytest.approx(made.blocks / 256)
    half = plan(8, kv_memory_fraction=0.2)
    assert half.blocks == pytest.approx(made.blocks / 2, abs=1)


def test_a_draft_model_has_its_weights_and_as_many_blocks(plan, config, smollm2_source):
    settings = Settings(cpu_precision="exact", speculation="draft", draft_model=str(smollm2_source.path))
    draft = draft_memory(settings, DraftFiles(smollm2_source, config))
    assert draft.fixed == weights_bytes(config) + activation_bytes(settings, config)
    assert draft.kv_per_token == config.kv_bytes_per_token
    alone, both = plan(8), plan(8, draft=draft)
    assert (both.draft, both.draft_kv_per_token) == (draft.fixed, draft.kv_per_token)
    left = 8 * GIB - both.weights - both.activations - draft.fixed - memory_plan.RUNTIME_BYTES
    block = (both.kv_per_token + draft.kv_per_token) * both.block_size
    assert 0.4 * left - block < block * both.blocks <= 0.4 * left
    assert both.blocks < alone.blocks / 1.9
    with pytest.raises(ModelError, match="for weights and activations and the draft model and"):
        plan(1.3, draft=draft)
    with pytest.raises(ModelError, match=r"--kv-blocks 5000 takes 13\.73 GiB"):
        plan(8, draft=draft, kv_blocks=5000)


def test_no_more_than_64_longest_requests_are_taken_unasked(plan):
    made = plan(1000)
    assert made.blocks == 64 * 256
    assert made.concurrent == 64


def test_one_longest_request_is_more_than_the_share_where_memory_is_short(plan):
    made = plan(1.5)
    assert made.blocks == 256
    assert made.context == 8192
    assert pool_bytes(made) > 0.4 * (1.5 * GIB - made.weights - made.activations - memory_plan.RUNTIME_BYTES)


def test_what_fits_is_less_than_one_longest_request(plan):
    made = plan(1.15)
    assert 0 < made.blocks < 256
    assert made.context == made.blocks * 32
    assert made.concurrent == 1.0
    total = made.weights + made.activations + memory_plan.RUNTIME_BYTES + pool_bytes(made)
    assert total <= 1.15 * GIB


def test_blocks_that_were_asked_for_are_taken(plan):
    made = plan(8, kv_blocks=10)
    assert (made.blocks, made.context) == (10, 320)
    assert plan(8, kv_blocks=10, block_size=8).context == 80


def test_a_context_that_was_asked_for_and_that_the_pool_does_not_hold_is_warned_of(plan, caplog):
    assert plan(8, kv_blocks=100).context == 3200
    assert plan(8, kv_blocks=100, max_model_len=3200).context == 3200
    assert not caplog.records
    assert plan(8, kv_blocks=100, max_model_len=8192).context == 3200
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert all(part in record.getMessage() for part in ("max_model_len is 8192", "100 blocks (kv_blocks)", "only 3200"))


def test_the_context_is_no_longer_than_asked_for(plan):
    made = plan(8, max_model_len=1000)
    assert (made.max_model_len, made.context) == (1000, 1000)
    assert made.concurrent == pytest.approx(made.blocks / 32)


def test_a_longer_context_than_the_models_is_allowed_by_a_flag_and_warned_of(plan, config, caplog):
    stretched = replace(config, rope_scaling=LinearScaling(2.0))
    assert plan(8, model=stretched).max_model_len == plan(8, model=stretched, max_model_len=16384).context == 16384
    assert not caplog.records
    made = plan(8, max_model_len=9000, allow_long_max_model_len=True)
    assert (made.max_model_len, made.context) == (9000, 9000)
    assert "--max-model-len 9000 is more than the 8192 tokens the model is made for" in caplog.text


@pytest.mark.parametrize(
    ("gib", "settings", "message"),
    [
        (0.5, {}, r"needs 0\.\d+ GiB for weights and activations and 0\.50 GiB are available"),
        (
            4,
            {"kv_blocks": 100_000},
            r"--kv-blocks 100000 takes 137\.\d+ GiB and \d\.\d+ GiB are left.*at most \d+ blocks",
        ),
        (4, {"kv_blocks": 1, "block_size": 8}, r"--kv-blocks 1 holds fewer than 16 tokens; at least 2"),
        (
            4,
            {"max_model_len": 9000},
            r"--max-model-len 9000 is more than the 8192 tokens.*set --allow-long-max-model-len",
        ),
    ],
)
def test_refuses_with_both_numbers(plan, gib, settings, message):
    with pytest.raises(ModelError, match=message):
        plan(gib, **settings)


def test_tiers_get_the_memory_that_they_ask_for(plan):
    """Whatever they are called; one that takes none of the host's memory costs the pool nothing."""
    assert plan(8, tiers=[DiskTier(Path("kv"), 7 * GIB)]) == plan(8)
    ram = HostTier(2 * GIB)
    ram.name, ram.sized_by = "ram disk", "--ram"
    assert plan(8, tiers=[ram]).blocks == plan(6).blocks < plan(8).blocks
    with pytest.raises(
        ModelError, match=r"activations and the KV tier ram disk and 2.00 GiB.*--max-step-tokens or --ram"
    ):
        plan(2, tiers=[ram])


def test_refuses_when_not_even_a_small_pool_fits(plan, config):
    taken = weights_bytes(config) + activation_bytes(Settings(), config) + memory_plan.RUNTIME_BYTES
    with pytest.raises(ModelError, match="left for the KV cache"):
        plan((taken + 1000) / GIB)


def test_a_model_of_many_gigabytes_is_planned_without_being_there(plan, config):
    large = replace(
        config, hidden_size=4096, intermediate_size=14336, layers=32, heads=32, kv_heads=8, head_dim=128,
        sliding_layers=(False,) * 32, tie_word_embeddings=False, vocab_size=128256,
    )  # fmt: skip
    made = plan(64, model=large)
    assert made.weights == 4 * 8_030_261_248  # the published number of parameters
    assert made.kv_per_token == 32 * 2 * 8 * 128 * 4


def test_activations_grow_with_the_step(config):
    sizes = [activation_bytes(Settings(max_step_tokens=tokens), config) for tokens in (256, 512, 1024)]
    assert sizes[1] - sizes[0] > 256 * 4 * 2 * config.intermediate_size
    assert sizes[2] - sizes[1] == 2 * (sizes[1] - sizes[0])


def test_activations_cover_a_prompt_that_is_scored(config):
    """With few running requests, a scored prompt has more rows of logits than sampling has."""

    def logits_rows(running):
        settings = Settings(max_running=running)
        larger = activation_bytes(settings, replace(config, vocab_size=2 * config.vocab_size))
        return (larger - activation_bytes(settings, config)) / (4 * config.vocab_size)

    assert logits_rows(1) >= 2.1 * SCORED_ROWS
    assert logits_rows(256) == 4 * 256
