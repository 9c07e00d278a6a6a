"""Which device computes, chosen once before the memory plan, and why. No torch unless there is an NVIDIA driver."""

import atexit
import ctypes
import logging
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from configs.model.source import ModelError
from configs.settings import Settings
from engine.ipc.private_folder import private_folder, remove_folder
from engine.ipc.share import visible_devices

log = logging.getLogger("headrace.engine")

LEAST_CAPABILITY = (8, 0)  # Ampere: bf16 in the tensor cores, asynchronous copies to shared memory


@dataclass(frozen=True, slots=True)
class Device:
    """The kind of device that computes; `reason` says why, for the start-up log."""

    kind: Literal["cpu", "cuda"]
    reason: str


def choose_device(settings: Settings) -> Device:
    """What `--device` asks for; `auto` is the GPU where torch has one that the kernels run on.

    Raises:
        ModelError: a GPU is asked for and there is none to use; says why.
    """
    if settings.device == "cpu":
        return Device("cpu", "as --device cpu asks")
    if settings.device == "cuda" and os.environ.get("TRITON_INTERPRET") == "1":
        return Device(
            "cuda", "CPU tensors, since TRITON_INTERPRET=1 has Triton interpret its kernels: slow, for debugging"
        )
    obstacle = _no_driver() or _unusable(settings.tensor_parallel)
    if obstacle is None:
        return Device("cuda", "torch has a GPU" if settings.device == "auto" else "as --device cuda asks")
    if settings.device == "cuda":
        raise ModelError(f"--device cuda: {obstacle}; use --device cpu, or auto.")
    if settings.tensor_parallel > 1:
        raise ModelError(f"--tensor-parallel {settings.tensor_parallel} needs as many GPUs: {obstacle}.")
    return Device("cpu", obstacle)


def gpus_for(settings: Settings) -> list[str]:
    """The GPUs of all engines of a server, as `CUDA_VISIBLE_DEVICES` names them; none where a CPU computes.

    Raises:
        ModelError: a GPU is asked for and there is none to use, or there are too few for all engines.
    """
    if choose_device(settings).kind == "cpu" or os.environ.get("TRITON_INTERPRET") == "1":
        return []
    import torch

    count, ranks = torch.cuda.device_count(), settings.tensor_parallel
    needed = settings.engines * ranks
    if count < needed:
        each = f" of {ranks} GPUs each (--tensor-parallel)" if ranks > 1 else ""
        raise ModelError(
            f"--engines {settings.engines}{each} needs {needed} GPUs and torch finds {count}: ask for fewer, or use --device cpu."
        )
    return visible_devices(needed)


def _keep_builds() -> None:
    """Keep compiled kernels among this user's caches, unless the variable says where: compiling them takes a minute. Where there is
    no such place, the temporary folder has to do, for this process alone: what others could write must not be run.

    Raises:
        ModelError: nothing can be written to at all.
    """
    if os.environ.get("TRITON_CACHE_DIR"):
        return
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path(os.path.expanduser("~"), ".cache")) / "headrace" / "triton"
    try:
        if not folder.is_absolute():  # no HOME, and a user whom nobody knows
            raise OSError("this user has no home")
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        log.warning(
            "compiled kernels are not kept (%s): set TRITON_CACHE_DIR, or each start takes a minute longer", error
        )
        try:
            folder = private_folder()
            atexit.register(remove_folder, folder)
        except OSError as refused:
            raise ModelError(str(refused)) from refused
    os.environ["TRITON_CACHE_DIR"] = str(folder)


def _no_driver() -> str | None:
    """Why there is no driver, or None. Takes microseconds where there is no GPU; importing torch takes a second."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "there is no NVIDIA driver"
    return None


def _unusable(wanted: int) -> str | None:
    """Why torch or the kernels cannot use `wanted` GPUs; None if they can."""
    _keep_builds()
    import torch

    if not torch.cuda.is_available():
        return f"torch {torch.__version__} finds no GPU"
    if torch.cuda.device_count() < wanted:
        return f"torch finds {torch.cuda.device_count()} GPUs, {wanted} are asked for"
    found = torch.cuda.get_device_capability(0)
    if found < LEAST_CAPABILITY:
        needed = ".".join(map(str, LEAST_CAPABILITY))
        return (
            f"{torch.cuda.get_device_name(0)} has compute capability {found[0]}.{found[1]}, the kernels need {needed}"
        )
    try:
        import triton
    except ImportError as error:
        return f"triton cannot be imported ({error}); install headrace[gpu]"
    del triton  # imported to see whether it is there
    return None


class StepLimits(NamedTuple):
    """How much one step may hold: tokens, and sequences that run at once."""

    tokens: int
    sequences: int


def step_limits(settings: Settings, usual: StepLimits) -> StepLimits:
    """The limits in the settings; `usual` for the device where they say nothing."""
    return StepLimits(settings.max_step_tokens or usual.tokens, settings.max_running or usual.sequences)
