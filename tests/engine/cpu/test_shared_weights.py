"""Weights that several engines map: packed once, whole or not at all, whoever dies meanwhile."""

import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from configs.settings import Settings
from engine.backend import Startup
from engine.cpu.backend import CpuBackend
from engine.cpu.shared_weights import SharedWeights
from engine.ipc.child import spawn
from engine.ipc.share import Share
from engine.ipc.shared_memory import shared_memory

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="this system has no memory without a name")
SECONDS = 60.0  # for a process to start on a busy machine

# Packs a layer, says so, and goes on when something is written to its pipe.
PACKER = """
import os, sys
sys.path.insert(0, {root!r})
from tests.engine.cpu.test_shared_weights import pack, shared
def slowly(place):
    place(pack(place))
    os.write({said}, b".")
    os.read({go}, 1)
    return pack(place)
shared({memory}).get("key", slowly)
os.write({said}, b"!")
"""


@pytest.fixture
def memory():
    descriptor = shared_memory("test-weights")
    yield descriptor
    os.close(descriptor)


@dataclass
class Packed:
    layers: list[object]
    head: torch.Tensor
    norm: torch.Tensor
    window: int


def shared(memory, **options):
    return SharedWeights(memory, [Packed], **options)


def pack(place):
    tied = place({"matrix": torch.arange(12.0).view(3, 4)})
    return Packed(
        layers=[place(torch.arange(5000, dtype=torch.uint8)), tied],
        head=tied["matrix"],
        norm=torch.ones(7),
        window=3,
    )


def twice(place):
    pytest.fail("packed again")


def check(weights):
    table, tied = weights.layers
    assert table.equal(torch.arange(5000, dtype=torch.uint8)) and weights.norm.equal(torch.ones(7))
    assert tied["matrix"].equal(torch.arange(12.0).view(3, 4)) and tied["matrix"] is weights.head
    assert weights.window == 3


def test_the_first_packs_and_the_others_map(memory):
    for weights in (shared(memory).get("key", pack), shared(memory).get("key", twice)):
        check(weights)
        assert weights.layers[0].data_ptr() % 64 == weights.norm.data_ptr() % 64 == 0
    with pytest.raises(PermissionError):
        os.pwrite(memory, b"no", 100)
    size = os.fstat(memory).st_size
    assert 5000 + 48 + 28 < size < 5000 + 4096, "each tensor once"


def test_other_weights_are_not_taken_for_these(memory, caplog):
    shared(memory).get("key", lambda place: place(torch.zeros(3)))
    check(shared(memory).get("another", pack))
    assert "this engine holds weights of its own: the model's files" in caplog.text


def test_what_cannot_be_packed_leaves_the_memory_to_the_next(memory):
    def broken(place):
        place(torch.zeros(9))
        raise ValueError("no such tensor")

    with pytest.raises(ValueError, match="no such tensor"):
        shared(memory).get("key", broken)
    assert os.fstat(memory).st_size == 0
    check(shared(memory).get("key", pack))


def test_where_memory_is_full_each_has_its_own(memory, caplog, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    check(shared(memory).get("key", pack))
    assert "No space left" in caplog.text


@pytest.fixture
def packer(memory):
    """A process that has begun to pack, and a function that lets it go on."""
    said, says = os.pipe()
    hears, go = os.pipe()
    code = PACKER.format(root=str(Path(__file__).parents[3]), memory=memory, said=says, go=hears)
    process = spawn([sys.executable, "-c", code], descriptors=[memory, says, hears])
    assert os.read(said, 1) == b"."
    yield SimpleNamespace(process=process, go_on=lambda: os.write(go, b"."), said=lambda: os.read(said, 1))
    process.kill()
    process.wait()
    process.stdin.close()
    for descriptor in (said, says, hears, go):
        os.close(descriptor)


@pytest.mark.processes
def test_the_others_pack_if_the_first_is_killed_while_it_does(memory, packer):
    packer.process.send_signal(signal.SIGKILL)
    packer.process.wait()
    check(shared(memory).get("key", pack))
    check(shared(memory).get("key", twice))


@pytest.mark.processes
def test_the_others_wait_for_the_first_but_not_for_one_that_is_stuck(memory, packer, caplog):
    check(shared(memory, stalled_seconds=0.05).get("key", pack))
    assert "this engine holds weights of its own: another one has packed nothing for 0.05 s" in caplog.text
    packer.go_on()
    check(shared(memory).get("key", twice))
    assert packer.said() == b"!"


def test_a_backend_packs_for_all_engines_and_computes_what_one_does(memory, monkeypatch, tiny_model):
    """Both kinds of arithmetic have the same way there; this is the exact one's."""
    from configs.model.source import resolve_model
    from engine.models.registry import read_config
    from engine.sequence_input import SequenceInput

    source = resolve_model(str(tiny_model("llama")[1]))
    settings = Settings(cpu_precision="exact", kv_blocks=8)
    rows = SequenceInput(token_ids=[3, 4, 5], start=0, block_table=[0])

    def hidden():
        startup = Startup(settings, source, read_config(source), lambda name: memoryview(b""), lambda work: work())
        backend = CpuBackend(startup, "for the test")
        plan = backend.plan()
        return plan, backend.load(plan)._model.forward([rows])

    alone, expected = hidden()
    share = Share(engine="engine-0", engines=2, memory=2**40, cores=1, devices=[], weights=memory)
    monkeypatch.setenv("HEADRACE_ENGINE_SHARE", share.encode())
    for _ in range(2):
        plan, found = hidden()
        assert found.equal(expected) and (plan.weights, plan.weights_holders) == (alone.weights, 2)
    assert os.fstat(memory).st_size > alone.weights
