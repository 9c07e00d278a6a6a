"""How processes end: with their parent, at once, and with their folder."""

import argparse
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from configs.model.source import ModelSource
from configs.settings import Settings
from engine.ipc.child import add_arguments, module_arguments, parent_gone, spawn
from engine.ipc.private_folder import private_folder, remove_folder

pytestmark = pytest.mark.processes

WAIT = 200

# Other threads keep putting files into the folder, and end the process with another code when they no longer can.
BUSY = """
import sys, threading
from pathlib import Path
from engine.ipc.failures import exit_at_once
folder = Path(sys.argv[1])
def fill():
    number = 0
    while True:
        try:
            (folder / f"{threading.get_ident()}-{number % 50}").touch()
        except OSError:
            exit_at_once(9, folder)
        number += 1
for _ in range(3):
    threading.Thread(target=fill, daemon=True).start()
while len(list(folder.iterdir())) < 60:
    pass
exit_at_once(5, folder)
"""


def test_a_process_takes_its_folder_along_though_others_still_write_there():
    folder = private_folder("headrace-test-")
    assert subprocess.run([sys.executable, "-c", BUSY, str(folder)], timeout=WAIT, check=False).returncode == 5
    assert not folder.exists()
    assert not folder.with_name(f"{folder.name}.removed").exists()


def test_of_several_that_remove_a_folder_all_come_back_and_nothing_is_left():
    folder = private_folder("headrace-test-")
    (folder / "meet").touch()
    threads = [threading.Thread(target=remove_folder, args=(folder,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    remove_folder(folder)
    assert not list(folder.parent.glob(f"{folder.name}*"))


def test_a_private_folder_is_ones_own_and_short_enough_for_a_socket(tmp_path, monkeypatch):
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    folder = private_folder("headrace-test-")
    assert folder.stat().st_mode & 0o077 == 0
    assert len(os.fsencode(folder)) < 100
    remove_folder(folder)


def test_the_parents_end_is_seen_and_what_it_writes_is_not():
    read, write = os.pipe()
    os.write(write, b"typed")
    assert not parent_gone(read)
    os.close(write)
    assert parent_gone(read)
    os.close(read)


def test_a_child_ends_with_its_parent_however_that_ends():
    """The parent kills itself; its child, which waits for that, then says so on the pipe that both got from us."""
    child = "import sys; from engine.ipc.child import parent_gone; print('up', flush=True); print(parent_gone(0), flush=True)"
    parent = (
        "import os, signal, sys; from engine.ipc.child import spawn\n"
        f"process = spawn([sys.executable, '-c', {child!r}], {{'MARK': 'set'}})\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True, timeout=WAIT, check=False)
    assert done.returncode == -9
    assert done.stdout == "up\nTrue\n"  # read to its end: the child has ended, too


def test_a_child_has_a_session_and_variables_of_its_own(tmp_path):
    out = tmp_path / "said"
    code = (
        "import os, sys; out = open(sys.argv[1], 'w')\n"
        "print(os.getsid(0) == os.getpid(), os.environ['MARK'], 'HOME' in os.environ, file=out)"
    )
    process = spawn([sys.executable, "-c", code, str(out)], {"MARK": "set"})
    assert process.wait(WAIT) == 0
    process.stdin.close()
    assert out.read_text() == f"True set {'HOME' in os.environ}\n"


def test_settings_and_source_come_through_a_command_line_and_keys_do_not():
    settings = Settings(api_key=["sesame"], kv_blocks=77)
    source = ModelSource(path=Path("/m/x.gguf"), kind="gguf", name="x")
    line = module_arguments("engine", settings, source)
    assert line[:3] == [sys.executable, "-m", "engine"]
    assert "sesame" not in " ".join(line)
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    options = parser.parse_args(line[3:])
    assert options.source == source
    assert options.settings == settings.model_copy(update={"api_key": []})


def test_settings_that_are_none_are_refused(capsys):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    with pytest.raises(SystemExit):
        parser.parse_args(["--settings", "{", "--source", "{}"])
    assert "--settings" in capsys.readouterr().err


def test_a_child_is_where_its_parent_is_unless_that_folder_is_gone(tmp_path, monkeypatch):
    def found() -> str:
        code = "import os, sys; open(sys.argv[1], 'w').write(os.getcwd())"
        with spawn([sys.executable, "-c", code, str(tmp_path / "found")]) as child:
            assert child.wait(WAIT) == 0
        return (tmp_path / "found").read_text()

    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert found() == str(tmp_path / "here")
    (tmp_path / "here").rmdir()
    assert found() == "/"
