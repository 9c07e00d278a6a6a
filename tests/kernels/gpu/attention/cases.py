"""Ragged batches over a poisoned pool: what no sequence owns is NaN, block tables are shuffled, outputs begin as NaN."""

import os
import random
import subprocess
import sys
from copy import copy
from dataclasses import dataclass

import torch

from kernels.gpu.attention.decode_work import plan_decode

NAN = float("nan")
NO_RESERVE = 0x4000  # of Linux's mmap: memory that is never touched needs no backing; Python 3.11 has no name for it


@dataclass
class Case:
    """Sequences as (query rows, keys), heads as (query heads, KV heads)."""

    lengths: list[tuple[int, int]]
    heads: tuple[int, int] = (4, 2)
    dim: int = 16
    block_size: int = 16
    dtype: torch.dtype = torch.float32
    fp8: bool = False
    seed: int = 0

    def __post_init__(self):
        generator = torch.Generator().manual_seed(self.seed)
        rows, (heads, kv_heads) = sum(rows for rows, _ in self.lengths), self.heads
        counts = [-(-keys // self.block_size) for _, keys in self.lengths]
        blocks, most = sum(counts) + 3, max([*counts, 1]) + 1
        self.q = torch.randn(rows, heads, self.dim, generator=generator).to(self.dtype)
        self.row_starts = torch.tensor([0, *(rows for rows, _ in self.lengths)]).cumsum(0).int()
        self.kv_lengths = torch.tensor([keys for _, keys in self.lengths], dtype=torch.int32)
        # The second of two layers is ours.
        layers = torch.full((blocks, 2, 2, kv_heads, self.block_size, self.dim), NAN)
        kv = layers[:, 1]
        ids = random.Random(self.seed).sample(range(blocks), blocks)
        # Past its end, a table holds an id that no pool has: to use it would be to read foreign memory.
        self.block_tables = torch.full((len(self.lengths), most), 2**31 - 1, dtype=torch.int32)
        for index, (count, (_, keys)) in enumerate(zip(counts, self.lengths, strict=True)):
            for entry in range(count):
                block, tokens = ids.pop(), min(self.block_size, keys - entry * self.block_size)
                self.block_tables[index, entry] = block
                kv[block, :, :, :tokens] = torch.randn(2, kv_heads, tokens, self.dim, generator=generator)
        self.scales = None
        if self.fp8:
            self.scales = torch.rand(blocks, 2, 2, kv_heads, generator=generator)[:, 1] * 0.05 + 0.01
            layers[:, 1] /= self.scales[..., None, None]
        self.kv = layers.to(torch.float8_e4m3fn if self.fp8 else self.dtype)[:, 1]

    @property
    def longest(self):
        return max(rows for rows, _ in self.lengths)

    def shared(self):
        """Arguments of kernel and reference alike."""
        return (self.q, self.kv, self.row_starts, self.kv_lengths, self.block_tables)

    def work(self, window=0, longest=None):
        """What the kernel for one row per sequence has to do."""
        starts = torch.arange(len(self.lengths), dtype=torch.int32) * self.block_tables.shape[1]
        longest = longest or max(keys for _, keys in self.lengths)
        tables = self.block_tables.flatten()
        return plan_decode(self.kv_lengths, starts, tables, kv_heads=self.heads[1], longest_kv=longest, window=window)

    def alone(self, index):
        """The same sequence, and no other."""
        row, one = slice(index, index + 1), copy(self)
        one.lengths, one.q, one.kv_lengths = self.lengths[row], self.q[row], self.kv_lengths[row]
        one.block_tables = self.block_tables[row]
        return one

    def far(self, memory, stride):
        """A pool over `memory` with blocks 1, 2, 0 `stride` fp16 elements apart: the first sequence's first three blocks.

        The interpreter copies the pool it is given, so this is one of a single block, whose stride is right.
        """
        for place, block in zip((1, 2, 0), self.block_tables[0, :3].tolist(), strict=True):
            values = self.kv[block].flatten()
            offset = place * stride * values.itemsize
            torch.frombuffer(memory, dtype=values.dtype, offset=offset, count=len(values)).copy_(values)
        first = torch.frombuffer(memory, dtype=self.kv.dtype, count=self.kv[0].numel()).view(self.kv[0].shape)
        return first.as_strided((1, *first.shape), (stride, *first.stride()))

    def poisoned(self):
        """A place for the result."""
        return torch.full_like(self.q, NAN)


# One unit in the type's last place: the interpreter truncates to bf16 where a GPU rounds.
TOLERANCES = {torch.float32: 2e-5, torch.float16: 1e-3, torch.bfloat16: 2**-8}
RELATIVE = {torch.float32: 0.0, torch.float16: 2**-10, torch.bfloat16: 2**-7}


def assert_close(found, wanted):
    torch.testing.assert_close(found, wanted, rtol=RELATIVE[found.dtype], atol=TOLERANCES[found.dtype])


def compiles(module, variant, arch):
    """Whether a variant builds for `arch` and fits it. In a process of its own: here, Triton interprets."""
    code = (
        f"import {module.__name__} as module; from kernels.gpu.build import _configured_as, build\n"
        f"wanted = [v for v in module.VARIANTS if v.name == {variant!r} and (not v.archs or _configured_as({arch}) in v.archs)]\n"
        f"assert build('', wanted[0], {arch}).fits"
    )
    environment = os.environ | {"TRITON_INTERPRET": "0"}
    return subprocess.run([sys.executable, "-W", "ignore", "-c", code], env=environment, check=False).returncode == 0
