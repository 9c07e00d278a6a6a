"""`python -m kernels.bench --all --json OUT`: checks and times everything that needs a GPU; `--again` tries once more what failed.

Each part is processes of its own: what it leaves on the GPU is gone before the next begins, and one that fails or is too slow
costs only itself. And since a part is a command line, the kernels need not know what is built on them.
"""

import json
import platform
import time
from pathlib import Path
from typing import Any

from kernels.bench.needs import LACKS_PACKAGES
from kernels.bench.part import LINES, Part

SECONDS, SECONDS_AGAIN = 480.0, 300.0  # for all parts together
CHECKERS = 12  # processes: each kernel's first call compiles for seconds, on one core

# One of the project's pytest options needs a plugin that a rented machine seldom has. A package that one test file lacks must not
# keep the others from running.
PYTEST = (
    *("-m", "pytest", "-m", "gpu", "-v", "-rs", "-W", "default", "-p", "no:cacheprovider", "-p", "tests.gpu.lines"),
    *("--continue-on-collection-errors", "-o", "addopts=--import-mode=importlib -p no:asyncio"),
)
CHECKS = tuple(f"tests/gpu/test_{name}_on_a_gpu.py" for name in ("kernels", "small_kernels", "repeats"))
# The most important first, in case time runs out. What the kernels' checks compile, all others find in Triton's cache.
PARTS = (
    Part("needs", ("-m", "kernels.bench.needs"), 30.0, needed_for_all=(LACKS_PACKAGES,)),
    Part("checks", PYTEST, 110.0, option=LINES, tests=CHECKS, processes=CHECKERS),
    Part("sanitizer", ("-m", "kernels.bench.sanitizer"), 48.0),
    Part("engine", PYTEST, 110.0, option=LINES, tests=("tests/gpu/test_on_a_gpu.py",)),
    Part("kernels", ("-m", "kernels.bench", "gpu"), 120.0),
    Part("steps", ("-m", "engine.bench.steps"), 60.0),
    Part("serving", ("-m", "engine.bench.serve"), 80.0),
    Part("peer", ("tests/peers/transformers_serving.py",), 80.0),
    Part("start", ("-m", "engine.bench.start"), 200.0, least=150.0),
)


def run_all(out: Path | None, parts: tuple[Part, ...] = PARTS, seconds: float = SECONDS) -> int:
    """Run the parts one after another. Returns how many failed or were left out; `out` is rewritten after each."""
    found: dict[str, Any] = {"date": time.strftime("%Y-%m-%d"), "python": platform.python_version(), "parts": {}}
    _run(parts, seconds, found, out)
    return sum(part["rc"] != 0 for part in found["parts"].values())


def run_again(out: Path, parts: tuple[Part, ...] = PARTS, seconds: float = SECONDS_AGAIN) -> int:
    """Try once more what failed, was too slow or was left out by `out`; the result stands there under `again`.

    Returns as `run_all`.

    Raises:
        OSError: `out` cannot be read.
        ValueError: it is not what `run_all` writes.
    """
    before = json.loads(out.read_text())
    if not isinstance(before, dict) or "parts" not in before:
        raise ValueError(f"{out} is not of a run of all parts")
    known = before["parts"]
    chosen = tuple(
        part.once_more(known.get(part.name, {}))
        for part in parts
        if part.needed_for_all or known.get(part.name, {}).get("rc") != 0
    )
    again: dict[str, Any] = {"date": time.strftime("%Y-%m-%d"), "parts": {}}
    _run(chosen, seconds, again, out, before)
    return sum(part["rc"] != 0 for part in again["parts"].values())


def _run(
    parts: tuple[Part, ...],
    seconds: float,
    found: dict[str, Any],
    out: Path | None,
    before: dict[str, Any] | None = None,
) -> None:
    end = time.monotonic() + seconds
    for part in parts:
        left = end - time.monotonic()
        if left < part.least:
            line: dict[str, Any] = {"rc": None, "why": f"left out: {left:.0f} of {part.least:.0f} s left"}
            print(f"--- {part.name}: left out, {left:.0f} s are left", flush=True)
        else:
            most = min(part.seconds, left)
            print(f"--- {part.name}: at most {most:.0f} s", flush=True)
            line = part.run(most)
        found["parts"][part.name] = line
        found |= _compared(found["parts"])
        if out is not None:
            out.write_text(json.dumps(found if before is None else before | {"again": found}, indent=1))
        if line["rc"] in part.needed_for_all:
            break
    if "serving_over_peer" in found:
        print(f"output tok/s over transformers' continuous batching: {found['serving_over_peer']:.2f}")


def _compared(parts: dict[str, Any]) -> dict[str, float]:
    """Our output tokens per second over the peer's, if both produced the same number of tokens in a warm round."""
    try:
        ours, theirs = (parts[name]["figures"]["serving"][-1] for name in ("serving", "peer"))
    except (KeyError, IndexError):
        return {}
    if ours["name"] != "warm" or theirs["name"] != "warm" or ours["output_tokens"] != theirs["output_tokens"]:
        return {}
    return {"serving_over_peer": ours["tokens_per_second"] / theirs["tokens_per_second"]}
