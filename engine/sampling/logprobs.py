"""Log-probabilities under the model's raw logits: of a given token, its rank, and of the likeliest tokens."""

import torch
from torch import Tensor

from scheduler.types.step import TokenLogprobs

ROWS_AT_ONCE = 64  # bounds the temporaries of a long prompt chunk: 64 rows of 150k fp32 are 38 MB


def describe(logits: Tensor, token_ids: list[int], top: int) -> list[TokenLogprobs]:
    """One entry for each row of `logits` [rows, vocabulary] fp32: `token_ids[row]` and the `top` likeliest tokens.

    rank = 1 + how many tokens are strictly likelier. Logits are left as they are.
    """
    entries = []
    for start in range(0, len(token_ids), ROWS_AT_ONCE):
        end = start + ROWS_AT_ONCE
        entries += _describe(logits[start:end], token_ids[start:end], min(top, logits.shape[1]))
    return entries


def _describe(logits: Tensor, token_ids: list[int], top: int) -> list[TokenLogprobs]:
    chosen = logits.gather(1, torch.tensor(token_ids, device=logits.device).unsqueeze(1))
    ranks = ((logits > chosen).sum(dim=-1) + 1).tolist()
    normalizer = logits.logsumexp(dim=-1, keepdim=True)
    logprobs = (chosen - normalizer).squeeze(1).tolist()
    values, ids = logits.topk(top, dim=-1)
    likeliest = zip((values - normalizer).tolist(), ids.tolist(), strict=True)
    return [
        TokenLogprobs(token_id=token, logprob=logprob, rank=rank, top=list(zip(top_ids, top_logprobs, strict=True)))
        for token, logprob, rank, (top_logprobs, top_ids) in zip(token_ids, logprobs, ranks, likeliest, strict=True)
    ]
