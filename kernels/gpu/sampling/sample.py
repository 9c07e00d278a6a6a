"""From logits to one token per row, on the GPU, without a host sync, each row with its own settings.

The order is that of `engine/sampling/sampler.py`:

1. penalties (`kernels.gpu.sampling.penalties`), read with the logits, never written;
2. the largest logit: the answer of greedy rows and the health check of all (`kernels.gpu.sampling.logits_scan`);
3. temperature, then min_p, then top_k, then top_p (`kernels.gpu.sampling.top_k_top_p`);
4. the draw: the Gumbel-max trick on counter-based noise (`kernels.gpu.sampling.gumbel`).

`logit_bias`, bad words and `min_tokens` edit a few logits before (`engine/sampling`); log-probabilities are of the raw logits
and have a kernel of their own (`kernels.gpu.sampling.token_logprobs`).

The same seed and position draw the same token from the same logits in any batch. The tokens differ from the CPU sampler's, which
inverts the distribution function; the distribution is the same.

Floor: one read of the logits, 2 or 4 bytes per token, if no row is limited, plus 4 bytes per token of penalized rows; limited
rows read the tiles that hold candidates twice more. 128 rows of 128256 in bf16: 7 us per read at 4.8 TB/s. Launches: 2, or 5
with limited rows. Scratch: next to nothing; with limited rows 8 bytes per token for at most `ROWS_AT_ONCE` rows.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
import triton
from torch import Tensor

from kernels.gpu.runtime import sent
from kernels.gpu.sampling import logits_scan
from kernels.gpu.sampling.gumbel import reference_gumbel
from kernels.gpu.sampling.logits_scan import BLOCK, GROUP, WARPS
from kernels.gpu.sampling.penalties import reference_penalized
from kernels.gpu.sampling.top_k_top_p import CHUNK, choose_kernel, collect_kernel, count_kernel

ALL_MASKED = int(logits_scan.ALL_MASKED.value)  # -1, in place of a token
NOT_FINITE = int(logits_scan.NOT_FINITE.value)  # -2, in place of a token
ROWS_AT_ONCE = 128  # bounds the scratch of limited rows: 131 MB at 128256 tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class RowSettings:
    """What one row asks of the sampler; the defaults are "off".

    Attributes:
        temperature: 0 is greedy.
        top_k: 0 is off.
        top_p: 1 is off.
        min_p: 0 is off.
        repetition: penalty, 1 is off.
        presence: penalty, 0 is off.
        frequency: penalty, 0 is off.
        seed: any integer.
        position: of the drawn token in its sequence.
        slot: of the request in the token counts; read only if a penalty is on.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition: float = 1.0
    presence: float = 0.0
    frequency: float = 0.0
    seed: int = 0
    position: int = 0
    slot: int = 0

    @property
    def limited(self) -> bool:
        """Whether top_k, top_p or min_p is on."""
        return self.temperature > 0 and (self.top_k > 0 or self.top_p < 1 or self.min_p > 0)

    @property
    def penalized(self) -> bool:
        """Whether a penalty is on."""
        return self.repetition != 1 or self.presence != 0 or self.frequency != 0


def key_of(seed: int) -> int:
    """The random key of a request: any integer to 64 bits, signed as tensors are; neighbouring seeds get unrelated keys."""
    digest = hashlib.blake2b(f"{seed:x}".encode(), digest_size=8, person=b"headrace").digest()
    return int.from_bytes(digest, "little", signed=True)


@dataclass(frozen=True, slots=True)
class BatchSettings:
    """BatchSettings of all rows on the device, in the order of the columns in `kernels.gpu.sampling.penalties`.

    They are valid for as many steps as the rows stay the same, except for the position, which `advance` moves on the device.

    Attributes:
        floats: fp32 [rows, 6]: temperature, log(min_p), top_p, repetition, presence, frequency.
        ints: int64 [rows, 4]: top_k, key, position, slot.
        limited: whether any row is limited by top_k, top_p or min_p.
        penalized: whether any row has a penalty.
    """

    floats: Tensor
    ints: Tensor
    limited: bool
    penalized: bool

    @classmethod
    def of(cls, rows: Sequence[RowSettings], device: torch.device) -> "BatchSettings":
        """Collect `rows` and send them in two copies, from pinned memory if the device is a GPU."""
        floats = [
            (
                row.temperature,
                math.log(row.min_p) if row.min_p > 0 else -math.inf,
                row.top_p,
                row.repetition,
                row.presence,
                row.frequency,
            )
            for row in rows
        ]
        ints = [(row.top_k, key_of(row.seed), row.position, row.slot) for row in rows]
        return cls(
            sent(torch.tensor(floats, dtype=torch.float32).view(-1, 6), device),
            sent(torch.tensor(ints, dtype=torch.int64).view(-1, 4), device),
            any(row.limited for row in rows),
            any(row.penalized for row in rows),
        )

    def advance(self, tokens: int = 1) -> None:
        """Move every row's position on by `tokens`, in place."""
        self.ints[:, 2] += tokens

    def __getitem__(self, rows: slice) -> "BatchSettings":
        return BatchSettings(self.floats[rows], self.ints[rows], self.limited, self.penalized)


def sample(logits: Tensor, settings: BatchSettings, counts: Tensor | None = None) -> Tensor:
    """One token for each row: int64 [rows], or an error code: `ALL_MASKED` (-1) or `NOT_FINITE` (-2).

    Args:
        logits: [rows, vocab], any float type, columns contiguous; -inf marks masked tokens. Not changed.
        settings: of the same rows.
        counts: int32 [slots, vocab] as `count_tokens` keeps them; needed if a row has a penalty.

    Raises:
        ValueError: the shapes do not agree, or a penalty is asked for without counts.
    """
    _check(logits, settings, counts)
    tokens = torch.empty(len(logits), dtype=torch.int64, device=logits.device)
    step = ROWS_AT_ONCE if settings.limited else max(len(logits), 1)
    for start in range(0, len(logits), step):
        rows = slice(start, start + step)
        _sample(logits[rows], settings[rows], counts, tokens[rows])
    return tokens


def _check(logits: Tensor, settings: BatchSettings, counts: Tensor | None) -> None:
    if logits.ndim != 2 or logits.stride(1) != 1 or len(settings.floats) != len(logits):
        raise ValueError(
            f"logits {list(logits.shape)} with strides {logits.stride()} for settings of {len(settings.floats)} rows: "
            "pass [rows, vocab] with contiguous columns and one row of settings for each"
        )
    if settings.penalized and (counts is None or counts.shape[1] != logits.shape[1] or not counts.is_contiguous()):
        raise ValueError(f"a penalty is on: pass counts, contiguous int32 [slots, {logits.shape[1]}]")


def _sample(logits: Tensor, settings: BatchSettings, counts: Tensor | None, tokens: Tensor) -> None:
    """Fill `tokens` for rows that are handled together."""
    rows, vocab = logits.shape
    tiles = triton.cdiv(vocab, BLOCK)
    real, whole = partial(logits.new_empty, dtype=torch.float32), partial(logits.new_empty, dtype=torch.int32)
    peaks, masses, scores = real((3, rows, tiles))
    peak_ids, winners, faults, listed = whole((4, rows, tiles))
    group_peaks = real((rows * tiles * (BLOCK // GROUP) if settings.limited else 1,))
    row_peaks, row_totals, bounds = real((3, rows))
    table = counts if settings.penalized else peak_ids  # never read where no row has a penalty
    read = (logits, table, settings.floats, settings.ints)
    logits_scan.scan_kernel[(rows, tiles)](
        *read, peaks, peak_ids, masses, scores, winners, faults, group_peaks, logits.stride(0), vocab, tiles,
        PENALIZE=settings.penalized, LIMITED=settings.limited, BLOCK=BLOCK, GROUP=GROUP, num_warps=WARPS,
    )  # fmt: skip
    groups = tiles * (BLOCK // GROUP)
    width = logits_scan.padded(tiles)
    logits_scan.settle_kernel[(rows,)](
        *read[2:], peaks, peak_ids, masses, scores, winners, faults, group_peaks, tokens, row_peaks, row_totals, bounds,
        vocab, tiles, groups,
        LIMITED=settings.limited, TILES=width, GROUPS=triton.next_power_of_2(groups), num_warps=4,
    )  # fmt: skip
    if not settings.limited:
        return
    values = real((rows, vocab))
    value_ids = whole((rows, vocab))
    count_kernel[(rows, tiles)](
        *read, peaks, row_peaks, bounds, tokens, listed, logits.stride(0), vocab, tiles,
        PENALIZE=settings.penalized, BLOCK=BLOCK, num_warps=WARPS,
    )  # fmt: skip
    collect_kernel[(rows, tiles)](
        *read, row_peaks, bounds, tokens, listed, values, value_ids, logits.stride(0), vocab, tiles,
        PENALIZE=settings.penalized, BLOCK=BLOCK, TILES=width, num_warps=WARPS,
    )  # fmt: skip
    choose_kernel[(rows,)](
        *read[2:], row_peaks, row_totals, bounds, tokens, listed, values, value_ids, vocab, tiles,
        TILES=width, CHUNK=CHUNK, num_warps=WARPS,
    )  # fmt: skip


def reference_sample(logits: Tensor, settings: BatchSettings, counts: Tensor | None = None) -> Tensor:
    """What `sample` computes, row by row, by sorting, with the same noise, in fp64."""
    tokens = []
    for row, floats, ints in zip(logits, settings.floats.tolist(), settings.ints.tolist(), strict=True):
        temperature, log_min_p, top_p, repetition, presence, frequency = floats
        x = row.float()
        if counts is not None and (repetition, presence, frequency) != (1.0, 0.0, 0.0):
            x = reference_penalized(x, counts[ints[3]], repetition, presence, frequency)
        if not bool((x < math.inf).all()):
            tokens.append(NOT_FINITE)
        elif bool((x == -math.inf).all()):
            tokens.append(ALL_MASKED)
        elif temperature == 0:
            tokens.append(int((x == x.max()).nonzero()[0]))
        else:
            logs = (x - x.max()).double() / max(temperature, logits_scan.TINIEST.value)
            kept = reference_kept(x, logs, log_min_p, ints[0], top_p)
            scores = logs + reference_gumbel(ints[1], ints[2], len(x))
            tokens.append(int(scores.masked_fill(~kept, -math.inf).argmax()))
    return torch.tensor(tokens, dtype=torch.int64)


def reference_kept(x: Tensor, logs: Tensor, log_min_p: float, top_k: int, top_p: float) -> Tensor:
    """Which tokens of one row min_p, top_k and top_p leave, bool [vocab]; `logs` are its log-weights."""
    order = x.sort(descending=True, stable=True).indices  # equal values by id
    order = order[(logs[order] >= log_min_p) & (x[order] > -math.inf)]
    if top_k > 0:
        order = order[:top_k]
    if top_p < 1:
        weights = logs[order].exp()
        before = weights.cumsum(0) - weights
        order = order[: max(int((before < top_p * weights.sum()).sum()), 1)]
    return torch.zeros(len(x), dtype=torch.bool).index_fill_(0, order, True)
