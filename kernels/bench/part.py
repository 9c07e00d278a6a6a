"""One part of `python -m kernels.bench --all`: processes of its own, which leave their figures though they are stopped."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

TIMED_OUT, NOTHING_PASSED = 124, 5
GRACE = 5.0  # seconds from SIGINT, on which pytest says what it was at, to SIGKILL
LINES = "--lines"  # the option of tests.gpu.lines


@dataclass(frozen=True, slots=True)
class Part:
    """Python with `arguments`. It writes its figures to the path after `option`.

    Attributes:
        name: of the part, under which its figures are stored.
        arguments: Python's.
        seconds: the most that it gets.
        least: seconds; the part is left out if less time than this is left.
        option: `--json`, or `LINES`, whose counts are then the figures.
        tests: what pytest runs: files, or the ids of tests.
        processes: that share the tests out, and so compile side by side.
        needed_for_all: exit codes after which no other part is tried.
    """

    name: str
    arguments: tuple[str, ...]
    seconds: float
    least: float = 1.0
    option: str = "--json"
    tests: tuple[str, ...] = ()
    processes: int = 1
    needed_for_all: tuple[int, ...] = ()

    def once_more(self, before: dict[str, Any]) -> Self:
        """This part for a second try: of tests, those that did not pass."""
        figures = before.get("figures", {})
        left = (*figures.get("failed", ()), *figures.get("unfinished", ()))
        return replace(self, tests=left, processes=min(self.processes, len(left))) if left else self

    def run(self, seconds: float) -> dict[str, Any]:
        """Run it for at most so long; its exit code, time and figures. What it started ends, what it left is removed."""
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            began = time.monotonic()
            paths = [Path(folder) / f"figures-{number}" for number in range(self.processes)]
            processes = [self._started(number, path, folder) for number, path in enumerate(paths)]
            codes = _ended(processes, began + seconds)
            line: dict[str, Any] = {"rc": _code(codes), "seconds": round(time.monotonic() - began, 1)}
            figures = _figures(paths, self.option)
        if figures is not None:
            line["figures"] = figures
            if figures.get("passed") == 0:
                line["rc"] = line["rc"] or NOTHING_PASSED
        return line

    def _started(self, number: int, path: Path, folder: str) -> "subprocess.Popen[bytes]":
        shard = ("--shard", f"{number}/{self.processes}") if self.processes > 1 else ()
        command = [sys.executable, *self.arguments, *self.tests, self.option, str(path), *shard]
        return subprocess.Popen(command, env=os.environ | {"TMPDIR": folder}, start_new_session=True)


def _ended(processes: "list[subprocess.Popen[bytes]]", deadline: float) -> list[int]:
    """Wait for all; who is late is interrupted, then killed with all that it started: it may hold GPU memory."""
    codes = [_waited(process, deadline) for process in processes]
    late = [process for process, code in zip(processes, codes, strict=True) if code is None]
    for process in late:
        _signal(process, signal.SIGINT)
    patience = time.monotonic() + GRACE
    for process in late:
        _waited(process, patience)
    for process in processes:
        _signal(process, signal.SIGKILL)
        process.wait()
    return [TIMED_OUT if code is None else code for code in codes]


def _waited(process: "subprocess.Popen[bytes]", deadline: float) -> int | None:
    try:
        return process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        return None


def _signal(process: "subprocess.Popen[bytes]", number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _code(codes: list[int]) -> int:
    """Of all processes: the first that failed. One that had no test to run has not."""
    failed = [code for code in codes if code]
    if len(codes) > 1:
        failed = [code for code in failed if code != NOTHING_PASSED]
    return failed[0] if failed else 0


def _figures(paths: list[Path], option: str) -> dict[str, Any] | None:
    written = [path.read_text() for path in paths if path.is_file()]
    if not written:
        return None
    if option == LINES:
        return _counts([json.loads(line) for text in written for line in text.splitlines()])
    found: dict[str, Any] = json.loads(written[0])
    return found


def _counts(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """How many tests passed, how many were skipped and why, what the others say, and which had begun and have no end."""
    ended = {line["test"]: line for line in lines if "test" in line}
    skips = [line["why"] for line in ended.values() if line["outcome"] == "skipped"]
    return {
        "passed": sum(line["outcome"] == "passed" for line in ended.values()),
        "skipped": len(skips),
        "failed": {name: line["why"] for name, line in ended.items() if line["outcome"] == "failed"},
        "unfinished": [line["began"] for line in lines if "began" in line and line["began"] not in ended],
        "why_skipped": sorted(set(skips)),
        "slowest": [[name, line["seconds"]] for name, line in sorted(ended.items(), key=_seconds)[:8]],
    }


def _seconds(item: tuple[str, dict[str, Any]]) -> float:
    return -float(item[1]["seconds"])
