"""The CPU worker under the real scheduler, against transformers on tiny models: every path a request can take."""

import random

import pytest
import torch

from configs.model.source import resolve_model
from engine.cpu.decoder import Decoder
from engine.cpu.kv_pool import KvPool
from engine.cpu.model import ExactModel
from engine.cpu.weights import load_weights
from engine.cpu.worker import CpuWorker
from engine.memory import SCORED_ROWS
from engine.models.registry import read_config
from scheduler.types.messages import FinishReason
from tests.engine.samplers import cpu_sampler
from tests.scheduler.sim import Engine

BLOCK = 8
OUTPUT = 24
LENGTHS = (3, 8, 17, 40, 64, 33)


class Scored(Engine):
    """Keeps the entries themselves."""

    def __init__(self, **config):
        super().__init__(**config)
        self.entries = {}

    def absorb(self, outputs):
        for output in outputs:
            self.entries.setdefault(output.request_id, []).extend(output.prompt_logprobs)
        super().absorb(outputs)


def build(folder, *, blocks=128, **config):
    source = resolve_model(str(folder))
    model = read_config(source)
    decoder = Decoder(model, load_weights(source, model, "auto"))
    worker = CpuWorker(
        ExactModel(decoder, KvPool(model, blocks, BLOCK)), cpu_sampler(model.vocab_size, model.eos_token_ids)
    )
    return Scored(blocks=blocks, block_size=BLOCK, worker=worker, eos=frozenset(model.eos_token_ids), **config), decoder


def prompt(length, seed=0):
    return random.Random(seed).choices(range(3, 320), k=length)


PROMPTS = [prompt(length, seed=length) for length in LENGTHS]


def generate(engine, name):
    for i, ids in enumerate(PROMPTS):
        engine.add(f"{name}{i}", ids, max_tokens=OUTPUT, ignore_eos=True)
    engine.drain()
    return [engine.outputs[f"{name}{i}"] for i in range(len(PROMPTS))]


def check_greedy(model, outputs):
    """Given our tokens, the arg-max after every prefix is our next one: by induction, the greedy output."""
    for ids, output in zip(PROMPTS, outputs, strict=True):
        with torch.inference_mode():
            logits = model(torch.tensor([ids + output])).logits[0, len(ids) - 1 : -1]
        assert logits.argmax(-1).tolist() == output


@pytest.mark.parametrize("name", ["llama", "mistral-sliding", "qwen2", "qwen3"])
def test_greedy_output_of_tiny_models_equals_transformers(tiny_model, name):
    model, folder = tiny_model(name)
    engine, _ = build(folder, max_step_tokens=50)
    cold = generate(engine, "cold")
    check_greedy(model, cold)
    assert generate(engine, "warm") == cold
    assert [engine.ends[f"warm{i}"].times.cached_tokens for i in range(len(PROMPTS))] == [0, 0, 16, 32, 56, 32]
    for step_tokens in (1, 7):
        assert generate(build(folder, max_step_tokens=step_tokens)[0], "chunked") == cold
    tiny, _ = build(folder, blocks=14, decode_watermark=0.0, max_step_tokens=50)
    assert generate(tiny, "preempted") == cold
    assert tiny.scheduler.snapshot().preemptions > 0


@pytest.mark.parametrize("ending", ["eos", "abort"])
def test_a_next_turn_after_a_full_block_equals_transformers(tiny_model, ending):
    """The first turn ends with the token that fills its last block, whose KV nothing needs until turn two."""
    model, folder = tiny_model("llama")
    engine, _ = build(folder)
    start = prompt(19)
    engine.add("probe", start, max_tokens=5, ignore_eos=True)
    engine.drain()
    last = engine.outputs["probe"][-1]
    assert last not in engine.outputs["probe"][:-1]
    engine, _ = build(folder)
    engine.add("turn1", start, max_tokens=30, ignore_eos=True, stop_token_ids=(last,) if ending == "eos" else ())
    while len(engine.outputs["turn1"]) < 5:
        engine.tick()
    engine.abort("turn1")
    history = start + engine.outputs["turn1"] + prompt(3, 1)
    engine.add("turn2", history, max_tokens=OUTPUT, ignore_eos=True)
    engine.drain()
    assert engine.ends["turn2"].times.cached_tokens >= 16
    with torch.inference_mode():
        logits = model(torch.tensor([history + engine.outputs["turn2"]])).logits[0, len(history) - 1 : -1]
    assert logits.argmax(-1).tolist() == engine.outputs["turn2"]


@pytest.mark.parametrize("config", [{}, {"max_step_tokens": 7}, {"blocks": 22, "decode_watermark": 0.0}])
def test_prompt_logprobs_equal_transformers(tiny_model, config):
    """Chunked, beside a cached prefix, before and after a preemption: each entry once, in order."""
    model, folder = tiny_model("llama")
    engine, _ = build(folder, **config)
    ids = prompt(45)
    for i in range(2):  # the second finds the first one's blocks
        engine.add(f"other{i}", prompt(30, 9), max_tokens=60, ignore_eos=True)
        engine.add(f"scored{i}", ids, max_tokens=40, ignore_eos=True, prompt_logprobs=3)
    engine.drain()
    with torch.inference_mode():
        logprobs = model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
    for i in range(2):
        entries = engine.entries[f"scored{i}"]
        assert [entry.token_id for entry in entries] == ids[1:]
        got = torch.tensor([entry.logprob for entry in entries])
        want = logprobs.gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
        torch.testing.assert_close(got, want, atol=1e-4, rtol=0)
        top = torch.tensor([[logprob for _, logprob in entry.top] for entry in entries])
        torch.testing.assert_close(top, logprobs.topk(3).values, atol=1e-4, rtol=0)
        assert engine.ends[f"scored{i}"].times.cached_tokens == 0
    assert (engine.scheduler.snapshot().preemptions > 0) == ("blocks" in config)


def test_a_scored_prompt_holds_no_more_logits_than_planned_for(tiny_model):
    _, folder = tiny_model("llama")
    engine, decoder = build(folder)
    rows, logits = [], decoder.logits
    decoder.logits = lambda hidden: rows.append(len(hidden)) or logits(hidden)
    engine.add("scored", prompt(3 * SCORED_ROWS), max_tokens=1, prompt_logprobs=0)
    engine.drain()
    assert (max(rows), sum(rows)) == (SCORED_ROWS, 3 * SCORED_ROWS)


@pytest.mark.parametrize("scored", [None, 0])
def test_a_request_whose_logits_are_not_finite_fails_alone(tiny_model, scored):
    _, folder = tiny_model("llama")
    want = generate(build(folder)[0], "r")
    engine, decoder = build(folder)
    poison = next(token for token in range(3, 320) if not any(token in ids for ids in (*PROMPTS, *want)))
    decoder._weights.embedding[poison] = float("nan")
    engine.add("bad", [*prompt(20)[:10], poison], max_tokens=5, prompt_logprobs=scored)
    assert generate(engine, "r") == want
    assert engine.ends["bad"].finish_reason is FinishReason.ERROR
    assert "not finite" in engine.ends["bad"].error


def test_a_prefix_is_computed_anew_after_its_logits_were_not_finite(tiny_model):
    """A passing fault must not live on in the prefix cache."""
    _, folder = tiny_model("llama")
    engine, decoder = build(folder)
    ids = prompt(3 * BLOCK + 1)
    healthy = decoder._weights.embedding[ids[0]].clone()
    decoder._weights.embedding[ids[0]] = float("nan")
    engine.add("fault", ids, max_tokens=5)
    engine.drain()
    assert engine.ends["fault"].finish_reason is FinishReason.ERROR
    decoder._weights.embedding[ids[0]] = healthy
    engine.add("after", ids, max_tokens=5, ignore_eos=True)
    engine.drain()
    assert engine.ends["after"].finish_reason is FinishReason.LENGTH


def test_nothing_is_kept_of_requests_that_ended(tiny_model):
    _, folder = tiny_model("llama")
    engine, _ = build(folder)
    penalties = {"presence_penalty": 0.5, "logit_bias": {5: 1.0}, "bad_words": ((7, 8),)}
    for i in range(6):
        engine.add(f"r{i}", prompt(20, i), max_tokens=9, min_tokens=2, **penalties)
    for _ in range(3):
        engine.tick()
    engine.abort("r2")
    engine.drain()
    kept = [
        edit
        for edit in engine.worker._sampler._edits
        if any(vars(edit).get(name) for name in ("_counts", "_words", "_arrays"))
    ]
    assert (engine.worker._sequences, kept) == ({}, [])
