"""The sum over ranks: each rank's launch by itself, between parts and flags as the others leave them.

Processes that really wait for each other are in tests/engine/tensor_parallel/test_peer_memory.py.
"""

import pytest
import torch

from kernels.gpu.rank_sum import (
    BLOCK,
    LARGEST,
    PeerMemory,
    fits,
    part_bytes,
    pieces,
    rank_sum,
    reference_rank_sum,
)

DTYPE = pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])


class Ranks:
    """Memory of some ranks in one process, of which nothing is known but that flags are zero."""

    def __init__(self, count):
        self.parts = [torch.full((part_bytes(),), 0xFF, dtype=torch.uint8) for _ in range(count)]
        self.flags = [torch.zeros(count, pieces(), dtype=torch.int32) for _ in range(count)]
        self.turns = [torch.zeros(pieces(), dtype=torch.int32) for _ in range(count)]

    def view(self, rank):
        addresses = [torch.tensor([each.data_ptr() for each in some]) for some in (self.parts, self.flags)]
        return PeerMemory(rank, len(self.parts), *addresses, self.turns[rank])

    def places(self, rank, x):
        """What each program has of x, and where that goes in the turn that is next."""
        for piece, some in enumerate(torch.split(x.flatten(), BLOCK)):
            half = (int(self.turns[rank][piece]) + 1) % 2 * LARGEST + piece * BLOCK * x.element_size()
            yield piece, some, self.parts[rank][half : half + some.nbytes].view(x.dtype)

    def put(self, rank, x, reader):
        """What another rank would leave: its part, and its flags where `reader` looks for them."""
        for piece, some, place in self.places(rank, x):
            place.copy_(some)
            self.flags[reader][rank, piece] = self.turns[reader][piece] + 1

    def sums(self, parts):
        """Of each rank, whose launch finds what the others would have left by then."""
        found, turns = [], [each.clone() for each in self.turns]
        for rank, x in enumerate(parts):
            for other in range(len(parts)):
                self.turns[other].copy_(turns[other])
                if other != rank:
                    self.put(other, parts[other], rank)
            places = list(self.places(rank, x))
            for *_, place in places:
                place.fill_(float("nan"))
            found.append(rank_sum(x, self.view(rank)))
            for piece, some, place in places:
                assert torch.equal(place, some)
                assert all(flags[rank, piece] == turns[rank][piece] + 1 for flags in self.flags)
        for each in self.turns[:-1]:
            each.copy_(self.turns[-1])
        return found


def drawn(ranks, shape, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(shape, generator=generator) * 10 ** torch.randn(1, generator=generator)).to(dtype)
        for _ in range(ranks)
    ]


def wanted(parts):
    """The reference's sum; the interpreter cuts what a GPU rounds to bf16."""
    if parts[0].dtype != torch.bfloat16:
        return reference_rank_sum(parts)
    total = reference_rank_sum([part.float() for part in parts])
    return (total.view(torch.int32) & -65536).view(torch.float32).bfloat16()


@DTYPE
@pytest.mark.parametrize("ranks", [2, 3, 8])
def test_every_rank_has_the_same_sum_in_the_order_of_ranks(dtype, ranks):
    """Turn after turn, of other sizes: programs that a smaller sum lacks are behind with their turns, on all ranks alike."""
    memory, turns = Ranks(ranks), torch.zeros(pieces(), dtype=torch.int32)
    for seed, shape in enumerate([(3, 1000), (1, 64), (2, 2049), (1, 5000)]):
        parts = drawn(ranks, shape, dtype, seed)
        for found in memory.sums(parts):
            assert torch.equal(found, wanted(parts)) and found.dtype == dtype
        turns[: -(-parts[0].numel() // BLOCK)] += 1
        assert torch.equal(memory.turns[0], turns)


def test_a_row_does_not_depend_on_the_others():
    """Nor on where it stands."""
    parts = drawn(4, (5, 700), torch.bfloat16)
    whole = Ranks(4).sums(parts)[0]
    alone = Ranks(4).sums([part[3:4].contiguous() for part in parts])[2]
    assert torch.equal(alone[0], whole[3])


def test_sums_are_rounded_once():
    parts = [torch.full((1, 8), value, dtype=torch.bfloat16) for value in (256.0, 1.0, 1.0)]
    assert Ranks(3).sums(parts)[0].tolist() == [[258.0] * 8]  # 257 is none of bf16's numbers


def test_turns_may_pass_what_32_bits_hold():
    memory = Ranks(2)
    for each in memory.turns:
        each.fill_(2**31 - 2)
    for flags in memory.flags:
        flags.fill_(2**31 - 2)
    for seed in range(3):
        parts = drawn(2, (1, 9), torch.float32, seed)
        assert torch.equal(memory.sums(parts)[1], reference_rank_sum(parts))
    assert memory.turns[0][0] == -(2**31) + 1


def test_another_that_is_a_turn_ahead_is_not_waited_for():
    memory, (mine, other) = Ranks(2), drawn(2, (1, 40), torch.float32)
    memory.put(1, other, 0)
    memory.flags[0][1, 0] = 2
    assert torch.equal(rank_sum(mine, memory.view(0)), reference_rank_sum([mine, other]))


def test_what_does_not_fit():
    memory = Ranks(2).view(0)
    large = torch.zeros(LARGEST // 4 + 1)
    assert fits(large[1:]) and not fits(large) and not fits(torch.zeros(1, dtype=torch.float64))
    for x in (large, torch.zeros(4, 4).t()):
        with pytest.raises(ValueError, match="contiguous"):
            rank_sum(x, memory)
    assert rank_sum(torch.zeros(0, 4), memory).shape == (0, 4)
    assert pieces() * BLOCK * 2 == LARGEST
