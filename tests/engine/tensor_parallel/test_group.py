"""The rank group as the first rank sees it: ranks are processes that do little but end, each in its own way."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from configs.model.source import ModelSource
from configs.settings import Settings
from engine.ipc.failures import EXIT_LOST, EXIT_MODEL
from engine.tensor_parallel.group import command_endpoint, loopback, rank_arguments, rendezvous

pytestmark = pytest.mark.processes

WAIT = 40  # seconds

# The first rank. `RANKS` holds the programs of the others, which get the folder and their number; `engine` is what this one does.
ENGINE = """
import sys, time
from pathlib import Path
from configs.model.source import ModelSource
from configs.settings import Settings
from engine.ipc.failures import exit_at_once
from engine.tensor_parallel import group
from engine.tensor_parallel.commands import Warmup

RANKS = {ranks!r}
group._STOP_SECONDS, group._REASON_SECONDS = {stop}, {reason}
group.rank_arguments = lambda settings, source, folder, rank: [sys.executable, "-c", RANKS[rank - 1], str(folder), str(rank)]
ranks = group.RankGroup(Settings(tensor_parallel=1 + len(RANKS)), ModelSource(path=Path("m"), kind="hf", name="m"))
print(ranks.folder, flush=True)
{engine}
"""

FOLLOWS = """
import sys; from pathlib import Path
from engine.tensor_parallel.commands import RankCommandReceiver, Stop
from engine.tensor_parallel.group import command_endpoint
folder, rank = Path(sys.argv[1]), int(sys.argv[2])
commands, got = RankCommandReceiver(command_endpoint(folder, rank)), []
while not isinstance(got[-1:] and got[-1], Stop):
    got.append(commands.receive())
print(rank, *(type(command).__name__ for command in got), flush=True)
"""
DEAF = "import sys; sys.stdin.read()"  # until the first rank is gone
FOR_EVER = "time.sleep(1000)"


def ended(ranks, engine, *, stop=100.0, reason=100.0):
    """(exit code, the ranks' folder, further lines)."""
    code = ENGINE.format(ranks=ranks, engine=engine, stop=stop, reason=reason)
    done = subprocess.run(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        text=True,
        timeout=WAIT,
        check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, sys.path))},
    )  # stdout is read to its end: all ranks have ended, too
    folder, *said = done.stdout.splitlines()
    return done.returncode, Path(folder), said


def test_all_ranks_get_what_is_sent_then_stop_and_the_folder_goes():
    code, folder, said = ended([FOLLOWS] * 2, "ranks.send(Warmup()); ranks.close()")
    assert code == 0
    assert sorted(said) == ["1 Warmup Stop", "2 Warmup Stop"]
    assert not folder.exists()


def test_a_rank_that_does_not_stop_is_killed_and_the_others_are_not():
    code, folder, said = ended([DEAF, FOLLOWS], "ranks.close()", stop=0.5)
    assert code == 0
    assert said in ([], ["2 Stop"])  # on a slow machine half a second may end before the second has started
    assert not folder.exists()


@pytest.mark.parametrize(
    "rank", ["raise SystemExit(1)", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "pass"]
)
def test_the_engine_ends_with_a_rank_though_its_main_thread_waits(rank):
    code, folder, said = ended([DEAF, rank], FOR_EVER + "\nprint('went on')")
    assert (code, said) == (EXIT_LOST, [])
    assert not folder.exists()


def test_the_engine_may_first_say_what_is_wrong_with_the_model():
    code, _, said = ended(
        [f"raise SystemExit({EXIT_MODEL})"],
        f"ranks._processes[0].wait(); print('why', flush=True); exit_at_once({EXIT_MODEL}, ranks.folder)",
    )
    assert (code, said) == (EXIT_MODEL, ["why"])


def test_the_engine_ends_if_only_the_rank_finds_the_model_wrong():
    code, folder, said = ended([f"raise SystemExit({EXIT_MODEL})"], FOR_EVER, reason=0.1)
    assert (code, said) == (EXIT_LOST, [])
    assert not folder.exists()


def test_ranks_stay_on_this_machine_unless_the_operator_says_where(monkeypatch):
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        monkeypatch.delenv(name, raising=False)
    assert loopback() == {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "eth0")
    assert loopback() == {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "eth0"}


def test_where_ranks_meet_and_listen_is_in_the_folder(tmp_path):
    assert rendezvous(tmp_path) == f"file://{tmp_path}/meet"
    assert [command_endpoint(tmp_path, rank) for rank in (1, 2)] == [f"ipc://{tmp_path}/1", f"ipc://{tmp_path}/2"]
    source = ModelSource(path=Path("/m"), kind="hf", name="m")
    line = rank_arguments(Settings(tensor_parallel=2, api_key=["sesame"]), source, tmp_path, 1)
    assert line[1:3] == ["-m", "engine.rank"]
    assert line[-4:] == ["--folder", str(tmp_path), "--rank", "1"]
    assert "sesame" not in " ".join(line), "a command line is public"
