"""The host's sampler as a server has it."""

from collections.abc import Collection

from engine.sampling.registry import standard_edits
from engine.sampling.sampler import CpuSampler


def cpu_sampler(vocab_size: int, eos_token_ids: Collection[int]) -> CpuSampler:
    return CpuSampler(vocab_size, standard_edits(vocab_size, eos_token_ids))
