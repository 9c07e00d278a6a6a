"""What a machine has is shared out among engines before any is started."""

import json
import os
import sys
from types import SimpleNamespace

import psutil
import pytest

from configs.model.source import ModelError, resolve_model
from configs.settings import Settings
from engine import device
from engine.ipc.share import Share, decode_share, visible_devices
from engine.machine import free_memory, usable_cores
from server.engines import commands
from server.engines.commands import CannotShare, engine_commands, shares

GIB = 2**30


def machine(memory=8 * GIB, cores=8, gpus=()):
    return {
        "memory": {"amount": memory, "source": "the test"},
        "cores": {"amount": cores, "source": "the test"},
        "gpus": list(gpus),
    }


def test_parts_are_equal_and_together_no_more_than_there_is(caplog):
    parts = shares(Settings(engines=3), machine(memory=8 * GIB + 1, cores=8))
    assert [part.engine for part in parts] == ["engine-0", "engine-1", "engine-2"]
    assert {(part.memory, part.cores, part.engines) for part in parts} == {((8 * GIB + 1) // 3, 2, 3)}
    assert all(part.devices == [] for part in parts) and not caplog.text


def test_more_engines_than_cores_have_one_thread_each_and_a_warning(caplog):
    assert [part.cores for part in shares(Settings(engines=3), machine(cores=2))] == [1, 1, 1]
    assert "3 engines on 2 cores (the test)" in caplog.text


def test_gpus_are_shared_out_in_order():
    parts = shares(Settings(engines=2, tensor_parallel=2), machine(cores=1, gpus=["4", "5", "6", "7"]))
    assert [part.devices for part in parts] == [["4", "5"], ["6", "7"]]


@pytest.mark.parametrize("found", [{"refused": "too few GPUs"}, {}, {"memory": None}])
def test_a_machine_that_cannot_be_shared_is_refused_in_words(found):
    with pytest.raises(CannotShare, match="too few GPUs" if found.get("refused") else "could not be measured"):
        shares(Settings(engines=2), found)


def test_one_engine_is_started_without_measuring_anything(monkeypatch):
    monkeypatch.setattr(commands, "_measured", lambda settings: pytest.fail("measured"))
    (line,) = engine_commands(Settings(), resolve_model(None)).values()
    assert "--share" not in line


def test_each_command_line_has_its_part(monkeypatch):
    monkeypatch.setattr(commands, "_measured", lambda settings: machine())
    lines = engine_commands(Settings(engines=2, kv_disk_path="kv"), resolve_model(None))
    assert list(lines) == ["engine-0", "engine-1"]
    for name, line in lines.items():
        share = decode_share(line[line.index("--share") + 1])
        assert (share.engine, share.memory, share.cores) == (name, 4 * GIB, 4)
        assert json.loads(line[line.index("--settings") + 1])["kv_disk_path"] == "kv"


@pytest.mark.processes
def test_the_machine_is_measured_by_a_process_that_sees_no_keys(monkeypatch):
    monkeypatch.setenv("HEADRACE_API_KEY", "secret")
    parts = shares(Settings(engines=2, device="cpu"), commands._measured(Settings(engines=2, device="cpu")))
    assert 0 < 2 * parts[0].memory <= psutil.virtual_memory().total
    assert parts[0].cores == max(1, int(usable_cores().amount) // 2)


@pytest.mark.processes
@pytest.mark.parametrize(
    ("program", "said"),
    [("import sys; sys.exit('no such thing')", "no such thing"), ("print()", "could not be measured")],
)
def test_a_measurement_that_fails_is_told_in_one_sentence(program, said, monkeypatch, tmp_path):
    script = tmp_path / "python"
    script.write_text(f"#!{sys.executable}\n{program}\n")
    script.chmod(0o755)
    monkeypatch.setattr(commands, "sys", SimpleNamespace(executable=str(script)))
    with pytest.raises(CannotShare, match=said):
        engine_commands(Settings(engines=2), resolve_model(None))


def test_an_engine_takes_no_more_than_its_part(monkeypatch):
    monkeypatch.setattr(os, "environ", {**os.environ})
    Share(engine="engine-1", engines=4, memory=1000, cores=1, devices=["2", "3"]).take()
    assert (free_memory().amount, free_memory().source) == (1000, "its part with --engines 4")
    assert usable_cores().amount == 1
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "2,3"
    assert visible_devices(1) == ["2"]
    Share(engine="engine-1", engines=4, memory=2**62, cores=999, devices=[]).take()
    assert free_memory().amount < 2**62 and usable_cores().amount <= (os.cpu_count() or 1)


@pytest.mark.parametrize(
    ("ranks", "needed"), [(1, "--engines 3 needs 3 GPUs and torch finds 2"), (2, "of 2 GPUs each")]
)
def test_too_few_gpus_are_refused_with_both_numbers(ranks, needed, monkeypatch):
    import torch

    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(device, "choose_device", lambda settings: device.Device("cuda", "the test"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ModelError, match=needed):
        device.gpus_for(Settings(engines=3, tensor_parallel=ranks))
    assert device.gpus_for(Settings(engines=2)) == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "6,GPU-7")
    assert device.gpus_for(Settings(engines=2)) == ["6", "GPU-7"]
    monkeypatch.setattr(device, "choose_device", lambda settings: device.Device("cpu", "the test"))
    assert device.gpus_for(Settings(engines=9)) == []
