"""The command that runs all: parts in processes, a budget of time, what failed beside what was measured."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kernels.bench.everything import PARTS, Part, run_all

ROOT = Path(__file__).parents[3]
WRITES = "import json, sys; json.dump({'serving': [{'tokens_per_second': %s}]}, open(sys.argv[-1], 'w'))"


def test_figures_are_kept_and_compared(tmp_path):
    out = tmp_path / "all.json"
    parts = (
        Part("checks", ("-c", "pass"), 30.0, figures=False),
        Part("serving", ("-c", WRITES % 300), 30.0),
        Part("peer", ("-c", WRITES % 100), 30.0),
    )
    assert run_all(out, parts) == 0
    found = json.loads(out.read_text())
    assert found["serving_over_peer"] == pytest.approx(3.0)
    assert found["parts"]["checks"]["rc"] == 0
    assert "figures" not in found["parts"]["checks"]


def test_a_part_that_fails_or_is_slow_costs_itself_only(tmp_path):
    out = tmp_path / "all.json"
    parts = (
        Part("fails", ("-c", "raise SystemExit(3)"), 30.0),
        Part("slow", ("-c", "import time; time.sleep(60)"), 1.5),
        Part("serving", ("-c", WRITES % 300), 30.0),
    )
    assert run_all(out, parts) == 2
    found = json.loads(out.read_text())["parts"]
    assert [found[name]["rc"] for name in ("fails", "slow", "serving")] == [3, 124, 0]


def test_without_time_nothing_is_started(tmp_path):
    assert run_all(None, (Part("fails", ("-c", "raise SystemExit(3)"), 30.0),), seconds=0.0) == 1


def test_every_part_is_a_command_that_there_is():
    for part in PARTS:
        if part.arguments[0] == "-m":
            assert (
                part.arguments[1] == "pytest"
                or (ROOT / part.arguments[1].replace(".", "/")).with_suffix(".py").is_file()
                or (ROOT / part.arguments[1].replace(".", "/") / "__main__.py").is_file()
            )
        else:
            assert (ROOT / part.arguments[0]).is_file()


@pytest.mark.parametrize("arguments", [[], ["gpu", "--all"]])
def test_a_device_or_all(arguments):
    done = subprocess.run(
        [sys.executable, "-m", "kernels.bench", *arguments],
        capture_output=True, text=True, cwd=ROOT, env=os.environ, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "name a device, or give --all" in done.stderr
