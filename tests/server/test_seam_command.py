"""A distribution that is merely installed adds a command to `headrace`: made here in a folder on the path."""

import subprocess
import sys
from pathlib import Path

import pytest

from server.cli import main
from server.commands import COMMANDS, EXIT_USAGE, plugins

ROOT = Path(__file__).parents[2]
MODULE = '''
import sys

def toy(arguments):
    """Count the arguments.

    Nothing of this second paragraph is shown.
    """
    print(f"{len(arguments)} arguments: {' '.join(arguments)}")
    return len(arguments)
'''


def install(folder: Path, entries: str, module: str = MODULE, extras: tuple[str, ...] = ()) -> None:
    """A distribution as pip leaves it: a module, and metadata beside it."""
    (folder / "toy_of_a_test.py").write_text(module)
    info = folder / "toy_dist-1.0.dist-info"
    info.mkdir()
    provided = "".join(f"Provides-Extra: {extra}\n" for extra in extras)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: toy-dist\nVersion: 1.0\n{provided}")
    (info / "entry_points.txt").write_text(f"[headrace.commands]\n{entries}")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("toy_of_a_test", None)


def test_its_command_is_run_with_its_arguments_and_exit_code(folder, capsys):
    install(folder, "toy = toy_of_a_test:toy\n")
    assert main(["toy", "--level", "3"]) == 2
    assert capsys.readouterr().out == "2 arguments: --level 3\n"
    assert main(["toy"]) == 0


def test_the_overview_lists_it_with_its_summary(folder, capsys):
    install(folder, "toy = toy_of_a_test:toy\n")
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert "  toy       Count the arguments\n" in printed and "  loadtest  Replay" in printed
    assert "second paragraph" not in printed


def test_a_fresh_process_finds_it(tmp_path):
    install(tmp_path, "toy = toy_of_a_test:toy\n")
    done = subprocess.run(
        [sys.executable, "-m", "server.cli", "toy", "a"],
        capture_output=True, text=True, cwd=ROOT, check=False, env={"PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (1, "1 arguments: a\n", "")


def test_it_cannot_take_the_place_of_the_servers_own(folder):
    install(folder, "serve = toy_of_a_test:toy\ntoy = toy_of_a_test:toy\n")
    assert "serve" not in plugins() and "serve" in COMMANDS and "toy" in plugins()


@pytest.mark.parametrize(("extras", "requirement"), [((), "'toy-dist'"), (("toy", "more"), "'toy-dist[toy]'")])
@pytest.mark.parametrize("late", [False, True])
def test_a_missing_module_is_one_sentence_with_the_fix(folder, capsys, extras, requirement, late):
    missing = "import module_that_nobody_has\n"
    module = f"def toy(arguments):\n    '''Draw.'''\n    {missing}" if late else missing
    install(folder, "toy = toy_of_a_test:toy\n", module, extras)
    assert main(["toy"]) == EXIT_USAGE
    assert capsys.readouterr().err == f"headrace toy: module_that_nobody_has is missing: pip install {requirement}\n"
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert "  toy       " in printed and ("Draw" if late else requirement) in printed


def test_without_it_the_command_is_unknown(capsys):
    assert main(["toy"]) == EXIT_USAGE
    assert "unknown command 'toy'" in capsys.readouterr().err
