"""The command that runs everything: parts in processes, a time budget, what failed beside what was measured."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kernels.bench.everything import PARTS, run_again, run_all
from kernels.bench.needs import LACKS_PACKAGES, PACKAGES, REQUIREMENTS
from kernels.bench.part import LINES, Part

pytestmark = pytest.mark.processes

ROOT = Path(__file__).parents[3]
WRITES = """
import json, sys
line = {'name': %r, 'output_tokens': %d, 'tokens_per_second': %d}
json.dump({'serving': [{'name': 'first'}, line]}, open(sys.argv[-1], 'w'))
"""


def written(name, label="warm", tokens=640, rate=300):
    return Part(name, ("-c", WRITES % (label, tokens, rate)), 30.0)


def test_figures_are_kept_and_compared(tmp_path):
    out = tmp_path / "all.json"
    parts = (Part("kernels", ("-c", "pass"), 30.0), written("serving"), written("peer", rate=100))
    assert run_all(out, parts) == 0
    found = json.loads(out.read_text())
    assert found["serving_over_peer"] == pytest.approx(3.0)
    assert found["parts"]["kernels"]["rc"] == 0
    assert "figures" not in found["parts"]["kernels"]


@pytest.mark.parametrize("peer", [{"label": "first"}, {"tokens": 639}])
def test_what_is_not_alike_is_not_compared(peer, tmp_path):
    assert run_all(tmp_path / "all.json", (written("serving"), written("peer", **peer))) == 0
    assert "serving_over_peer" not in json.loads((tmp_path / "all.json").read_text())


def test_a_part_that_fails_or_is_slow_costs_itself_only(tmp_path):
    out = tmp_path / "all.json"
    parts = (
        Part("fails", ("-c", "raise SystemExit(3)"), 30.0),
        Part("slow", ("-c", "import time; time.sleep(60)"), 1.5),
        written("serving"),
    )
    assert run_all(out, parts) == 2
    found = json.loads(out.read_text())["parts"]
    assert [found[name]["rc"] for name in ("fails", "slow", "serving")] == [3, 124, 0]


HOLDS = """
import os, pathlib, subprocess, sys, tempfile
held = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])
place = tempfile.mkdtemp()
pathlib.Path(sys.argv[1]).write_text(f'{held.pid} {place}')
held.wait()
"""


def alive(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state.rsplit(")", 1)[1].split()[0] not in "ZX"


@pytest.mark.long
def test_what_a_slow_part_has_started_and_written_goes_with_it(tmp_path):
    said = tmp_path / "said"
    run_all(None, (Part("slow", ("-c", HOLDS, str(said)), 5.0),))
    pid, place = said.read_text().split()
    assert not Path(place).exists()
    for _ in range(1000):  # a killed process is gone once the system gets to it
        if not alive(pid):
            return
        time.sleep(0.01)
    raise AssertionError(f"process {pid} is still there")


TESTS = """
import time, pytest
def test_one(): pass
def test_two(): pytest.skip("no such thing here")
def test_three(): assert False, "three is wrong"
def test_four(): time.sleep(9)
def test_five(): time.sleep(9)
"""


def checks(folder, chosen, *options, seconds=60.0, **more):
    (folder / "test_some.py").write_text(TESTS)
    arguments = (
        "-m",
        "pytest",
        "-c",
        os.devnull,
        "-p",
        "no:cacheprovider",
        "-p",
        "tests.gpu.lines",
        "-k",
        chosen,
        *options,
    )
    return Part("checks", arguments, seconds, option=LINES, tests=(str(folder / "test_some.py"),), **more)


def checked(part, folder):
    run_all(folder / "all.json", (part,))
    return json.loads((folder / "all.json").read_text())["parts"]["checks"]


def names(ids):
    return [each.split("::")[1] for each in ids]


@pytest.mark.parametrize(
    ("chosen", "code", "passed", "skipped", "failed"),
    [("one or two", 0, 1, 1, []), ("two", 5, 0, 1, []), ("three or one", 1, 1, 0, ["test_three"])],
)
def test_checks_are_counted_and_skips_alone_are_no_pass(chosen, code, passed, skipped, failed, tmp_path):
    part = checked(checks(tmp_path, chosen), tmp_path)
    assert (part["rc"], part["figures"]["passed"], part["figures"]["skipped"]) == (code, passed, skipped)
    assert names(part["figures"]["failed"]) == failed
    assert all("three is wrong" in said for said in part["figures"]["failed"].values())
    assert part["figures"]["why_skipped"] == (["no such thing here"] if skipped else [])
    assert not part["figures"]["unfinished"]


@pytest.mark.long
def test_a_test_that_is_too_slow_costs_itself_only_and_what_a_killed_run_had_is_kept(tmp_path):
    part = checked(checks(tmp_path, "one or four", "--test-seconds", "0.2"), tmp_path)
    assert part["rc"] == 1 and part["figures"]["passed"] == 1
    ((name, why),) = part["figures"]["failed"].items()
    assert name.endswith("test_four") and "longer than 0.2 s" in why
    killed = checked(checks(tmp_path, "one or five", seconds=3.0), tmp_path)
    assert killed["rc"] == 124 and killed["figures"]["passed"] == 1
    assert names(killed["figures"]["unfinished"]) == ["test_five"] or names(killed["figures"]["failed"]) == [
        "test_five"
    ]


def test_several_processes_share_the_tests_and_the_second_try_is_of_what_failed(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(tmp_path)  # from where names of tests are told
    out = tmp_path / "all.json"
    needs = Part("needs", ("-c", "pass"), 30.0, needed_for_all=(3,))
    parts = (needs, checks(tmp_path, "one or two or three", processes=3), written("serving"))
    assert run_all(out, parts) == 1
    first = json.loads(out.read_text())["parts"]["checks"]["figures"]
    assert (first["passed"], first["skipped"], names(first["failed"])) == (1, 1, ["test_three"])
    (tmp_path / "test_some.py").write_text(TESTS.replace("assert False", "assert True"))
    assert run_again(out, parts) == 0
    found = json.loads(out.read_text())
    assert found["parts"]["checks"]["rc"] == 1 and list(found["again"]["parts"]) == ["needs", "checks"]
    assert found["again"]["parts"]["checks"]["figures"]["passed"] == 1


def test_what_lacks_packages_is_not_tried_any_further(tmp_path):
    out = tmp_path / "all.json"
    lacking = Part("needs", ("-c", f"raise SystemExit({LACKS_PACKAGES})"), 30.0, needed_for_all=(LACKS_PACKAGES,))
    assert run_all(out, (lacking, written("serving"))) == 1
    assert list(json.loads(out.read_text())["parts"]) == ["needs"]


def test_every_package_that_a_gpu_machine_may_lack_can_be_carried():
    listed = {line for line in (ROOT / REQUIREMENTS).read_text().splitlines() if not line.startswith("#")}
    assert listed == set(PACKAGES.values()) - {"torch", "triton", "transformers", "pytest"}


def test_what_there_is_no_time_for_is_left_out(tmp_path):
    out = tmp_path / "all.json"
    parts = (
        Part("long", ("-c", "raise SystemExit(3)"), 90.0, least=60.0),
        Part("short", ("-c", "pass"), 20.0),
    )
    assert run_all(out, parts, seconds=30.0) == 1
    found = json.loads(out.read_text())["parts"]
    assert found["long"]["rc"] is None and "of 60 s left" in found["long"]["why"]
    assert found["short"]["rc"] == 0


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
