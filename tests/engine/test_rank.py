"""One of several ranks as a process: how it ends, and that whatever waits for it learns why."""

import sys
import time

import pytest

from configs.model.source import resolve_model
from configs.settings import Settings
from engine.ipc.child import spawn
from engine.ipc.failures import EXIT_MODEL
from engine.ipc.private_folder import private_folder, remove_folder
from engine.tensor_parallel.group import loopback, rank_arguments, rendezvous
from tests import tiny_models

pytestmark = pytest.mark.processes

WAIT = 200  # seconds; the suite's own limit is a little longer
SETTINGS = Settings(tensor_parallel=2, device="cuda", kv_blocks=16, start_seconds=WAIT)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Three heads, which two ranks cannot share."""
    path = tmp_path_factory.mktemp("model")
    shape = {"num_hidden_layers": 1, "hidden_size": 48, "num_attention_heads": 3, "num_key_value_heads": 3}
    tiny_models.save(tiny_models.made(tiny_models.Tiny("Llama", shape), 0), path)
    return resolve_model(str(path))


@pytest.fixture
def rank(model, tmp_path):
    """Start rank 1; returns (process, the ranks' folder, the file that it logs to)."""
    folder = private_folder("headrace-ranks-")
    said = tmp_path / "said"
    # A shell that becomes the rank: `spawn` leaves stderr as it is.
    arguments = ["sh", "-c", 'exec "$@" 2> "$0"', str(said), *rank_arguments(SETTINGS, model, folder, 1)]
    process = spawn(arguments, loopback() | {"TRITON_INTERPRET": "1"})
    yield process, folder, said
    process.kill()
    process.wait()
    process.stdin.close()
    remove_folder(folder)


JOIN = """
import sys, torch
from engine.tensor_parallel.process_group import TorchProcessGroup
TorchProcessGroup(0, 2, sys.argv[1], torch.device("cpu"), timeout=float(sys.argv[2]))
sys.stdin.read()
"""


def test_a_rank_that_cannot_serve_the_model_says_why(rank):
    """The first rank is a process that can be ended: the other may leave before the two have met, and nobody comes then."""
    process, folder, said = rank
    first = spawn([sys.executable, "-c", JOIN, rendezvous(folder), str(WAIT)], loopback())
    try:
        assert process.wait(WAIT) == EXIT_MODEL
        assert folder.exists(), "it is the first rank's to remove"
    finally:
        first.kill()
        first.wait()
        first.stdin.close()
    assert "--tensor-parallel 2: 3 attention heads cannot be split over 2 ranks evenly" in said.read_text()
    assert "Fatal" not in said.read_text()


@pytest.mark.parametrize("reached", ["", "1", "meet"])
def test_a_rank_ends_with_the_first_wherever_it_is(rank, reached):
    """Before it has found the folder, when it has put its socket there, and where it waits for the first to join, in a call that
    looks at nothing else."""
    process, folder, said = rank
    deadline = time.monotonic() + WAIT
    while not (folder / reached).exists():
        assert process.poll() is None and time.monotonic() < deadline, said.read_text()
        time.sleep(0.001)
    process.stdin.close()
    assert process.wait(WAIT) == 0
    assert not list(folder.parent.glob(f"{folder.name}*"))
    assert said.read_text() == ""


def test_a_rank_that_finds_no_folder_fails_and_makes_none(rank):
    process, folder, said = rank
    remove_folder(folder)
    assert process.wait(WAIT) == 1
    assert not list(folder.parent.glob(f"{folder.name}*"))
    assert "this rank fails" in said.read_text()
