"""`python -m kernels.bench.sanitizer --json OUT`: kernels in tiny cases under NVIDIA's compute-sanitizer.

memcheck finds accesses outside of allocations (torch's allocator is bypassed, so that each tensor is one), racecheck races in
shared memory. Both run at the same time: most of their seconds are a process that starts. A machine that has no sanitizer, or does
not allow one (containers often do not), is no failure: the figures then say why it was skipped.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

TOOLS = ("memcheck", "racecheck")
CASES = (sys.executable, "-m", "tests.gpu.tiny")  # prints `done NAME` after each
SECONDS = 42.0
_SUMMARY = re.compile(r"(?:ERROR|RACECHECK) SUMMARY: (\d+)")
_REPORTED = re.compile(r"^=+ (?:Invalid|Error: (?:Race|Potential)|Race reported)", re.MULTILINE)
_SAID = re.compile(r"^=+ +(.*\S)", re.MULTILINE)


def sanitizer() -> str | None:
    """Where compute-sanitizer is: on the path, or in CUDA's folder."""
    folders = (os.environ.get("CUDA_HOME", "/usr/local/cuda"), "/usr/local/cuda")
    return shutil.which("compute-sanitizer") or next(
        (found for folder in folders if (found := shutil.which(f"{folder}/bin/compute-sanitizer"))), None
    )


def check(program: str, command: Sequence[str], seconds: float) -> dict[str, dict[str, Any]]:
    """Run `command` under every tool for at most so long: of each, errors, what was done, or why nothing was."""
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    end = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as folder:
        running = {}
        for tool in TOOLS:
            # A file, not a pipe: what the tool has started may hold it open when the tool is killed.
            with (Path(folder) / tool).open("w") as out:
                called = [program, "--tool", tool, *command]
                running[tool] = subprocess.Popen(called, env=environment, stdout=out, stderr=subprocess.STDOUT)
        return {tool: _result(process, Path(folder) / tool, end) for tool, process in running.items()}


def _result(process: "subprocess.Popen[bytes]", out: Path, end: float) -> dict[str, Any]:
    late = False
    try:
        process.wait(max(0.1, end - time.monotonic()))
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        late = True
    text = out.read_text(errors="replace")
    done = re.findall(r"^done (.+)$", text, re.MULTILINE)
    summary = _SUMMARY.search(text)
    errors = int(summary[1]) if summary else len(_REPORTED.findall(text))
    if not done and not errors:
        said = _SAID.findall(text) or text.strip().splitlines()
        why = "no case ended in time" if late else f"exit code {process.returncode}"
        return {"skipped": f"{why}: {said[-1] if said else 'nothing was said'}"}
    found: dict[str, Any] = {"errors": errors, "done": done, "late": late}
    if errors:
        found["said"] = _SAID.findall(text)[:20]
    if not errors and not late and process.returncode:
        return found | {"errors": 1, "said": text.strip().splitlines()[-5:]}
    return found


def main() -> int:
    """Print what was found. Returns the exit code: 1 if there was an error."""
    parser = argparse.ArgumentParser(prog="python -m kernels.bench.sanitizer", description=__doc__)
    parser.add_argument("--json", type=Path, help="write what was found there")
    arguments = parser.parse_args()
    program = sanitizer()
    if program is None:
        found: dict[str, dict[str, Any]] = {tool: {"skipped": "there is no compute-sanitizer here"} for tool in TOOLS}
    else:
        found = check(program, CASES, SECONDS)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(found, indent=1))
    for tool, result in found.items():
        print(f"{tool}: {json.dumps(result)}")
    return 1 if any(result.get("errors") for result in found.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
