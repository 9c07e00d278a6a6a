"""The counted model of a decode step against what is launched, and against what interpreted kernels read and write."""

from dataclasses import fields, replace

import pytest
import torch

from engine.bench.counted import CASES, PRODUCT, DecodeCount, chunk_launches, chunk_table, table, updated
from engine.bench.steps import BLOCK, LLAMA_3_8B, random_weights
from engine.gpu import batch as batches
from engine.gpu.batch import GpuBatch
from engine.gpu.linear import Grouped
from engine.gpu.model import GpuKvPool, GpuModel
from engine.sequence_input import SequenceInput
from kernels.gpu.attention import chunk_work, decode
from kernels.gpu.linear.quantized import KERNEL_ROWS
from kernels.gpu.linear.quantized_matrix import pack
from kernels.gpu.linear.split_sums import PartialSums
from kernels.gpu.sampling.sample import BatchSettings, RowSettings, sample
from tests.engine.bench.launcher import instrumented
from tests.source_tree import ROOT

SMALL = replace(
    LLAMA_3_8B,
    vocab_size=5000,
    hidden_size=48,
    intermediate_size=1100,
    layers=2,
    heads=6,
    kv_heads=2,
    head_dim=16,
    sliding_layers=(False,) * 2,
    max_position=1024,
)
IN_GROUPS = replace(SMALL, hidden_size=64, intermediate_size=1120)
CPU, NOWHERE = torch.device("cpu"), torch.device("meta")


def in_groups(product, partial_sums):
    """Zeros in groups of 32, of the shape of a weight."""
    outputs, columns = product.weight.shape
    quants = torch.zeros((outputs, columns), dtype=torch.uint8, device=product.weight.device)
    scales = torch.zeros((outputs, columns // 32), device=product.weight.device)
    return Grouped(pack(quants, scales, None, form="symmetric", bits=4, group=32), None, partial_sums)


def weights_of(config, device, dtype, stored):
    weights = random_weights(config, device, dtype)
    if stored is None:
        return weights
    shared = PartialSums.on(device, KERNEL_ROWS)
    names = ("qkv", "o", "gate_up", "down")
    layers = [
        replace(each, **{name: in_groups(getattr(each, name), shared) for name in names}) for each in weights.layers
    ]
    return replace(weights, layers=layers)


def step_of(config, keys, device, dtype, stored=None):
    """A model, and what a decode step of it takes."""
    tables, blocks = [], 0
    for count in keys:
        tables.append(list(range(blocks, blocks + -(-count // BLOCK))))
        blocks += len(tables[-1])
    inputs = [
        SequenceInput(token_ids=[row], start=count - 1, block_table=blocks, wanted=1)
        for row, (count, blocks) in enumerate(zip(keys, tables, strict=True))
    ]
    pool = GpuKvPool(config, blocks, BLOCK, device, dtype)
    if device == CPU:
        pool.memory.zero_()
    model = GpuModel(config, weights_of(config, device, dtype, stored), pool, context=config.max_position)
    batch = GpuBatch.build(inputs, BLOCK, CPU)
    there = {field.name: getattr(batch, field.name) for field in fields(batch)}
    batch = replace(batch, **{name: part.to(device) for name, part in there.items() if isinstance(part, torch.Tensor)})
    settings = BatchSettings.of([RowSettings(temperature=0.0)] * len(keys), CPU)
    return model, batch, replace(settings, floats=settings.floats.to(device), ints=settings.ints.to(device))


def ran(monkeypatch, config, keys, device, dtype, *, runs, stored=None):
    model, batch, settings = step_of(config, keys, device, dtype, stored)
    with instrumented(monkeypatch, runs=runs) as noted:
        sample(model.logits(model.compute(batch)), settings)
    return noted


def test_every_address_is_counted(monkeypatch):
    """Sequences in one part, in two and in three."""
    keys = [1, 40, 300, 600]
    noted = ran(monkeypatch, SMALL, keys, CPU, torch.float32, runs=True)
    assert noted.launches == list(DecodeCount(SMALL, keys, 4, longest=max(keys), processors=3).launches())
    assert noted.others == []


@pytest.mark.parametrize("rows", [4, pytest.param(70, marks=pytest.mark.long)])
def test_every_address_of_weights_in_groups_is_counted(monkeypatch, rows):
    """Sums in one part and in two; of 70 rows, in two tiles of rows, in one."""
    keys = [1, 40, 300, *[2] * (rows - 3)]
    noted = ran(monkeypatch, IN_GROUPS, keys, CPU, torch.float32, runs=True, stored="Q4_0")
    counted = DecodeCount(IN_GROUPS, keys, 4, longest=max(keys), processors=3, stored="Q4_0")
    assert noted.launches == list(counted.launches())
    assert noted.others == []


@pytest.mark.parametrize("case", range(len(CASES)))
def test_llama_3_8b_launches_what_is_counted(monkeypatch, case):
    """In its real shapes, on tensors without memory. Nothing of torch is launched beside products."""
    monkeypatch.setattr(decode, "multiprocessors", lambda device: 132)
    (_, keys, stored), config = (
        CASES[case],
        replace(LLAMA_3_8B, layers=2, sliding_layers=(False,) * 2, max_position=65_536),
    )
    noted = ran(monkeypatch, config, keys, NOWHERE, torch.bfloat16, runs=False, stored=stored)
    counted = list(DecodeCount(config, keys, 2, longest=max(keys), stored=stored).launches())
    assert [(each.kernel, each.programs) for each in noted.launches] == [(e.kernel, e.programs) for e in counted]
    assert [each for each in noted.launches if each.kernel == PRODUCT] == [e for e in counted if e.kernel == PRODUCT]
    assert noted.others == []


@pytest.mark.parametrize("chunks", [[(40, 40)], [(1, 9), (40, 50)], [(1, 300), (3, 5000), (40, 60)]])
def test_what_a_step_with_chunks_launches_is_counted(monkeypatch, chunks):
    """Of torch, the inputs' copy and their conversion, the copy of pieces and zeros for counts."""
    for module in (batches, chunk_work):
        monkeypatch.setattr(
            module, "sent", lambda host, device: host.to(device)
        )  # without a GPU no memory can be pinned
    monkeypatch.setattr(decode, "multiprocessors", lambda device: 132)
    config = replace(LLAMA_3_8B, layers=2, sliding_layers=(False,) * 2)
    model, _, settings = step_of(config, [1], NOWHERE, torch.bfloat16)
    inputs = [
        SequenceInput(
            token_ids=[5] * rows, start=keys - rows, block_table=[0] * -(-keys // BLOCK), wanted=int(rows == 40)
        )
        for rows, keys in chunks
    ]
    with instrumented(monkeypatch, runs=False) as noted:
        batch = GpuBatch.build(inputs, BLOCK, NOWHERE)
        sample(model.logits(model.compute(batch)), settings)
    counted = chunk_launches(2, singles=chunks[0][0] == 1, split=(3, 5000) in chunks)
    assert set(noted.others) <= {"to", "zeros", "lift_fresh", "detach_"}  # the last two make the host's lists
    assert len(noted.launches) + sum(name in {"to", "zeros"} for name in noted.others) == counted


def test_the_page_has_the_table():
    """`make docs` brings it up to date."""
    page = (ROOT / "docs" / "gpu.md").read_text()
    assert updated(page) == page
    assert updated(page.replace("| 256 | 1,024 |", "| 257 | 1,024 |")) == page
    assert updated(page.replace("| a prompt's chunk |", "| another |")) == page
    assert len(table()) == 2 + len(CASES) and len(chunk_table()) == 5
