"""The repetition of tests on a busy machine: how often, where it stops, and that nothing goes on computing afterwards."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.repeat import BUSY, busy_cores, repeat

pytestmark = pytest.mark.processes
COUNT = "import sys; from pathlib import Path; p = Path(sys.argv[1]); n = len(p.read_text()) + 1; p.write_text('x' * n)"


def counting(path: Path, failing_at: int) -> list[str]:
    """A command that leaves in a file how often it ran, and fails the given time."""
    path.write_text("")
    return [sys.executable, "-c", f"{COUNT}; sys.exit(7 if n == {failing_at} else 0)", str(path)]


@pytest.mark.parametrize(("failing_at", "code", "ran"), [(0, 0, 3), (2, 7, 2), (1, 7, 1), (3, 7, 3), (4, 0, 3)])
def test_a_command_runs_until_it_fails(tmp_path, failing_at, code, ran):
    path = tmp_path / "count"
    assert repeat(counting(path, failing_at), times=3) == code
    assert len(path.read_text()) == ran


def test_cores_are_busy_inside_the_block_and_free_after_it():
    with busy_cores(2) as workers:
        assert [worker.poll() for worker in workers] == [None, None]
    assert all(worker.returncode is not None for worker in workers)
    with pytest.raises(RuntimeError), busy_cores(1) as workers:
        raise RuntimeError
    assert workers[0].returncode is not None


def test_work_ends_when_whoever_started_it_has_ended():
    starts = (
        "import os, subprocess, sys\n"
        f"child = subprocess.Popen([sys.executable, '-c', {BUSY!r}, str(os.getpid())], stdout=subprocess.DEVNULL)\n"
        "print(child.pid)"
    )
    done = subprocess.run([sys.executable, "-c", starts], capture_output=True, text=True, check=True, cwd=os.sep)
    pid = int(done.stdout)
    if psutil.pid_exists(pid):
        gone, alive = psutil.wait_procs([psutil.Process(pid)], timeout=60)
        assert gone and not alive
