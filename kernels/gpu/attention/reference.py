"""What the attention kernels here compute, in plain torch by definition: gather, score all pairs, mask, softmax, in fp64."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Attention:
    """The result of `reference_attention`.

    Attributes:
        out: [rows, heads, dim] in the type of the queries.
        log_sums: fp32 [rows, heads], log-sum-exp of each row's scores; -inf if the row sees no key.
        mass: fp32 [sequences, kv_heads, longest], share of each position in the attention of the sequence's last row, averaged
            over the query heads of a KV head; 0 past the sequence's end.
    """

    out: Tensor
    log_sums: Tensor
    mass: Tensor


def reference_attention(
    q: Tensor,
    kv: Tensor,
    row_starts: Tensor,
    kv_lengths: Tensor,
    block_tables: Tensor,
    *,
    scale: float,
    window: int = 0,
    soft_cap: float = 0.0,
    scales: Tensor | None = None,
    causal: bool = True,
) -> Attention:
    """Attention of a ragged batch over paged blocks; arguments as in `paged_attention`. Rows of no sequence get 0 and -inf."""
    _, heads, dim = q.shape
    kv_heads = kv.shape[2]
    out, log_sums = torch.zeros_like(q), torch.full(q.shape[:2], float("-inf"))
    mass = torch.zeros(len(kv_lengths), kv_heads, int(kv_lengths.max()))
    for index, length in enumerate(kv_lengths.tolist()):
        rows = slice(int(row_starts[index]), int(row_starts[index + 1]))
        keys, values = _gather(kv, scales, block_tables[index], length)
        queries = q[rows].double().view(-1, kv_heads, heads // kv_heads, dim)
        s = torch.einsum("rkgd,knd->rkgn", queries, keys) * scale
        if soft_cap:
            s = soft_cap * (s / soft_cap).tanh()
        count = len(queries)
        if causal:
            distance = torch.arange(length - count, length)[:, None] - torch.arange(length)
            s = s.masked_fill(((distance < 0) | (distance >= (window or length + 1)))[:, None, None], float("-inf"))
        weights = s.softmax(dim=-1)
        out[rows] = torch.einsum("rkgn,knd->rkgd", weights, values).flatten(1, 2).to(q.dtype)
        log_sums[rows] = s.logsumexp(dim=-1).flatten(1, 2).float()
        if count:
            mass[index, :, :length] = weights[-1].mean(dim=1).float()
    return Attention(out, log_sums, mass)


def _gather(kv: Tensor, scales: Tensor | None, table: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Keys and values of one sequence, fp64 [kv_heads, length, dim] each."""
    blocks = table[: -(-length // kv.shape[3])].long()
    gathered = kv[blocks].float().double()  # [blocks, 2, kv_heads, block_size, dim]
    if scales is not None:
        gathered = gathered * scales[blocks].double()[..., None, None]
    keys, values = gathered.permute(1, 2, 0, 3, 4).flatten(2, 3)[:, :, :length]
    return keys, values
