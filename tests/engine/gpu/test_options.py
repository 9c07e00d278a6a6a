"""What a GPU model can be asked for besides its arithmetic: an fp8 cache, shared prefixes read once, logits in 16 bits."""

import pytest
import torch

from engine.gpu.batch import GpuBatch, Sharing
from engine.gpu.formats import GpuArithmetic
from engine.gpu.graphs import EagerRecorder, StepGraphs
from engine.gpu.sampler import GpuSampler
from engine.sampling.registry import standard_edits
from engine.sequence import Sequence
from scheduler.types.sampling_params import SamplingParams
from scheduler.types.step import SequenceInit
from tests.engine.gpu.cases import CPU, SIZE, chunk, described, gpu_model, prompt
from tests.engine.gpu.tiny_gpu import RecordsAtOnce

TABLES = [[7, 30, 2], [7, 30, 11], [7, 30, 5], [21, 9, 33], [7, 4, 38]]
LENGTHS = [33, 40, 36, 17, 35]  # the first three share two blocks, the last one of them


def decoding(model, count=5):
    """Sequences at their last token; the KV before it is made up, the same in every pool."""
    used = sorted({block for table in TABLES[:count] for block in table})
    values = torch.randn(len(used), *model.pool.storage.shape[1:], generator=torch.Generator().manual_seed(0))
    model.pool.storage[used] = values.to(model.pool.storage.dtype)
    if model.pool.scales is not None:
        model.pool.scales[used] = 0.5
    return [
        chunk([5 + index] * length, length - 1, length, table)
        for index, (table, length) in enumerate(zip(TABLES[:count], LENGTHS, strict=False))
    ]


# In the other model two of three layers have a window: their rows are not grouped.
@pytest.mark.parametrize("name", [pytest.param("llama", marks=pytest.mark.long), "qwen2-sliding"])
def test_shared_prefixes_change_no_more_than_the_order_of_sums(tiny_model, name):
    folder = tiny_model(name)[1]
    apart, together = gpu_model(folder), gpu_model(folder, least_saved=0)
    order = [2, 3, 0, 4, 1]
    batches = []
    for model in (apart, together):
        steps = decoding(model)
        prompt_beside = chunk(prompt(320, 5), 0, 3, [1])
        batches.append(model.lay_out([prompt_beside, *(steps[index] for index in order)]))
    assert batches[0].cascade is None
    assert batches[1].cascade is not None
    assert sorted(batches[1].cascade.lengths.tolist()) == [1, 4, 8, 17, 35]  # what each one reads by itself
    plain, cascade = (
        model.logits(model.compute(batch)) for model, batch in zip((apart, together), batches, strict=True)
    )
    torch.testing.assert_close(cascade, plain, atol=1e-4, rtol=0)


def test_no_groups_that_do_not_pay():
    inputs = [chunk([5] * 33, 32, 33, [7, 30, 2]), chunk([5] * 33, 32, 33, [7, 30, 1])]
    saved = 2 * 100  # two blocks, read once instead of twice
    for least, found in ((saved, True), (saved + 1, False)):
        batch = GpuBatch.build(inputs, SIZE, CPU, Sharing(heads=4, kv_heads=2, block_bytes=100, least_saved=least))
        assert (batch.cascade is not None) == found


@pytest.mark.parametrize(("least_saved", "replayed"), [(None, 2), (0, 1)])
def test_a_step_with_groups_runs_without_its_graph(tiny_model, least_saved, replayed):
    model = gpu_model(tiny_model("llama")[1], least_saved=least_saved)
    graphs = StepGraphs(model, RecordsAtOnce(8), EagerRecorder(), torch.float32)
    newest, steps = torch.zeros(4, dtype=torch.int64), decoding(model)
    apart, together = [steps[0], steps[3]], [steps[0], steps[1]]
    graphs.forward(apart, newest)
    graphs.record(graphs.missed())
    for inputs in (apart, together):
        expected = model.compute(model.lay_out(inputs))
        torch.testing.assert_close(graphs.forward(inputs, newest), expected, atol=1e-5, rtol=0)
    assert graphs.replayed == replayed


def test_an_fp8_cache_holds_the_same_in_fewer_bytes(tiny_model):
    folder = tiny_model("llama")[1]
    plain, small = gpu_model(folder), gpu_model(folder, fp8_kv=True)
    ids, table = prompt(320, 33), TABLES[0]
    for model in (plain, small):
        model.forward([chunk(ids, 0, 32, table, wanted=0)])
    block = table[0]
    stored = small.pool.storage[block].float() * small.pool.scales[block][..., None, None]
    expected = plain.pool.storage[block]
    first = expected[0], stored[0]  # later layers build on rounded keys
    assert (first[0] - first[1]).abs().max() <= 2**-4 * first[0].abs().max()
    assert 0 < (expected - stored).norm() < 0.2 * expected.norm()
    logits = [model.logits(model.forward([chunk(ids, 32, 33, table)])) for model in (plain, small)]
    assert 0 < (logits[1] - logits[0]).norm() < 0.3 * logits[0].norm()
    config = described(folder)[1]
    for model, arithmetic in (
        (plain, GpuArithmetic("dense", torch.float32)),
        (small, GpuArithmetic("dense", torch.float32, fp8_kv=True)),
    ):
        assert model.pool.block_bytes == arithmetic.kv_block_bytes(config, SIZE)
        memory = model.pool.memory
        assert memory.is_contiguous() and memory.shape[1] % 64 == 0  # a block is one aligned range, scales included
    moved = gpu_model(folder, fp8_kv=True)
    moved.pool.memory[:] = small.pool.memory
    assert torch.equal(moved.logits(moved.forward([chunk(ids, 32, 33, table)])), logits[1])


def test_groups_read_an_fp8_cache(tiny_model):
    folder = tiny_model("llama")[1]
    apart, together = gpu_model(folder, fp8_kv=True), gpu_model(folder, fp8_kv=True, least_saved=0)
    logits = []
    for model in (apart, together):
        batch = model.lay_out(decoding(model, 2))
        logits.append(model.logits(model.compute(batch)))
    assert batch.cascade is not None
    torch.testing.assert_close(logits[1], logits[0], atol=1e-4, rtol=0)


def test_a_row_is_the_same_bit_for_bit_in_any_company(tiny_model):
    """Apart from products, which are torch's: queries go through attention alone, or beside others that share their blocks."""
    model = gpu_model(tiny_model("llama")[1])
    steps = decoding(model)
    rows = torch.randn(len(steps), 4, 16, generator=torch.Generator().manual_seed(0))

    def mixed(queries, inputs):
        batch = model.lay_out(inputs)
        return model._mix(queries, 0, batch, model._planned(batch))

    every = mixed(rows, steps)
    for index, step in enumerate(steps):
        assert torch.equal(mixed(rows[index : index + 1], [step])[0], every[index])


ASKED = [
    {"temperature": 0.0},
    {"top_p": 0.8, "seed": 3},
    {"seed": 4, "logprobs": 2},
    {"presence_penalty": 0.5, "top_k": 9, "seed": 5},
    # Between two neighbours that are a unit in bf16's last place apart, what decides is less than half of one.
    {"temperature": 0.0, "logit_bias": {11: 8.0, 12: 8.001}, "logprobs": 2},
]


def test_logits_in_16_bits_are_drawn_from_as_the_same_in_32():
    """Bit for bit, log-probabilities too; edits are added in fp32, and the raw logits stay."""
    vocab = 300
    logits = (2 * torch.randn(len(ASKED), vocab, generator=torch.Generator().manual_seed(0))).bfloat16()
    logits[-1, 11] = logits[-1, 12] = 9.0
    given = logits.clone()

    def drawn(some, asked):
        sampler = GpuSampler(vocab, standard_edits(vocab, ()), CPU)
        members = [
            sampler.member(
                Sequence.from_init(
                    SequenceInit(
                        request_id=str(row), prompt_ids=[1, 2], sampling=SamplingParams(max_tokens=3, **options)
                    )
                ),
                row,
            )
            for row, options in enumerate(asked)
        ]
        return sampler.sample(some, members)[1].wait(members)

    for rows in (slice(0, 4), slice(0, 5)):  # with edits, and without
        found = drawn(logits[rows], ASKED[rows])
        assert torch.equal(logits, given)
        assert found == drawn(logits[rows].float(), ASKED[rows])
    assert found[-1].token_id == 12
    assert found[-1].logprobs.rank == 1 + int((given[-1] > 9.0).sum())
