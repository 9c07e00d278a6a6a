"""What this machine, or the part of it that a container is, has for an engine: free memory and cores. No torch.

`python -m engine.machine` prints it as JSON, for `headrace doctor`.
"""

import json
import os
from dataclasses import asdict
from pathlib import Path

import psutil

from engine.cgroups import Bound, cpu_bounds, memory_bounds


def free_memory(root: Path = Path("/")) -> Bound:
    """Memory that a process can still take without swapping, in whole bytes, and what bounds it.

    Args:
        root: of the file system in which the control groups are.
    """
    machine = Bound(psutil.virtual_memory().available, "all that is free on this machine")
    least = min([machine, *memory_bounds(root)], key=lambda bound: bound.amount)
    return Bound(int(least.amount), least.source)


def usable_cores(root: Path = Path("/")) -> Bound:
    """Whole cores that this process may keep busy, at least 1, and what bounds them.

    A quota of 2.5 cores is 2: a step whose threads together exceed it stands still until the next period (0.1 s), and the HTTP
    process needs some of it as well.

    Args:
        root: of the file system in which the control groups are.
    """
    machine = os.cpu_count() or 1
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else machine
    own = Bound(allowed, "all of this machine" if allowed == machine else f"of {machine}, the others are barred to it")
    least = min([own, *cpu_bounds(root)], key=lambda bound: bound.amount)
    return Bound(max(1, int(least.amount)), least.source)


if __name__ == "__main__":
    print(json.dumps({"memory": asdict(free_memory()), "cores": asdict(usable_cores())}))
