"""A tier that goes away under a running engine: one line in the log, its metric at 0, and answers as without it."""

import errno
import shutil

import pytest

from tests.engine.kv_store.disk.test_disk_faults import GONE, NAMES
from tests.engine.test_stop import FULL, PROMPTS, start

__all__ = ["start"]  # a fixture
pytestmark = pytest.mark.processes


def lines(engine):
    return [message for message in engine.caplog.messages if "KV tier" in message]


def disk(engine):
    """What the last figures that the server was sent say of it."""
    engine.client.read_waiting()
    return engine.client.stats.tiers["disk"]


def save(engine, name):
    """Answered, and all of it on disk."""
    engine.disk.gate.set()
    engine.ask(name)
    engine.wait_for(lambda: disk(engine).saved == FULL)
    assert disk(engine).up and not lines(engine)


@pytest.mark.parametrize("change", GONE, ids=NAMES)
def test_an_idle_engine_notices_and_serves_on(start, tmp_path, change):
    engine = start("disk")
    save(engine, "a")
    change(tmp_path / "kv")
    engine.wait_for(lambda: not disk(engine).up)
    for name in [*PROMPTS, *PROMPTS]:
        engine.ask(name)
    engine.stop()
    (line,) = lines(engine)
    assert "tier disk is lost until the next start" in line and "was deleted or replaced" in line
    assert engine.told is None, "there is nowhere to write to"


@pytest.mark.parametrize("above", [(), ("host",)], ids=["disk", "host and disk"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES], ids=errno.errorcode.get)
def test_a_disk_that_can_no_longer_be_written_costs_one_line(start, above, code):
    engine = start(*above, "disk")
    save(engine, "a")
    engine.disk.write_faults = [code] * 100
    for name in [*PROMPTS, *PROMPTS]:
        engine.ask(name)
    engine.wait_for(lambda: not disk(engine).up)
    engine.stop()
    assert len(lines(engine)) == 1


def test_the_next_start_uses_a_folder_that_was_made_again(start, tmp_path):
    engine = start("disk")
    save(engine, "a")
    shutil.rmtree(tmp_path / "kv")
    engine.wait_for(lambda: not disk(engine).up)
    (tmp_path / "kv").mkdir()
    engine.ask("b")
    engine.stop()
    assert not list((tmp_path / "kv").iterdir()), "it stays down"
    engine = start("disk")
    save(engine, "b")
    engine.stop()
    engine = start("disk")
    assert engine.found == FULL
    engine.stop()
