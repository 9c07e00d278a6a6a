"""The part that runs kernels under compute-sanitizer, with a stand-in for that program."""

import json
import sys

import pytest

from kernels.bench import sanitizer

pytestmark = pytest.mark.processes

CLEAN = """
print("done norms"); print("done decode")
print("========= ERROR SUMMARY: 0 errors" if "memcheck" in sys.argv
      else "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)")
"""
WRONG = """
print("done norms")
print("========= Invalid __global__ read of size 4 bytes")
print("=========     at _rms_norm+0x10")
print("========= ERROR SUMMARY: 1 error")
sys.exit(1)
"""
REFUSED = 'print("========= Error: the target device is not supported in this container"); sys.exit(255)'
SLOW = """
import subprocess, time
held = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(4)"])
print("done norms", flush=True); time.sleep(60)
"""
CRASHED = 'print("done norms"); print("========= ERROR SUMMARY: 0 errors"); print("RuntimeError: no"); sys.exit(1)'


def run(code, folder, monkeypatch, seconds=30.0):
    program = folder / "compute-sanitizer"
    program.write_text(
        f"#!{sys.executable}\nimport os, sys\nassert os.environ['PYTORCH_NO_CUDA_MEMORY_CACHING'] == '1'\n{code}"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setattr(sanitizer, "SECONDS", seconds)
    monkeypatch.setattr(sys, "argv", ["sanitizer", "--json", str(folder / "found.json")])
    code = sanitizer.main()
    return code, json.loads((folder / "found.json").read_text())


def test_what_ran_and_its_errors_are_told(tmp_path, monkeypatch):
    code, found = run(CLEAN, tmp_path, monkeypatch)
    assert code == 0
    assert found == {tool: {"errors": 0, "done": ["norms", "decode"], "late": False} for tool in sanitizer.TOOLS}
    code, found = run(WRONG, tmp_path, monkeypatch)
    assert code == 1
    assert found["memcheck"]["errors"] == 1 and "Invalid __global__ read" in found["memcheck"]["said"][0]
    code, found = run(CRASHED, tmp_path, monkeypatch)
    assert (code, found["racecheck"]["errors"]) == (1, 1)
    assert "RuntimeError: no" in found["racecheck"]["said"]


def test_a_machine_that_has_none_or_refuses_it_fails_nothing(tmp_path, monkeypatch):
    code, found = run(REFUSED, tmp_path, monkeypatch)
    assert code == 0
    assert all("not supported in this container" in each["skipped"] for each in found.values())
    monkeypatch.setattr(sanitizer, "sanitizer", lambda: None)
    assert sanitizer.main() == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert "no compute-sanitizer" in found["memcheck"]["skipped"]


def test_who_is_late_has_told_what_was_done(tmp_path, monkeypatch):
    code, found = run(SLOW, tmp_path, monkeypatch, seconds=1.0)
    assert code == 0
    assert all(each == {"errors": 0, "done": ["norms"], "late": True} for each in found.values())
