"""Ends without cleaning up: the exit code, what was said before, and the folder."""

import subprocess
import sys

import pytest

from engine.ipc.failures import EXIT_LOST, EXIT_MODEL

pytestmark = pytest.mark.processes

WAIT = 200  # seconds


def ended(code, *arguments):
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, timeout=WAIT, check=False
    )


def test_codes_are_told_apart():
    assert len({0, 1, EXIT_MODEL, EXIT_LOST}) == 4


def test_nothing_that_was_said_is_lost_and_nothing_is_cleaned_up():
    code = (
        "import atexit, logging, sys; from engine.ipc.failures import exit_at_once\n"
        "atexit.register(print, 'cleaned up')\n"
        "print('to stdout'); print('to stderr', file=sys.stderr); logging.warning('logged')\n"
        "try: exit_at_once(4)\n"
        "finally: print('cleaned up')"
    )
    done = ended(code)
    assert (done.returncode, done.stdout) == (4, "to stdout\n")
    assert "to stderr" in done.stderr and "logged" in done.stderr


def test_threads_that_cannot_end_do_not_hold_it_up():
    code = (
        "import threading; from engine.ipc.failures import exit_at_once\n"
        "threading.Thread(target=threading.Event().wait).start()\n"
        "exit_at_once(3)"
    )
    assert ended(code).returncode == 3


def test_the_first_code_is_the_process_and_later_failures_are_not_logged(tmp_path):
    code = (
        "import logging, sys, threading; from pathlib import Path\n"
        "from engine.ipc import failures\n"
        "removing, other = threading.Event(), threading.Event()\n"
        "def slowly(folder):\n"
        "    removing.set(); other.wait(); folder.rmdir()\n"
        "failures.remove_folder = slowly\n"
        "def second():\n"
        "    removing.wait(); logging.error('for want of the folder'); other.set(); failures.exit_at_once(9)\n"
        "threading.Thread(target=second, daemon=True).start()\n"
        "failures.exit_at_once(4, Path(sys.argv[1]))"
    )
    folder = tmp_path / "folder"
    folder.mkdir()
    done = ended(code, folder)
    assert done.returncode == 4
    assert "folder" not in done.stderr
    assert not folder.exists()


def test_a_folder_that_is_gone_already_changes_nothing(tmp_path):
    code = (
        "import sys; from pathlib import Path; from engine.ipc.failures import exit_at_once\n"
        "exit_at_once(4, Path(sys.argv[1]))"
    )
    assert ended(code, tmp_path / "gone").returncode == 4
