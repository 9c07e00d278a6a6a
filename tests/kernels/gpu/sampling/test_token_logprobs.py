"""Log-probabilities, ranks and likeliest tokens against log_softmax and a full sort."""

import pytest
import torch

from kernels.gpu.sampling.logits_scan import BLOCK
from kernels.gpu.sampling.token_logprobs import reference_token_logprobs, token_logprobs


def drawn(rows, vocab, seed=0, scale=3.0):
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * scale


def check(logits, tokens, top):
    found, expected = token_logprobs(logits, tokens, top), reference_token_logprobs(logits, tokens, top)
    torch.testing.assert_close(found[0], expected[0], atol=1e-5, rtol=1e-6)
    assert torch.equal(found[1], expected[1])
    assert torch.equal(found[2], expected[2])
    torch.testing.assert_close(found[3], expected[3], atol=1e-5, rtol=1e-6)


@pytest.mark.parametrize("vocab", [1, 5, 63, 1000, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 77])
@pytest.mark.parametrize("top", [0, 1, 5, 20])
def test_definition(vocab, top):
    logits = drawn(3, vocab, vocab)
    tokens = torch.tensor([0, vocab // 2, vocab - 1])
    check(logits, tokens, min(top, vocab))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_types_of_a_model(dtype):
    check(drawn(2, 3000).to(dtype), torch.tensor([17, 2999]), 7)


def test_equals_go_by_id_and_share_a_rank():
    logits = drawn(2, BLOCK + 500, scale=1.0).round()
    best = int(logits[0].argmax())
    check(logits, torch.tensor([best, 3]), 20)
    assert (token_logprobs(logits, torch.tensor([best, 3]), 0)[1] >= 1).all()


def test_masked_tokens_and_empty_tiles():
    logits = torch.full((2, 2 * BLOCK + 10), float("-inf"))
    logits[:, BLOCK + 3 : BLOCK + 7] = torch.tensor([1.0, 3.0, 2.0, 0.0])
    logprobs, ranks, ids, values = token_logprobs(logits, torch.tensor([BLOCK + 4, 0]), 6)
    mass = torch.tensor([1.0, 3.0, 2.0, 0.0]).logsumexp(0)
    assert float(logprobs[0]) == pytest.approx(float(3 - mass))
    assert float(logprobs[1]) == float("-inf")
    assert ranks.tolist() == [1, 5]
    assert ids[0].tolist() == [BLOCK + 4, BLOCK + 5, BLOCK + 3, BLOCK + 6, -1, -1]
    torch.testing.assert_close(values[0, :4], torch.tensor([3.0, 2.0, 1.0, 0.0]) - mass)
    assert (values[:, 4:] == float("-inf")).all()


def test_an_error_code_instead_of_a_token():
    logprobs, ranks, ids, _ = token_logprobs(drawn(2, 90), torch.tensor([-2, 4]), 1)
    assert (float(logprobs[0]), int(ranks[0])) == (float("-inf"), 0)
    assert ids[0, 0] == drawn(2, 90)[0].argmax()


def test_rows_of_a_wider_matrix_and_no_rows():
    wide = torch.full((3, 500), float("nan"))
    wide[:, :300] = drawn(3, 300)
    check(wide[:, :300], torch.tensor([0, 1, 299]), 4)
    assert [len(part) for part in token_logprobs(wide[:0, :300], torch.empty(0, dtype=torch.int64), 3)] == [0] * 4


@pytest.mark.parametrize("top", [-1, 11, 129])
def test_what_cannot_be_listed_is_refused(top):
    with pytest.raises(ValueError, match="0 to 10"):
        token_logprobs(drawn(1, 10), torch.tensor([0]), top)
