"""Memory that all ranks can reach: when there is none, and sums in it by processes that really wait for each other."""

import mmap
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from engine.tensor_parallel.peer_memory import peer_memory
from engine.tensor_parallel.process_group import TorchProcessGroup
from kernels.gpu.rank_sum import LARGEST, flag_bytes, part_bytes, pieces, reference_rank_sum
from tests import source_tree

pytestmark = pytest.mark.processes

CPU = torch.device("cpu")
ROOT = source_tree.ROOT


class File:
    """Stands in for a GPU's memory that others can reach: a file that every rank has mapped, which has its piece for each."""

    def __init__(self, path, ranks, *, reaches=True, error=None):
        self.path, self.ranks, self.near, self.error = Path(path), ranks, reaches, error

    def reaches(self, ranks):
        return self.near

    def make(self, nbytes):
        if self.error is not None:
            raise self.error
        with self.path.open("r+b") as file:
            mapped = mmap.mmap(file.fileno(), 0)
        start = torch.frombuffer(mapped, dtype=torch.uint8).data_ptr()
        return [start + rank * nbytes for rank in range(self.ranks)], mapped

    @classmethod
    def of(cls, path, ranks, **options):
        path.write_bytes(bytes(ranks * (part_bytes() + flag_bytes(ranks))))
        return cls(path, ranks, **options)


def test_a_view_has_every_ranks_parts_and_flags_and_its_own_turns(tmp_path):
    shared, asked = File.of(tmp_path / "memory", 3), []
    memory = peer_memory(shared, 1, 3, CPU, lambda number: asked.append(number) or int(number))
    assert (memory.rank, memory.ranks) == (1, 3)
    assert memory.parts.diff().tolist() == [part_bytes() + flag_bytes(3)] * 2
    assert torch.equal(memory.flags - memory.parts, torch.full((3,), part_bytes()))
    assert memory.turns.tolist() == [0] * pieces()
    assert len(asked) == 2  # whether all reach all, and whether all have made theirs


@pytest.mark.parametrize(
    ("options", "others", "said"),
    [
        ({"reaches": False}, 1, "cannot all reach"),
        ({}, 0, "cannot all reach"),
        ({"error": RuntimeError("no fabric handle")}, 1, "no fabric handle"),
        ({"error": ImportError("no such module")}, 1, "no such module"),
    ],
)
def test_where_one_rank_has_none_no_rank_has_any(tmp_path, caplog, options, others, said):
    caplog.set_level("INFO")
    shared = File.of(tmp_path / "memory", 3, **options)
    assert peer_memory(shared, 0, 3, CPU, lambda number: min(int(number), others)) is None
    assert said in caplog.text


SIZES = [(3, 1000), (1, 64), (7, 2049), (1, 1), (2, 3000)] * 3
LARGE = (1, LARGEST // 4 + 1)


def drawn(rank, seed, size):
    return torch.randn(size, generator=torch.Generator().manual_seed(100 * seed + rank))


def rank_process(rank, ranks, folder):
    """A rank of real processes: sums of many sizes, one after the other, and one that is too large for one launch."""
    torch.set_num_threads(1)
    group = TorchProcessGroup(
        rank, ranks, f"file://{folder}/meet", CPU, timeout=60, shared=File(f"{folder}/memory", ranks)
    )
    sums = [group.sum(drawn(rank, seed, size)) for seed, size in enumerate([*SIZES, LARGE])]
    torch.save((sums, group._peers.turns), f"{folder}/{rank}.pt")
    group.close()


@pytest.mark.processes
@pytest.mark.long
def test_three_processes_add_in_the_order_of_ranks(tmp_path):
    ranks, code = 3, "import sys\nfrom tests.engine.tensor_parallel.test_peer_memory import rank_process as run\n"
    code += "run(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])"
    File.of(tmp_path / "memory", ranks)
    environment = os.environ | {"TRITON_INTERPRET": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": str(ROOT)}
    running = [
        subprocess.Popen([sys.executable, "-W", "ignore", "-c", code, str(rank), str(ranks), tmp_path], env=environment)
        for rank in range(ranks)
    ]
    try:
        assert [process.wait(240) for process in running] == [0] * ranks
    finally:
        for process in running:
            process.kill()
            process.wait()
    for rank in range(ranks):
        sums, turns = torch.load(tmp_path / f"{rank}.pt")
        for seed, (found, size) in enumerate(zip(sums, [*SIZES, LARGE], strict=True)):
            assert torch.equal(found, reference_rank_sum([drawn(each, seed, size) for each in range(ranks)]))
        assert int(turns[0]) == len(SIZES)
