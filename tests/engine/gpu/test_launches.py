"""Steps of other sizes ask for no other builds of a kernel: on a GPU each would hold every stream up for seconds."""

import os
import subprocess
import sys
from pathlib import Path

from tests.engine.gpu import cases

SCRIPT = Path(cases.__file__).with_name("launches.py")


def test_builds_do_not_depend_on_the_batch():
    """In a process of its own that does not interpret: Triton's launcher without the compiler."""
    environment = os.environ | {"TRITON_INTERPRET": "0", "PYTHONPATH": str(SCRIPT.parents[3])}
    command = [sys.executable, "-W", "ignore", SCRIPT]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=200)
    lines = done.stdout.splitlines()
    warm = [line for line in lines if line.startswith("warm")]
    assert len(warm) == 2, done.stderr
    assert int(warm[0].removeprefix("warm ")) > 10  # every kind of kernel was there
    assert [line for line in lines if line not in warm] == ["more", "more"]
