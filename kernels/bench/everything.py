"""`python -m kernels.bench --all --json OUT`: checks and times everything that needs a GPU.

Each part is a process of its own: what it leaves on the GPU is gone before the next begins, and one that fails or is too slow
costs only itself. And since a part is a command line, the kernels need not know what is built on them.
"""

import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

SECONDS = 480.0  # for all parts together
TIMED_OUT, NOTHING_PASSED = 124, 5


@dataclass(frozen=True, slots=True)
class Part:
    """One process: Python with `arguments`. It writes its figures to the path after `option`.

    Attributes:
        name: of the part, under which its figures are stored.
        arguments: Python's.
        seconds: the most that it gets.
        least: seconds; the part is left out if less time than this is left.
        option: `--json`, or pytest's `--junit-xml`, whose counts are then the figures.
    """

    name: str
    arguments: tuple[str, ...]
    seconds: float
    least: float = 1.0
    option: str = "--json"


# One of the project's pytest options needs a plugin that a rented machine seldom has. A package that one test file lacks must not
# keep the others from running.
PYTEST = (
    *("-m", "pytest", "-m", "gpu", "tests/gpu", "-v", "-rs", "-W", "default", "-p", "no:cacheprovider"),
    *("--continue-on-collection-errors", "-o", "addopts=--import-mode=importlib -p no:asyncio"),
)
# The most important first, in case time runs out.
PARTS = (
    Part("checks", PYTEST, 140.0, option="--junit-xml"),
    Part("kernels", ("-m", "kernels.bench", "gpu"), 120.0),
    Part("serving", ("-m", "engine.bench.serve"), 80.0),
    Part("peer", ("tests/peers/transformers_serving.py",), 80.0),
    Part("steps", ("-m", "engine.bench.steps"), 60.0),
    Part("start", ("-m", "engine.bench.start"), 200.0, least=150.0),
)


def run_all(out: Path | None, parts: tuple[Part, ...] = PARTS, seconds: float = SECONDS) -> int:
    """Run the parts one after another. Returns how many failed or were left out; `out` is rewritten after each."""
    found: dict[str, Any] = {"date": time.strftime("%Y-%m-%d"), "python": platform.python_version(), "parts": {}}
    end = time.monotonic() + seconds
    for part in parts:
        left = end - time.monotonic()
        if left < part.least:
            found["parts"][part.name] = {"rc": None, "why": f"left out: {left:.0f} of {part.least:.0f} s left"}
            print(f"--- {part.name}: left out, {left:.0f} s are left", flush=True)
        else:
            found["parts"][part.name] = _run(part, min(part.seconds, left))
        found |= _compared(found["parts"])
        if out is not None:
            out.write_text(json.dumps(found, indent=1))
    if "serving_over_peer" in found:
        print(f"output tok/s over transformers' continuous batching: {found['serving_over_peer']:.2f}")
    return sum(part["rc"] != 0 for part in found["parts"].values())


def _run(part: Part, seconds: float) -> dict[str, Any]:
    """Run a part; its exit code, time and figures. The processes it started and the files it left are removed."""
    print(f"--- {part.name}: at most {seconds:.0f} s", flush=True)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        path = Path(folder) / "figures"
        began = time.monotonic()
        with subprocess.Popen(
            [sys.executable, *part.arguments, part.option, str(path)],
            env=os.environ | {"TMPDIR": folder},
            start_new_session=True,
        ) as process:
            try:
                code = process.wait(seconds)
            except subprocess.TimeoutExpired:
                code = TIMED_OUT
            finally:
                _end(process)
        line: dict[str, Any] = {"rc": code, "seconds": round(time.monotonic() - began, 1)}
        if path.is_file():
            line["figures"] = _counts(path) if part.option == "--junit-xml" else json.loads(path.read_text())
            if line["figures"].get("passed") == 0:
                line["rc"] = code or NOTHING_PASSED
        return line


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End all that is left of a part: a process that it started may hold GPU memory."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _counts(path: Path) -> dict[str, Any]:
    """Pytest's result: how many tests passed, how many were skipped and why, and the messages of the others."""
    cases = list(ElementTree.parse(path).getroot().iter("testcase"))
    bad = {
        str(case.get("name")): str(said.get("message"))[:1000]
        for case in cases
        for said in (*case.findall("error"), *case.findall("failure"))
    }
    skips = [skip.get("message") for case in cases for skip in case.findall("skipped")]
    return {
        "passed": len(cases) - len(bad) - len(skips),
        "skipped": len(skips),
        "failed": bad,
        "why_skipped": sorted({str(why) for why in skips}),
    }


def _compared(parts: dict[str, Any]) -> dict[str, float]:
    """Our output tokens per second over the peer's, if both produced the same number of tokens in a warm round."""
    try:
        ours, theirs = (parts[name]["figures"]["serving"][-1] for name in ("serving", "peer"))
    except (KeyError, IndexError):
        return {}
    if ours["name"] != "warm" or theirs["name"] != "warm" or ours["output_tokens"] != theirs["output_tokens"]:
        return {}
    return {"serving_over_peer": ours["tokens_per_second"] / theirs["tokens_per_second"]}
