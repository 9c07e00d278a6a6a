"""The command line of each engine of a server, with its part of the machine where there are several.

What the machine has is measured by a process of the engine's kind, once and before any engine is started: later measurements would
take what the first engines have loaded for lost.
"""

import json
import logging
import subprocess
import sys

from configs.model.source import ModelSource
from configs.settings import Settings
from engine.ipc.child import module_arguments, without_secrets, working_folder
from engine.ipc.keeper_address import KeeperAddress
from engine.ipc.share import Share
from server.engines.launch import CannotLaunch

_log = logging.getLogger("headrace.engine")
_MEASURE_SECONDS = 120.0  # torch is imported where there is a GPU, from a cold disk


class CannotShare(CannotLaunch):
    """The machine cannot be divided among the engines; the sentence says why."""


def engine_commands(
    settings: Settings, source: ModelSource, *, weights: int | None = None, keeper: KeeperAddress | None = None
) -> dict[str, list[str]]:
    """The command lines by the engines' names, in order. They lack the endpoints, which each incarnation has of its own.

    Args:
        settings: the server's.
        source: the model's files.
        weights: descriptor of memory for the weights of several engines, which they inherit; see `Share.weights`.
        keeper: of the tiers below the device, where all engines share them.

    Raises:
        CannotShare: there is too little for so many.
    """
    if settings.engines == 1:
        return {name: module_arguments("engine", settings, source) for name in settings.engine_names}
    return {
        share.engine: [
            *module_arguments("engine", settings, source),
            *("--share", share.encode()),
            *(("--keeper", keeper.encode()) if keeper else ()),
        ]
        for share in shares(settings, _measured(settings), weights)
    }


def shares(settings: Settings, machine: dict[str, object], weights: int | None = None) -> list[Share]:
    """Equal parts for all engines, of what `python -m engine.machine --settings` found. What does not divide is left over.

    Raises:
        CannotShare: it says so.
    """
    match machine:
        case {"refused": str(reason)}:
            raise CannotShare(reason)
        case {
            "memory": {"amount": int(memory)},
            "cores": {"amount": int(cores), "source": str(source)},
            "gpus": list(gpus),
        }:
            pass
        case _:
            raise CannotShare(f"the machine could not be measured: {machine}")
    count, ranks = settings.engines, settings.tensor_parallel
    if cores < count and not gpus:
        _log.warning(
            "%d engines on %d cores (%s): each computes with one thread, and they wait for each other",
            count,
            cores,
            source,
        )
    return [
        Share(
            engine=name,
            engines=count,
            memory=memory // count,
            cores=max(1, cores // count),
            devices=gpus[number * ranks : (number + 1) * ranks],
            weights=None if gpus else weights,
        )
        for number, name in enumerate(settings.engine_names)
    ]


def _measured(settings: Settings) -> dict[str, object]:
    return machine_says("--settings", settings.for_engine())


def machine_says(*arguments: str) -> dict[str, object]:
    """Ask `python -m engine.machine`, a process that may import what an engine does.

    Raises:
        CannotShare: it does not answer.
    """
    command = [sys.executable, "-m", "engine.machine", *arguments]
    try:
        asked = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env=without_secrets(),
            cwd=working_folder(),
            timeout=_MEASURE_SECONDS,
            check=True,
        )
        found: dict[str, object] = json.loads(asked.stdout.splitlines()[-1])
    except (subprocess.SubprocessError, OSError, ValueError, IndexError) as error:
        said = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
        raise CannotShare(f"the machine could not be measured: {said[-1]}") from error
    return found
