"""Every way to make a vector of states, whole and in chunks."""

import pytest
import torch
import torch.nn.functional as F

from configs.model.pooling import PoolingRules
from engine.pooling.vectors import POOLERS, vector_pooler
from engine.sequence import Sequence
from scheduler.types.output_kind import OutputKind
from scheduler.types.sampling_params import SamplingParams
from scheduler.types.step import Chunk, ChunkPhase

LENGTH = 9
STATES = torch.randn(LENGTH, 6, generator=torch.Generator().manual_seed(0))
PLACES = torch.arange(1.0, LENGTH + 1)[:, None]
WANT = {
    "cls": STATES[0],
    "lasttoken": STATES[-1],
    "max": STATES.amax(0),
    "mean": STATES.mean(0),
    "mean_sqrt_len_tokens": STATES.sum(0) / LENGTH**0.5,
    "weightedmean": (STATES * PLACES).sum(0) / PLACES.sum(),
}


def pooled(pooler, cuts, name="r"):
    sequence = Sequence(
        request_id=name,
        tokens=[0] * LENGTH,
        prompt_length=LENGTH,
        sampling=SamplingParams(max_tokens=0),
        announced_length=LENGTH,
        produces=OutputKind.VECTOR,
    )
    results = []
    for start, end in zip([0, *cuts], [*cuts, LENGTH], strict=True):
        chunk = Chunk(request_id=name, start=start, length=end - start, block_table=[0], phase=ChunkPhase.PREFILL)
        rows = STATES[end - pooler.rows(chunk, sequence) : end].clone()
        results.append(pooler.pool(rows, chunk, sequence))
        rows.fill_(torch.nan)  # what is kept has to be a copy
    assert [result is None for result in results] == [True] * len(cuts) + [False]
    return results[-1]


@pytest.mark.parametrize("cuts", [[], [4], [1, 2, 8]])
@pytest.mark.parametrize("kind", POOLERS)
def test_a_vector_is_the_same_for_any_cut(kind, cuts):
    plain = vector_pooler(PoolingRules(kind=kind, normalize=False))
    torch.testing.assert_close(pooled(plain, cuts), WANT[kind])
    normal = vector_pooler(PoolingRules(kind=kind, normalize=True))
    torch.testing.assert_close(pooled(normal, cuts), F.normalize(WANT[kind], dim=0))


def test_what_was_gathered_before_a_preemption_or_an_abort_counts_no_more():
    pooler = vector_pooler(PoolingRules(kind="mean", normalize=False))
    sequence = Sequence(
        request_id="r", tokens=[0] * 9, prompt_length=9, sampling=SamplingParams(max_tokens=0), announced_length=9
    )
    chunk = Chunk(request_id="r", start=0, length=4, block_table=[0], phase=ChunkPhase.PREFILL)
    assert pooler.pool(torch.ones(4, 6), chunk, sequence) is None
    torch.testing.assert_close(pooled(pooler, [5]), WANT["mean"])
    pooler.pool(torch.ones(4, 6), chunk, sequence)
    pooler.forget("r")
    assert pooler._so_far == {}
