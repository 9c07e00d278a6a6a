"""A plugin of pytest: a line for each test as it ends, so that a run that is killed loses what ran and nothing else.

`pytest -p tests.gpu.lines --lines OUT --test-seconds 20 --shard 2/12` writes JSON lines, {"began": id}, then {"test": id,
"outcome": .., "seconds": .., "why": ..}; raises in a test that takes longer; and runs every twelfth test from the third on, so
that twelve such processes compile side by side. Needs pytest alone.
"""

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

WHY = 1000  # characters


class TooSlow(Exception):
    """A test took longer than it may."""


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("lines")
    group.addoption("--lines", type=Path, required=True, help="where the lines go")
    group.addoption("--test-seconds", type=float, default=30.0, help="the longest that a test may take")
    group.addoption("--shard", default="0/1", help="K/N: of N processes, the tests of number K, from 0")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(_Lines(config.getoption("--lines"), config.getoption("--test-seconds")))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    chosen, of = map(int, config.getoption("--shard").split("/"))
    items[:] = items[chosen::of]


class _Lines:
    """Writes them."""

    def __init__(self, path: Path, seconds: float) -> None:
        self._path, self._seconds = path, seconds
        self._ended: dict[str, Any] = {}

    def _write(self, **line: object) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._write(test=report.nodeid, outcome="failed", seconds=0.0, why=str(report.longrepr)[-WHY:])

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._ended = {"test": nodeid, "outcome": "passed", "seconds": 0.0, "why": ""}
        self._write(began=nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._ended["seconds"] = round(self._ended["seconds"] + report.duration, 3)
        if not report.passed and self._ended["outcome"] != "failed":
            self._ended |= {"outcome": report.outcome, "why": _why(report)}
        if report.when == "teardown":
            self._write(**self._ended)

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_call(self) -> Iterator[None]:
        before = signal.signal(signal.SIGALRM, self._late)
        signal.setitimer(signal.ITIMER_REAL, self._seconds)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            signal.signal(signal.SIGALRM, before)

    def _late(self, *_: object) -> None:
        raise TooSlow(f"longer than {self._seconds:g} s")


def _why(report: pytest.TestReport) -> str:
    if isinstance(report.longrepr, tuple):  # of a skip: file, line, reason
        return str(report.longrepr[2]).removeprefix("Skipped: ")
    crash = getattr(report.longrepr, "reprcrash", None)
    return str(crash.message if crash is not None else report.longrepr)[-WHY:]
