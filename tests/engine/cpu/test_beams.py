"""Beam search on the CPU worker under the real scheduler: the tokens of transformers' `generate(num_beams=...)`."""

import pytest
import torch

from engine.cpu.kv_pool import KvPool
from engine.cpu.model import ExactModel
from engine.cpu.worker import CpuWorker
from tests.engine.cpu.test_worker import build, prompt
from tests.engine.samplers import cpu_sampler
from tests.scheduler.sim import Engine

BLOCK = 8
EARLY = {"always": True, "likely": False, "never": "never"}


def generated(model, ids, width, *, most, penalty=1.0, early="likely", eos=None, least=0):
    """What transformers finds, the best first, as far as the first end."""
    with torch.inference_mode():
        found = model.generate(
            torch.tensor([ids]), num_beams=width, num_return_sequences=width, do_sample=False, max_new_tokens=most,
            min_new_tokens=least, length_penalty=penalty, early_stopping=EARLY[early], eos_token_id=eos, pad_token_id=0,
        )  # fmt: skip
    texts = found[:, len(ids) :].tolist()
    ends = [next((at + 1 for at, token in enumerate(text) if token in (eos or ())), most) for text in texts]
    return [text[:end] for text, end in zip(texts, ends, strict=True)]


def searched(engine, name, width):
    return [engine.outputs[f"{name}.{rank}"] for rank in range(width)]


@pytest.mark.parametrize(
    ("width", "penalty", "early", "config"),
    [
        (2, 1.0, "likely", {}),
        (3, 0.0, "always", {"blocks": 5, "decode_watermark": 0.0}),
        (3, 2.0, "never", {"max_step_tokens": 7}),
        (3, -1.0, "likely", {"caching": False}),
    ],
)
def test_a_search_of_a_tiny_model_equals_transformers(tiny_model, width, penalty, early, config):
    """With so many ends that some texts are short; in plenty of room, in little, in small steps, and without a cache."""
    model, folder = tiny_model("llama")
    ends, ids = list(range(0, 320, 5)), prompt(11)
    engine, _ = build(folder, **config)
    engine.add("other", prompt(9, 9), max_tokens=20, ignore_eos=True)
    asked = {"max_tokens": 9, "min_tokens": 2, "ignore_eos": True, "stop_token_ids": tuple(ends)}
    engine.search("b", ids, width, penalty=penalty, early=early, **asked)
    engine.drain()
    want = generated(model, ids, width, most=9, penalty=penalty, early=early, eos=ends, least=2)
    assert searched(engine, "b", width) == want


@pytest.mark.long
def test_a_search_of_the_embedded_model_equals_transformers(smollm2_decoder, smollm2_reference, smollm2_tokenizer):
    config = smollm2_decoder.config
    sampler = cpu_sampler(config.vocab_size, config.eos_token_ids)
    worker = CpuWorker(ExactModel(smollm2_decoder, KvPool(config, 32, BLOCK)), sampler)
    engine = Engine(blocks=32, block_size=BLOCK, worker=worker, eos=frozenset(config.eos_token_ids))
    ids = smollm2_tokenizer.encode("Water boils at a temperature of")
    engine.search("b", ids, 3, max_tokens=12)
    engine.drain()
    want = generated(smollm2_reference, ids, 3, most=12, eos=sorted(config.eos_token_ids))
    assert searched(engine, "b", 3) == want
    assert engine.scheduler.snapshot().recomputed_tokens == 0
