"""What this machine, or the part of it that a container is, has for an engine: free memory and cores. No torch.

`python -m engine.machine` prints it as JSON, for `headrace doctor`; with `--settings` also the GPUs, for a server that shares
all of it out among its engines.
"""

import argparse
import json
import os
import re
import resource
from dataclasses import asdict
from pathlib import Path

import psutil

from configs.model.source import ModelError
from configs.settings import Settings
from engine.cgroups import Bound, cpu_bounds, memory_bounds
from engine.device import choose_device, gpus_for
from engine.ipc.share import own_share

# Each limit that a shell sets to a process, as `ulimit` calls it, what /proc says of it is used, and what an engine takes of it
# before it holds any weights: libraries, and of each thread its stack and the room that malloc keeps for it. Measured with two
# cores: 0.7 GiB of addresses, 0.35 GiB of data.
_PROCESS_LIMITS = (
    (resource.RLIMIT_AS, "ulimit -v", "VmSize", 640 * 2**20, 96 * 2**20),
    (resource.RLIMIT_DATA, "ulimit -d", "VmData", 384 * 2**20, 16 * 2**20),
)
_OTHER_THREADS = 2


def free_memory(root: Path = Path("/"), *, of_process: bool = True) -> Bound:
    """Memory that a process can still take without swapping, in whole bytes, and what bounds it.

    Args:
        root: of the file system in which the control groups are.
        of_process: whether the limits count that a single process has; each of several engines has them for itself.
    """
    machine = Bound(psutil.virtual_memory().available, "all that is free on this machine")
    own = process_bounds(root) if of_process else []
    least = min([machine, *memory_bounds(root), *own, *_shared("memory")], key=lambda bound: bound.amount)
    return Bound(int(least.amount), least.source)


def process_bounds(root: Path = Path("/")) -> list[Bound]:
    """What the limits of this process leave an engine for weights, KV and activations, in bytes; at least 0.

    Args:
        root: of the file system in which `/proc` is.
    """
    limits = {each: resource.getrlimit(each[0])[0] for each in _PROCESS_LIMITS}
    set_ones = {each: limit for each, limit in limits.items() if limit != resource.RLIM_INFINITY}
    if not set_ones:
        return []
    try:
        status = (root / "proc/self/status").read_text()
    except OSError:
        status = ""
    threads = usable_cores(root).amount + _OTHER_THREADS
    bounds = []
    for (_, name, field, libraries, each_thread), limit in set_ones.items():
        match = re.search(rf"^{field}:\s+(\d+) kB", status, re.MULTILINE)
        used = 1024 * int(match[1]) if match else 0
        left = limit - used - libraries - each_thread * int(threads)
        bounds.append(Bound(max(0, left), f"{name} of this process"))
    return bounds


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
    least = min([own, *cpu_bounds(root), *_shared("cores")], key=lambda bound: bound.amount)
    return Bound(max(1, int(least.amount)), least.source)


def _shared(what: str) -> list[Bound]:
    """The bound that the server sets to one of several engines."""
    share = own_share()
    return [] if share is None else [Bound(getattr(share, what), f"its part with --engines {share.engines}")]


def main() -> None:
    """Print what there is, or why it is not enough for the engines of these settings."""
    parser = argparse.ArgumentParser(prog="python -m engine.machine")
    parser.add_argument("--settings", type=Settings.model_validate_json, help="of a server of several engines, as JSON")
    parser.add_argument(
        "--device", action="store_true", help="also say what computes with --device auto, which may import torch"
    )
    options = parser.parse_args()
    settings: Settings | None = options.settings
    found: dict[str, object] = {
        "memory": asdict(free_memory(of_process=settings is None)),
        "cores": asdict(usable_cores()),
    }
    if options.device:
        found["device"] = asdict(choose_device(Settings.model_validate({})))
    try:
        if settings is not None:
            found["gpus"] = gpus_for(settings)
    except ModelError as error:
        found["refused"] = str(error)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
