"""The decoder against transformers: same weights, fp32, eager attention."""

import random

import pytest
import torch

from configs.model.source import resolve_model
from engine.cpu.batch import Batch
from engine.cpu.decoder import Decoder
from engine.cpu.kv_pool import KvPool
from engine.cpu.weights import load_weights
from engine.models.registry import read_config
from engine.sequence_input import SequenceInput
from tests.tiny_models import TINY

LENGTH = 75
BLOCKS = 40
TOLERANCE = 1e-4


def load(folder):
    source = resolve_model(str(folder))
    config = read_config(source)
    return Decoder(config, load_weights(source, config, "auto"))


def prompt(vocab, length=LENGTH, seed=0):
    return random.Random(seed).choices(range(3, vocab), k=length)


def expected(model, ids):
    with torch.inference_mode():
        return model(torch.tensor([ids])).logits[0]


def scattered_table(blocks, seed=0):
    return random.Random(seed).sample(range(BLOCKS), blocks)


def run_chunks(decoder, pool, ids, table, chunk):
    """Logits of every position, computed `chunk` tokens per step."""
    rows = []
    for start in range(0, len(ids), chunk):
        part = SequenceInput(token_ids=ids[start : start + chunk], start=start, block_table=table)
        rows.append(decoder.logits(decoder.forward(Batch.build([part], pool), pool)))
    return torch.cat(rows)


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("chunk", [1, 7, 512])
def test_logits_equal_transformers_for_every_chunk_size(tiny_model, name, chunk):
    model, folder = tiny_model(name)
    decoder = load(folder)
    ids = prompt(decoder.config.vocab_size)
    pool = KvPool(decoder.config, BLOCKS, 8)
    logits = run_chunks(decoder, pool, ids, scattered_table(10), chunk)
    torch.testing.assert_close(logits, expected(model, ids), atol=TOLERANCE, rtol=0)


def test_the_tiny_models_tell_tokens_apart(tiny_model):
    """The logits of random weights must not be so flat that any answer would pass."""
    for name in TINY:
        model, _ = tiny_model(name)
        logits = expected(model, prompt(model.config.vocab_size))
        assert logits.std() > 100 * TOLERANCE
        assert len(set(logits.argmax(-1).tolist())) > 5


@pytest.mark.parametrize("name", ["llama", "mistral-sliding", "qwen2-sliding", "qwen3"])
def test_a_sequence_computes_the_same_in_any_company(tiny_model, name):
    """Prompts and single tokens of several sequences, interleaved in every step, over shuffled blocks."""
    model, folder = tiny_model(name)
    decoder = load(folder)
    pool = KvPool(decoder.config, 64, 8)
    lengths, chunks = [75, 31, 1, 50], [16, 5, 1, 50]
    prompts = [prompt(decoder.config.vocab_size, length, seed=length) for length in lengths]
    blocks = random.Random(1).sample(range(64), 64)
    tables = [blocks[index * 12 : index * 12 + 12] for index in range(4)]
    done = [0, 0, 0, 0]
    rows = [[], [], [], []]
    while any(place < length for place, length in zip(done, lengths, strict=True)):
        active = [index for index in range(4) if done[index] < lengths[index]]
        inputs = []
        for index in active:
            ids = prompts[index][done[index] : done[index] + chunks[index]]
            inputs.append(SequenceInput(token_ids=ids, start=done[index], block_table=tables[index]))
        logits = decoder.logits(decoder.forward(Batch.build(inputs, pool), pool))
        parts = logits.split([len(item.token_ids) for item in inputs])
        for index, part in zip(active, parts, strict=True):
            rows[index].append(part)
            done[index] += len(part)
    for ids, parts in zip(prompts, rows, strict=True):
        torch.testing.assert_close(torch.cat(parts), expected(model, ids), atol=TOLERANCE, rtol=0)


def test_a_shared_prefix_is_read_from_the_blocks_of_another_sequence(tiny_model):
    model, folder = tiny_model("llama")
    decoder = load(folder)
    pool = KvPool(decoder.config, BLOCKS, 8)
    shared = prompt(decoder.config.vocab_size, 32)
    run_chunks(decoder, pool, shared, [7, 3, 4, 20], 512)
    ids = shared + prompt(decoder.config.vocab_size, 9, seed=5)
    rest = SequenceInput(token_ids=ids[32:], start=32, block_table=[7, 3, 4, 20, 0, 1])
    logits = decoder.logits(decoder.forward(Batch.build([rest], pool), pool))
    torch.testing.assert_close(logits, expected(model, ids)[32:], atol=TOLERANCE, rtol=0)


def test_what_a_block_held_before_does_not_matter(tiny_model):
    model, folder = tiny_model("mistral-sliding")
    decoder = load(folder)
    pool = KvPool(decoder.config, 10, 8)
    pool.storage.fill_(float("nan"))
    ids = prompt(decoder.config.vocab_size)
    logits = run_chunks(decoder, pool, ids, list(range(10)), 7)
    torch.testing.assert_close(logits, expected(model, ids), atol=TOLERANCE, rtol=0)
