"""What `headrace doctor` says on machines of other kinds: what the probes find there is given, all that is made of it is real."""

import shutil

import pytest

from server.telemetry import doctor

TORCH = {
    "version": "2.12.0+cpu", "cuda": None, "devices": [], "capability": "AVX512",
    "kernels": True, "kernels_reason": "avx512_vnni kernels, the best this processor has",
}  # fmt: skip
CUDA = TORCH | {"version": "2.12.0", "cuda": "13.0"}
HERE = {
    "cores": {"amount": 8, "source": "all of this machine"},
    "memory": {"amount": 2**34, "source": "all that is free on this machine"},
    "device": {"kind": "cpu", "reason": "there is no NVIDIA driver"},
}
ALL = ("g++", "gcc")


@pytest.fixture
def examined(monkeypatch):
    """The findings on a machine where the probes find this, by their subjects, and the report."""

    def examined(torch, here, compilers=ALL):
        answers = {"-c": torch, "-m": here}
        monkeypatch.setattr(doctor, "probe", lambda kind, *arguments: answers[kind])
        monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}" if name in compilers else None)
        monkeypatch.delenv("CC", raising=False)
        found = doctor.examine()
        return {finding.subject: finding for finding in found}, doctor.report(found)

    return examined


def test_on_a_cpu_only_the_gpu_is_lacking(examined):
    found, report = examined(TORCH, HERE)
    assert [each.subject for each in found.values() if each.lost] == ["PyTorch CUDA", "device"]
    assert "the CPU: there is no NVIDIA driver" in report and "Serving is possible" in report


def test_on_a_gpu_nothing_is_lacking(examined):
    gpu = CUDA | {"devices": ["NVIDIA H200"]}
    found, report = examined(gpu, HERE | {"device": {"kind": "cuda", "reason": "torch has a GPU"}})
    assert not [each for each in found.values() if each.lost]
    assert "sees NVIDIA H200" in report and "a GPU: torch has a GPU" in report


@pytest.mark.parametrize(
    ("torch", "reason"),
    [
        (CUDA | {"devices": ["Tesla T4"]}, "Tesla T4 has compute capability 7.5, the kernels need 8.0"),
        (
            CUDA | {"devices": ["NVIDIA H200"]},
            "triton cannot be imported (No module named 'triton'); install headrace[gpu]",
        ),
        (CUDA, "there is no NVIDIA driver"),  # a container without the GPUs of its host, whose /proc it sees
        (CUDA, "torch 2.12.0 finds no GPU"),
    ],
)
def test_a_gpu_that_the_engine_would_not_use_is_not_said_to_serve(examined, torch, reason):
    found, report = examined(torch, HERE | {"device": {"kind": "cpu", "reason": reason}})
    assert found["device"].lost and f"the CPU: {reason}" in report
    assert "Serving is possible" in report


def test_in_a_container_its_limits_count(examined):
    limits = {
        "cores": {"amount": 2, "source": "cpu.max of /docker/x"},
        "memory": {"amount": 2**30, "source": "memory.max of /docker/x"},
    }
    found, _ = examined(TORCH, HERE | limits)
    assert found["CPU"].detail.startswith("2 cores (cpu.max of /docker/x)")
    assert "1.0 GiB available (memory.max of /docker/x)" in found["memory"].detail
    assert "--config small" in found["memory"].lost


def test_without_a_compiler_built_kernels_serve(examined):
    found, _ = examined(TORCH, HERE, compilers=())
    assert not found["C++ compiler"].lost and "not needed" in found["C++ compiler"].detail


def test_without_a_compiler_and_kernels_speed_is_lost_and_serving_is_not(examined):
    found, report = examined(TORCH | {"kernels": False, "kernels_reason": "not built"}, HERE, compilers=())
    assert "several times slower" in found["C++ kernels"].lost and "apt install g++" in found["C++ compiler"].lost
    assert "Serving is possible" in report


def test_without_a_compiler_a_gpu_does_not_serve(examined, monkeypatch):
    gpu = CUDA | {"devices": ["NVIDIA H200"]}
    here = HERE | {"device": {"kind": "cuda", "reason": "torch has a GPU"}}
    assert "Triton needs one" in examined(gpu, here, compilers=())[0]["C compiler"].lost
    assert "C compiler" not in examined(gpu, here, compilers=("clang",))[0]


@pytest.mark.parametrize(("mib", "lost"), [(64, True), (8192, False)])
def test_several_gpus_need_room_to_exchange_data(examined, monkeypatch, mib, lost):
    gpus = CUDA | {"devices": ["NVIDIA H200"] * 2}
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(mib * 2**20, 0, 0))
    found, _ = examined(gpus, HERE | {"device": {"kind": "cuda", "reason": "torch has a GPU"}})
    assert bool(found["/dev/shm"].lost) == lost
    assert "/dev/shm" not in examined(TORCH, HERE)[0]


def test_where_pytorch_does_not_load_nothing_is_served(examined):
    found, report = examined("ImportError: libtorch.so: cannot open", HERE)
    assert found["PyTorch loads"].fatal and "libtorch.so" in report and "Serving is not possible" in report
