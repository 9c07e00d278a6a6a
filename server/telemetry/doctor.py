"""`headrace doctor`: what this machine offers for serving, and what is lost for each thing that it lacks."""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

import psutil

from configs.model.source import ModelError, resolve_model
from engine.ipc.private_folder import NoFolder, temporary_folder

MIN_PYTHON = (3, 11)
GIB = 2**30
# With the embedded model in fp32, a pool of 150 MiB and eight prompts at once, both processes together peaked at 1.1 GiB.
COMFORTABLE_BYTES = 2 * GIB
# server/ imports neither PyTorch nor kernels/. A separate interpreter does, which also shows whether they load.
TORCH_PROBE = """
import json, torch
from kernels.cpu.variants import choose
kernels = choose()
cuda = torch.cuda.is_available()
print(json.dumps({
    "version": torch.__version__,
    "cuda": torch.version.cuda,
    "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if cuda else [],
    "capability": torch.backends.cpu.get_cpu_capability(),
    "kernels": kernels.library is not None,
    "kernels_reason": kernels.reason,
}))
"""
# What bounds memory and cores here is the engine's to find out, for the same reason.
MACHINE_PROBE = "engine.machine"
_KERNELS = "C++ kernels"
_NO_GPU = "serving on a GPU (--device cuda); the CPU computes instead"
CPU_FEATURES = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx512_vnni": "AVX-512 VNNI",
    "avx512_bf16": "AVX-512 BF16",
    "amx_tile": "AMX",
    "asimd": "NEON",
    "sve": "SVE",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report. `lost` says what is lost, if anything; `fatal` that serving is impossible without it."""

    subject: str
    detail: str
    lost: str = ""
    fatal: bool = False


def examine() -> list[Finding]:
    """Look at everything. Starts two Python processes, of which one imports PyTorch; takes a few seconds."""
    torch, here = probe("-c", TORCH_PROBE), probe("-m", MACHINE_PROBE, "--device")
    gpus, built = (0, False) if isinstance(torch, str) else (len(torch["devices"]), bool(torch["kernels"]))
    on_gpu = not isinstance(here, str) and here["device"]["kind"] == "cuda"
    return [
        *(python(), *packages(), folder(), *torch_build(torch), *machine(here)),
        *(*shared_memory(gpus if on_gpu else 0), embedded_model(), compiler(built, on_gpu)),
    ]


def report(findings: Iterable[Finding]) -> str:
    """The findings as aligned lines, and whether it can be served."""
    findings = list(findings)
    fatal = [finding.subject for finding in findings if finding.fatal]
    verdict = f"Serving is not possible: {', '.join(fatal)}." if fatal else "Serving is possible: headrace serve"
    return f"{lines_of(findings)}\n\n{verdict}"


def lines_of(findings: Sequence[Finding]) -> str:
    """The findings as aligned lines."""
    width = max(len(finding.subject) for finding in findings)
    lines = []
    for finding in findings:
        mark = "FAIL" if finding.fatal else "lack" if finding.lost else "ok"
        lines.append(f"{mark:4}  {finding.subject:{width}}  {finding.detail}")
        if finding.lost:
            lines.append(f"{'':{width + 6}}  lost: {finding.lost}")
    return "\n".join(lines)


def python() -> Finding:
    """The interpreter."""
    detail = f"{platform.python_version()} at {sys.executable}"
    if sys.version_info < MIN_PYTHON:
        return Finding("Python", detail, f"everything; {'.'.join(map(str, MIN_PYTHON))} or newer is needed", fatal=True)
    return Finding("Python", detail)


def packages(distribution: str = "headrace") -> Iterator[Finding]:
    """What the distribution's metadata requires, without its extras; every one of them is needed to serve.

    A requirement with an environment marker may be for another platform, and is passed over if it is absent.
    """
    try:
        requirements = [line for line in requires(distribution) or [] if "extra ==" not in line]
        yield Finding(distribution, version(distribution))
    except PackageNotFoundError:
        yield Finding(distribution, "not installed", "everything; run `make setup` in its folder", fatal=True)
        return
    for requirement in requirements:
        name = re.split(r"[^\w.-]", requirement, maxsplit=1)[0]
        try:
            yield Finding(name, version(name))
        except PackageNotFoundError:
            if ";" not in requirement:
                yield Finding(name, "not installed", "everything; run `make setup`", fatal=True)


def folder() -> Finding:
    """Where the sockets between the server's processes go. From then on it is also what PyTorch takes for the temporary folder, as
    when serving."""
    try:
        return Finding("folder for sockets", str(temporary_folder()))
    except NoFolder as error:
        return Finding("folder for sockets", str(error), "everything", fatal=True)


def probe(*arguments: str) -> dict[str, Any] | str:
    """What another Python process finds out and prints as JSON; if it fails, the last line of why."""
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    if done.returncode == 0:
        found: dict[str, Any] = json.loads(done.stdout)
        return found
    return (done.stderr.strip().splitlines() or ["no message"])[-1]


def torch_build(found: dict[str, Any] | str) -> Iterator[Finding]:
    """Whether PyTorch's libraries load, and which instruction set its kernels picked."""
    if isinstance(found, str):
        yield Finding("PyTorch loads", f"no: {found}", "everything; run `make setup`", fatal=True)
        return
    yield Finding("PyTorch loads", f"yes, CPU kernels for {found['capability']}")
    if found["cuda"] is None:
        detail = f"{found['version']} is built without CUDA"
    else:
        detail = f"built for CUDA {found['cuda']}, sees {', '.join(found['devices']) or 'no device'}"
    yield Finding("PyTorch CUDA", detail, "" if found["devices"] else _NO_GPU)
    lost = "" if found["kernels"] else "speed: prefill and batches several times slower, twice the KV memory"
    yield Finding("C++ kernels", found["kernels_reason"], lost)


def machine(found: dict[str, Any] | str) -> Iterator[Finding]:
    """Cores, memory and device, as an engine would find them: what a container or a service may use of the machine's."""
    if isinstance(found, str):
        yield Finding("CPU", f"unknown: {found}", "everything", fatal=True)
        return
    yield cpu(int(found["cores"]["amount"]), found["cores"]["source"])
    yield memory(int(found["memory"]["amount"]), found["memory"]["source"])
    yield device(found["device"]["kind"], found["device"]["reason"])


def cpu(cores: int, source: str, cpuinfo: Path = Path("/proc/cpuinfo")) -> Finding:
    """Cores this process may use, what says so, and the vector units that matter."""
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    model = re.search(r"model name\s*: (.*)", text)
    flags = re.search(r"(?:flags|Features)\s*: (.*)", text)
    present = set(flags[1].split()) if flags else set()
    names = [name for flag, name in CPU_FEATURES.items() if flag in present]
    described = f"{model[1].strip() if model else platform.machine()}, {' '.join(names) or 'features unknown'}"
    detail = f"{cores} cores ({source}), {described}"
    if flags and not present & {"avx2", "asimd"}:
        return Finding("CPU", detail, "most of the speed: without AVX2 or NEON the linear layers run on scalar code")
    return Finding("CPU", detail)


def memory(available: int, source: str, total: int | None = None) -> Finding:
    """Available memory, what says so, and the machine's total, in bytes; as the system reports it unless given."""
    total = psutil.virtual_memory().total if total is None else total
    detail = f"{available / GIB:.1f} GiB available ({source}) of {total / GIB:.1f} GiB"
    if available < COMFORTABLE_BYTES:
        return Finding("memory", detail, "room for the default pool; try `headrace serve --config small`")
    return Finding("memory", detail)


def embedded_model() -> Finding:
    """The model that `headrace serve` serves without a MODEL."""
    try:
        path = resolve_model(None).path
    except ModelError as error:
        return Finding("embedded model", str(error), "`headrace serve` without a MODEL")
    return Finding("embedded model", f"{path.name}, {path.stat().st_size / 2**20:.0f} MiB")


def device(kind: str, reason: str) -> Finding:
    """What computes with `--device auto`, as an engine chooses it, and why."""
    return Finding("device", f"{'a GPU' if kind == 'cuda' else 'the CPU'}: {reason}", "" if kind == "cuda" else _NO_GPU)


def shared_memory(gpus: int, folder: str = "/dev/shm") -> Iterator[Finding]:
    """Where the ranks of a tensor-parallel engine exchange data. Containers give it 64 MiB unless they are told."""
    if gpus < 2:
        return
    size = shutil.disk_usage(folder).total if Path(folder).is_dir() else 0
    lost = "" if size >= GIB else "--tensor-parallel; give the container `--shm-size 1g`, or `--ipc host`"
    yield Finding(folder, f"{size / 2**20:.0f} MiB", lost)


def compiler(built: bool, on_gpu: bool = False) -> Finding:
    """A C++ compiler, with which `make setup` builds the CPU kernels, and a C one, with which Triton builds what starts its own."""
    cpp = _first("c++", "g++", "clang++")
    if on_gpu and not (os.environ.get("CC") or _first("cc", "gcc", "clang")):
        return Finding("C compiler", "not found", "serving on a GPU: Triton needs one (`apt install gcc`)")
    if cpp is not None:
        return Finding("C++ compiler", cpp)
    if built:
        return Finding("C++ compiler", "not found, and not needed: the CPU kernels are built")
    fix = "building the CPU kernels: `apt install g++`, then `python -m kernels.cpu.build`"
    return Finding("C++ compiler", "not found", fix)


def _first(*names: str) -> str | None:
    return next((path for name in names if (path := shutil.which(name))), None)
