"""The GPU's forward pass, its kernels interpreted on CPU tensors, against transformers and the CPU's exact path."""

import random
from dataclasses import replace

import pytest
import torch

from configs.model.source import resolve_model
from engine.cpu.decoder import Decoder
from engine.cpu.kv_pool import KvPool
from engine.cpu.model import ExactModel
from engine.cpu.weights import load_weights
from engine.cpu.worker import CpuWorker
from engine.gpu import model as module
from engine.gpu.batch import Sharing
from engine.gpu.formats import GpuArithmetic
from engine.gpu.model import GpuKvPool, GpuModel
from engine.gpu.weights import GpuAssembly
from engine.loading import load
from engine.models.registry import read_config
from engine.sequence_input import SequenceInput
from tests.engine.samplers import cpu_sampler
from tests.scheduler.sim import Engine

LENGTH, BLOCKS, SIZE = 27, 40, 16  # longer than the window of the sliding model
CPU = torch.device("cpu")


def gpu(folder, blocks=BLOCKS):
    source = resolve_model(str(folder))
    config = read_config(source)
    pool = GpuKvPool(config, blocks, SIZE, CPU, torch.float32)
    pool.storage.fill_(float("nan"))  # whatever is read must have been written
    weights = load(source, config, "auto", GpuAssembly(GpuArithmetic("dense", torch.float32), CPU))
    return config, GpuModel(config, weights, pool, context=512)


def exact(folder, blocks=BLOCKS):
    source = resolve_model(str(folder))
    config = read_config(source)
    return config, ExactModel(Decoder(config, load_weights(source, config, "auto")), KvPool(config, blocks, SIZE))


def prompt(vocab, length=LENGTH, seed=0):
    return random.Random(seed).choices(range(3, vocab), k=length)


def table(seed=0):
    return random.Random(seed).sample(range(BLOCKS), 8)


@pytest.mark.parametrize("name", ["llama-tied", "mistral-sliding", "qwen3-biased"])
def test_logits_equal_transformers(tiny_model, name):
    chunk = 20
    model, folder = tiny_model(name)
    config, ours = gpu(folder)
    ids = prompt(config.vocab_size)
    parts = []
    for start in range(0, LENGTH, chunk):
        item = SequenceInput(token_ids=ids[start : start + chunk], start=start, block_table=table())
        parts.append(ours.logits(ours.forward([item])))
    with torch.inference_mode():
        expected = model(torch.tensor([ids])).logits[0]
    torch.testing.assert_close(torch.cat(parts), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["mistral-sliding"])
def test_single_tokens_and_chunks_in_one_step(tiny_model, name):
    """Given in any order; the wanted results come back in that order."""
    model, folder = tiny_model(name)
    config, ours = gpu(folder)
    lengths = [33, 18, 27]
    prompts = [prompt(config.vocab_size, length, seed=length) for length in lengths]
    blocks = random.Random(1).sample(range(BLOCKS), 12)
    tables = [blocks[4 * index : 4 * index + 4] for index in range(3)]
    before = [32, 15, 26]  # so that the first and the last have one token left
    ours.forward(
        [
            SequenceInput(token_ids=ids[:done], start=0, block_table=blocks, wanted=0)
            for ids, done, blocks in zip(prompts, before, tables, strict=True)
        ]
    )
    wanted = [1, 2, 1]
    hidden = ours.forward(
        [
            SequenceInput(token_ids=ids[done:], start=done, block_table=blocks, wanted=count)
            for ids, done, blocks, count in zip(prompts, before, tables, wanted, strict=True)
        ]
    )
    logits = ours.logits(hidden).split(wanted)
    for ids, part in zip(prompts, logits, strict=True):
        with torch.inference_mode():
            expected = model(torch.tensor([ids])).logits[0][-len(part) :]
        torch.testing.assert_close(part, expected, atol=1e-4, rtol=0)


class Noting:
    """A product that notes how many rows it is given."""

    nbytes = 0

    def __init__(self, product, noted):
        self.product, self.noted = product, noted

    def __call__(self, x, adapters=None):
        self.noted.append(len(x))
        return self.product(x, adapters)


def test_a_rehearsal_multiplies_every_number_of_rows_and_leaves_no_trace(tiny_model, monkeypatch):
    """The widest step before all others. With a prefix to share also by that way."""
    _, folder = tiny_model("llama")
    config, model = gpu(folder, 2)
    model._sharing = Sharing.of(model.config, model.pool.block_bytes, 1)
    model.pool.memory.zero_()
    cascades, noted, heads = [], [], []
    monkeypatch.setattr(module, "cascade_attention", lambda *_, out, **__: cascades.append(out.zero_()))
    layer = model._weights.layers[0]
    model._weights.layers[0] = replace(layer, qkv=Noting(layer.qkv, noted))
    model._weights = replace(model._weights, head=Noting(model._weights.head, heads))
    monkeypatch.setattr(module, "_TILE_ROWS", 16)
    model.context = 64
    model.warm_up(20, [1, 2, 8])
    assert noted[0] == max(noted) == 20
    assert {1, 2, 8, 16, 20} <= set(noted)
    assert {1, 2, 8} <= set(heads)
    assert len(cascades) == 2 * config.layers
    assert not model.pool.memory.any()


def test_an_engine_generates_what_the_exact_path_generates(tiny_model):
    """Continuous batching, chunked prompts and a warm prefix cache over the Triton path, token by token."""
    _, folder = tiny_model("llama")

    def generate(make):
        config, model = make(folder, 24)
        worker = CpuWorker(model, cpu_sampler(config.vocab_size, config.eos_token_ids))
        engine = Engine(
            blocks=24,
            block_size=SIZE,
            worker=worker,
            eos=frozenset(config.eos_token_ids),
            context=256,
            max_step_tokens=24,
        )
        shared = prompt(config.vocab_size, 34)
        for index, length in enumerate((5, 30)):
            engine.add(
                f"r{index}", shared + prompt(config.vocab_size, length, seed=length), max_tokens=4, ignore_eos=True
            )
            engine.tick()
        engine.drain()
        return engine.outputs

    assert generate(gpu) == generate(exact)
