"""How far weights are loaded, on a terminal and in a log."""

import io
import logging
import re

import pytest

from scheduler.types.messages import StartPhase, WeightsRead
from server.telemetry import console as module
from server.telemetry.console import LoadLine
from tests.server.engines.scripted_engine import PLAN, READY
from tests.server.telemetry.test_start_up import console


class Terminal(io.StringIO):
    def isatty(self):
        return True


def shown(text):
    """What is left on a terminal's last line: a carriage return goes back, an erasure clears."""
    line, cursor = [], 0
    for token in re.findall(r"\x1b\[2K|.", text.rpartition("\n")[2], re.DOTALL):
        if token == "\r":
            cursor = 0
        elif token == "\x1b[2K":
            line = []
        else:
            line[cursor : cursor + 1] = token
            cursor += 1
    return "".join(line)


@pytest.fixture
def at():
    return [100.0]


@pytest.fixture(autouse=True)
def info(caplog):
    caplog.set_level(logging.INFO, "headrace.engine")


def test_a_terminal_shows_a_bar_that_goes_away(at):
    out = Terminal()
    line = LoadLine(out, 99.0, lambda: at[0])
    line.tell("weights", 0.1)
    assert out.getvalue() == ""  # it is not two seconds yet
    for now, part, filled in ((101.0, 0.25, 10), (101.5, 0.5, 20), (109.0, 1.0, 40)):
        at[0] = now
        line.tell("weights", part)
        assert shown(out.getvalue()) == f"weights  {'█' * filled}{'░' * (40 - filled)}  {part:4.0%}"
    line.erase()
    assert shown(out.getvalue()) == ""
    before = out.getvalue()
    line.erase()
    assert out.getvalue() == before


def test_a_log_gets_a_line_every_five_seconds(at, caplog):
    out = io.StringIO()
    line = LoadLine(out, 100.0, lambda: at[0])
    for second in range(13):
        at[0] = 100.0 + second
        line.tell("weights of b", second / 20)
        line.erase()
    assert [record.getMessage() for record in caplog.records] == [
        f"weights of b: {percent} % loaded" for percent in (10, 35, 60)
    ]
    assert out.getvalue() == ""


def test_a_terminal_without_such_characters_is_no_reason_not_to_serve(at):
    out = io.TextIOWrapper(io.BytesIO(), "ascii", write_through=True)
    out.isatty = lambda: True
    line = LoadLine(out, 0.0, lambda: at[0])
    line.tell("weights", 0.5)
    line.erase()
    assert out.buffer.getvalue() == b""


def test_the_console_puts_its_text_in_the_bars_place(monkeypatch):
    monkeypatch.setattr(module, "_PATIENCE", -1e9)
    out = Terminal()
    told = console(out, engines=("a", "b"))
    told.on_event("a", PLAN)
    told.on_event("a", WeightsRead(part=0.5))
    assert shown(out.getvalue()).startswith("weights of a  █")
    told.on_event("a", StartPhase(name="load weights", seconds=9.0))
    assert shown(out.getvalue()) == ""
    told.on_event("a", READY)
    before = out.getvalue()
    told.on_event("a", WeightsRead(part=0.1))  # it is started again
    assert out.getvalue() == before
