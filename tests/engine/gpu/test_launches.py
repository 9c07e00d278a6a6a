"""Steps of other sizes ask for no other builds of a kernel: on a GPU each would hold every stream up for seconds."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.engine.gpu import cases

SCRIPT = Path(cases.__file__).with_name("launches.py")


def ran(*command):
    """In a process of its own that does not interpret: Triton's launcher, and what comes after it as the script says."""
    environment = os.environ | {"TRITON_INTERPRET": "0", "PYTHONPATH": str(SCRIPT.parents[3])}
    command = (sys.executable, "-W", "ignore", *command)
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=400)


def test_builds_do_not_depend_on_the_batch():
    """Without the compiler."""
    done = ran(SCRIPT)
    lines = done.stdout.splitlines()
    warm = [line for line in lines if line.startswith("warm")]
    assert len(warm) == 2, done.stderr
    assert int(warm[0].removeprefix("warm ")) > 10  # every kind of kernel was there
    assert [line for line in lines if line not in warm] == ["more", "more"]


@pytest.mark.long
def test_what_is_checked_on_a_gpu_compiles():
    """For sm_90, with the arguments that the checks give, which may be others than those of the variants in `kernels.gpu.build`."""
    done = ran("-m", "tests.gpu.compiled")
    assert done.returncode == 0, done.stdout + done.stderr
