"""Which device computes: what is asked for, and what this machine has."""

import os

import pytest
import torch

from configs.model.source import ModelError
from configs.settings import Settings
from engine import device
from engine.device import choose_device


@pytest.fixture
def driver(monkeypatch):
    """As if there were a driver, and torch saw GPUs of this compute capability, or none."""

    def make(capability, count=1):
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(device.ctypes, "CDLL", lambda name: None)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "a GPU")

    return make


def test_the_cpu_is_taken_unseen_when_it_is_asked_for(monkeypatch):
    monkeypatch.setattr(device, "_no_driver", lambda: pytest.fail("looked"))
    assert choose_device(Settings(device="cpu")).kind == "cpu"


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_auto_is_the_cpu_and_cuda_is_refused(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    chosen = choose_device(Settings())
    assert chosen.kind == "cpu"
    assert chosen.reason
    with pytest.raises(ModelError, match=r"--device cuda: .*; use --device cpu, or auto\."):
        choose_device(Settings(device="cuda"))


@pytest.mark.parametrize("asked", ["auto", "cuda"])
def test_a_gpu_is_taken(driver, asked):
    driver((9, 0))
    assert choose_device(Settings(device=asked)).kind == "cuda"


@pytest.mark.parametrize(("capability", "words"), [((7, 5), "capability 7.5, the kernels need 8.0"), (None, "no GPU")])
def test_a_gpu_that_the_kernels_cannot_use_is_said_to_be_one(driver, capability, words):
    driver(capability)
    assert words in choose_device(Settings()).reason
    with pytest.raises(ModelError, match=words):
        choose_device(Settings(device="cuda"))


def test_compiled_kernels_are_kept_unless_the_variable_says_where(driver, monkeypatch, tmp_path):
    driver((9, 0))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("TRITON_CACHE_DIR", raising=False)
    choose_device(Settings())
    assert os.environ["TRITON_CACHE_DIR"] == str(tmp_path / "headrace" / "triton")
    monkeypatch.setenv("TRITON_CACHE_DIR", "elsewhere")
    choose_device(Settings())
    assert os.environ["TRITON_CACHE_DIR"] == "elsewhere"


def test_a_model_is_split_over_as_many_gpus_as_there_are(driver):
    driver((9, 0), count=2)
    assert choose_device(Settings(tensor_parallel=2)).kind == "cuda"
    for asked in ("auto", "cuda"):
        with pytest.raises(ModelError, match="torch finds 2 GPUs, 4 are asked for"):
            choose_device(Settings(device=asked, tensor_parallel=4))


def test_interpreted_kernels_run_where_they_are_asked_for_and_nowhere_else(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(device, "_no_driver", lambda: "there is no NVIDIA driver")
    chosen = choose_device(Settings(device="cuda"))
    assert chosen.kind == "cuda"
    assert "TRITON_INTERPRET" in chosen.reason
    assert choose_device(Settings()).kind == "cpu"
