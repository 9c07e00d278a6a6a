"""`python -m kernels.bench --all --json OUT`: checks and times everything that needs a GPU, in processes of their own.

A process for each part: what one leaves on the GPU is gone before the next begins, one that fails or is too slow costs itself
only, and kernels need to know nothing of what is built upon them: a part is a command line.
"""

import json
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SECONDS = 480.0  # for all parts together


@dataclass(frozen=True, slots=True)
class Part:
    """One process: `arguments` of Python. It writes its figures to the path after `--json`, if it has any to write."""

    name: str
    arguments: tuple[str, ...]
    seconds: float  # at most
    figures: bool = True


# In the order of what is missed most when time runs out.
PARTS = (
    Part("checks", ("-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider"), 90.0, figures=False),
    Part("kernels", ("-m", "kernels.bench", "gpu"), 120.0),
    Part("steps", ("-m", "engine.gpu_bench"), 80.0),
    Part("serving", ("-m", "engine.serve_bench"), 90.0),
    Part("start", ("-m", "engine.start_bench"), 110.0),
    Part("peer", ("tests/peers/transformers_serving.py",), 120.0),
)


def run_all(out: Path | None, parts: tuple[Part, ...] = PARTS, seconds: float = SECONDS) -> int:
    """Run the parts one after the other. Returns how many failed; `out` has what there is after each of them."""
    found: dict[str, Any] = {"date": time.strftime("%Y-%m-%d"), "python": platform.python_version(), "parts": {}}
    end = time.monotonic() + seconds
    for part in parts:
        left = min(part.seconds, end - time.monotonic())
        found["parts"][part.name] = _run(part, left) if left > 1 else {"rc": None, "why": "no time left"}
        found |= _compared(found["parts"])
        if out is not None:
            out.write_text(json.dumps(found, indent=1))
    if "serving_over_peer" in found:
        print(f"output tok/s over transformers' continuous batching: {found['serving_over_peer']:.2f}")
    return sum(part["rc"] != 0 for part in found["parts"].values())


def _run(part: Part, seconds: float) -> dict[str, Any]:
    print(f"--- {part.name}: at most {seconds:.0f} s", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "figures.json"
        command = [sys.executable, *part.arguments, *(("--json", str(path)) if part.figures else ())]
        began = time.monotonic()
        try:
            code = subprocess.run(command, timeout=seconds, check=False).returncode
        except subprocess.TimeoutExpired:
            code = 124
        line: dict[str, Any] = {"rc": code, "seconds": round(time.monotonic() - began, 1)}
        if path.is_file():
            line["figures"] = json.loads(path.read_text())
        return line


def _compared(parts: dict[str, Any]) -> dict[str, float]:
    """Our output tokens per second over the peer's, once both are known."""
    try:
        ours = parts["serving"]["figures"]["serving"][-1]["tokens_per_second"]
        theirs = parts["peer"]["figures"]["serving"][-1]["tokens_per_second"]
    except (KeyError, IndexError):
        return {}
    return {"serving_over_peer": ours / theirs}
