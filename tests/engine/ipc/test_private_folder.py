"""Private folders: where they can be, and which of them a dead process has left behind."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from engine.ipc import private_folder as module
from engine.ipc.private_folder import NoFolder, private_folder, remove_folder, remove_leftovers, temporary_folder

pytestmark = pytest.mark.processes

MAKE = (
    "import signal; from engine.ipc.private_folder import private_folder\n"
    "print(private_folder('headrace-ranks-'), flush=True); signal.pause()"
)


@pytest.fixture
def base(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture
def other(base):
    """Another process with a folder of its own: (process, folder)."""
    environment = {**os.environ, "TMPDIR": str(base)}
    with subprocess.Popen([sys.executable, "-c", MAKE], stdout=subprocess.PIPE, text=True, env=environment) as process:
        folder = Path(process.stdout.readline().strip())
        yield process, folder
        process.kill()


def test_what_a_killed_process_left_behind_is_removed_and_what_is_in_use_is_not(base, other):
    process, folder = other
    own = private_folder()
    assert remove_leftovers() == []
    assert folder.parent == base and folder.is_dir() and own.is_dir()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert folder.is_dir()
    assert remove_leftovers() == [folder]
    assert list(base.iterdir()) == [own]
    remove_folder(own)
    assert list(base.iterdir()) == []


def left_behind(base: Path, name: str = "headrace-ab12cd34") -> Path:
    """What a process leaves that ends without removing its folder."""
    folder = base / name
    folder.mkdir(mode=0o700)
    (folder / "in-use").touch()
    (folder / "commands").touch()
    return folder


def test_a_folder_that_was_being_removed_is_removed(base):
    folder = left_behind(base, "headrace-ab12cd34.removed")
    assert remove_leftovers() == [folder]
    assert list(base.iterdir()) == []


def test_what_was_killed_while_it_made_its_lock_leaves_nothing_for_good(base):
    folder = base / "headrace-ab12cd34"
    folder.mkdir(mode=0o700)
    (folder / "in-use.new").touch()
    assert remove_leftovers() == []  # its maker may live, and be about to take the lock
    os.utime(folder, (0, 0))
    assert remove_leftovers() == [folder]
    assert list(base.iterdir()) == []


def test_what_is_not_ours_is_left_alone(base, monkeypatch):
    kept = base / "headrace-download"  # somebody's files, of a name like ours
    kept.mkdir()
    (kept / "weights").touch()
    (base / "headrace-file").touch()
    (base / "headrace-link").symlink_to(left_behind(base, "elsewhere"))
    trap = base / "headrace-trapped1"
    trap.mkdir()
    (trap / "in-use").symlink_to(kept / "weights")
    os.mkfifo((base / "headrace-pipe0000").as_posix())
    before = sorted(base.rglob("*"))
    assert remove_leftovers() == []
    assert sorted(base.rglob("*")) == before
    others = left_behind(base)
    mine = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: mine + 1)
    assert remove_leftovers() == []
    monkeypatch.undo()
    assert others.is_dir()


def test_where_no_temporary_folder_can_be_written_to_another_place_becomes_it(tmp_path, monkeypatch):
    unwritable(monkeypatch, allowed=tmp_path)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("TMPDIR", "/nonexistent")
    folder = private_folder()
    assert folder.parent == tmp_path
    remove_folder(folder)
    assert os.environ["TMPDIR"] == tempfile.gettempdir() == str(tmp_path)  # PyTorch cannot be imported without one


def test_where_nothing_can_be_written_to_it_says_what_to_do(tmp_path, monkeypatch):
    unwritable(monkeypatch, allowed=None)
    monkeypatch.setenv("TMPDIR", "/nonexistent")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with pytest.raises(NoFolder, match=r"tried /nonexistent, /tmp, .*, /dev/shm\); set TMPDIR to one\.$"):
        private_folder()


def unwritable(monkeypatch, allowed):
    """As if the root were read-only, except for this folder."""
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_get_default_tempdir", lambda: (_ for _ in ()).throw(FileNotFoundError("none")))
    monkeypatch.setattr(module.os, "access", lambda path, mode: str(path) == str(allowed))


def test_a_full_disk_is_said_and_leaves_nothing(base, monkeypatch):
    def full(folder):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "_take", full)
    with pytest.raises(NoFolder, match="No space left on device; free space there, or set TMPDIR"):
        private_folder()
    assert list(base.iterdir()) == []


def test_the_usual_place_is_the_temporary_folder(base):
    assert temporary_folder() == base
