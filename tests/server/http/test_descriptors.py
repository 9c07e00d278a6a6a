"""The limit on descriptors: raised, minded, and spoken of once."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
CODE = """
import logging, resource, sys
from configs.settings import Settings
from server.http.descriptors import limits_of
logging.basicConfig(format="%(message)s")
soft, hard, asked, waiting = map(int, sys.argv[1:])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
limits = limits_of(Settings(max_connections=asked, max_waiting=waiting))
print(limits.connections, limits.parting, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""


@pytest.mark.processes
@pytest.mark.parametrize(
    ("soft", "hard", "asked", "waiting", "least", "most", "said"),
    [
        (64, 2048, 100, 10, 100, 100, False), (64, 512, 4096, 100, 400, 447, False), (64, 512, 4096, 1024, 400, 447, True),
        (64, 64, 4096, 10, 16, 16, False), (64, 64, 4096, 17, 16, 16, True), (512, 512, 2, 100, 2, 2, False),
    ],
)  # fmt: skip
def test_as_many_connections_as_there_are_descriptors_for(soft, hard, asked, waiting, least, most, said):
    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < hard:
        pytest.skip("this machine does not grant that many")
    arguments = [sys.executable, "-c", CODE, *map(str, (soft, hard, asked, waiting))]
    done = subprocess.run(arguments, capture_output=True, text=True, cwd=ROOT, check=True, timeout=60)
    limit, parting, raised = map(int, done.stdout.split())
    assert least <= limit <= most and raised == hard
    # An idle server has 26 files open: with these, 46 of 64, so that no further client is closed without a word.
    assert parting == (4 if hard == 64 else 32)
    lines = done.stderr.splitlines()
    assert len(lines) == said
    assert not said or (f"may have {hard} files open" in lines[0] and f"max_waiting is {waiting}" in lines[0])
