"""What this machine, or the part of it that a container is, has for an engine: free memory and cores. No torch.

`python -m engine.machine` prints it as JSON, for `headrace doctor`; with `--settings` also the GPUs, for a server that shares
all of it out among its engines.
"""

import argparse
import json
import os
from dataclasses import asdict
from pathlib import Path

import psutil

from configs.model.source import ModelError
from configs.settings import Settings
from engine.cgroups import Bound, cpu_bounds, memory_bounds
from engine.device import gpus_for
from engine.ipc.share import own_share


def free_memory(root: Path = Path("/")) -> Bound:
    """Memory that a process can still take without swapping, in whole bytes, and what bounds it.

    Args:
        root: of the file system in which the control groups are.
    """
    machine = Bound(psutil.virtual_memory().available, "all that is free on this machine")
    least = min([machine, *memory_bounds(root), *_shared("memory")], key=lambda bound: bound.amount)
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
    settings: Settings | None = parser.parse_args().settings
    found: dict[str, object] = {"memory": asdict(free_memory()), "cores": asdict(usable_cores())}
    try:
        if settings is not None:
            found["gpus"] = gpus_for(settings)
    except ModelError as error:
        found["refused"] = str(error)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
