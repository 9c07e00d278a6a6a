"""Models on the GPU's path, interpreted on CPU tensors, and inputs for them."""

import random

import torch

from configs.model.source import resolve_model
from engine.gpu.formats import GpuArithmetic
from engine.gpu.model import GpuKvPool, GpuModel
from engine.gpu.weights import GpuAssembly
from engine.loading import load
from engine.models.registry import read_config
from engine.sequence_input import SequenceInput
from engine.tensor_parallel.process_group import SingleProcess
from engine.tensor_parallel.shards import split_config

BLOCKS, SIZE = 40, 16
CPU = torch.device("cpu")


def described(path):
    source = resolve_model(str(path))
    return source, read_config(source)


def gpu_weights(path, form="dense", rank=0, size=1):
    source, config = described(path)
    return load(source, config, "auto", GpuAssembly(GpuArithmetic(form, torch.float32), CPU, rank, size))


def gpu_model(path, form="dense", *, fp8_kv=False, blocks=BLOCKS, ranks=None, **options):
    """In fp32, over a pool of NaN: whatever is read must have been written."""
    ranks = ranks or SingleProcess()
    config = described(path)[1]
    pool = GpuKvPool(split_config(config, ranks.size), blocks, SIZE, CPU, torch.float32, fp8=fp8_kv)
    pool.storage.fill_(float("nan"))
    if pool.scales is not None:
        pool.scales.fill_(float("nan"))
    weights = gpu_weights(path, form, ranks.rank, ranks.size)
    return GpuModel(config, weights, pool, context=512, group=ranks, **options)


def prompt(vocab, length, seed=0):
    return random.Random(seed).choices(range(3, vocab), k=length)


def chunk(ids, start, stop, table, wanted=None):
    return SequenceInput(token_ids=ids[start:stop], start=start, block_table=table, wanted=wanted)
