"""`headrace doctor`: what this machine offers for serving, and what is lost for each thing that it lacks."""

import json
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
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
    """Look at everything. Starts one Python process that imports PyTorch; takes a few seconds."""
    torch = list(torch_build())
    built = any(finding.subject == _KERNELS and not finding.lost for finding in torch)
    return [python(), *packages(), folder(), *torch, *machine(), embedded_model(), gpu(), compiler(built)]


def report(findings: Iterable[Finding]) -> str:
    """The findings as aligned lines, and a verdict."""
    findings = list(findings)
    width = max(len(finding.subject) for finding in findings)
    lines = []
    for finding in findings:
        mark = "FAIL" if finding.fatal else "lack" if finding.lost else "ok"
        lines.append(f"{mark:4}  {finding.subject:{width}}  {finding.detail}")
        if finding.lost:
            lines.append(f"{'':{width + 6}}  lost: {finding.lost}")
    fatal = [finding.subject for finding in findings if finding.fatal]
    verdict = f"Serving is not possible: {', '.join(fatal)}." if fatal else "Serving is possible: headrace serve"
    return "\n".join([*lines, "", verdict])


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


def torch_build() -> Iterator[Finding]:
    """Whether PyTorch's libraries load, and which instruction set its kernels picked."""
    probe = subprocess.run([sys.executable, "-c", TORCH_PROBE], capture_output=True, text=True, check=False)
    if probe.returncode != 0:
        reason = (probe.stderr.strip().splitlines() or ["no message"])[-1]
        yield Finding("PyTorch loads", f"no: {reason}", "everything; run `make setup`", fatal=True)
        return
    found: dict[str, Any] = json.loads(probe.stdout)
    yield Finding("PyTorch loads", f"yes, CPU kernels for {found['capability']}")
    if found["cuda"] is None:
        detail = f"{found['version']} is built without CUDA"
    else:
        detail = f"built for CUDA {found['cuda']}, sees {', '.join(found['devices']) or 'no device'}"
    yield Finding("PyTorch CUDA", detail, "" if found["devices"] else _NO_GPU)
    lost = "" if found["kernels"] else "speed: prefill and batches several times slower, twice the KV memory"
    yield Finding(_KERNELS, found["kernels_reason"], lost)


def machine() -> Iterator[Finding]:
    """Cores and memory, as an engine would find them: what a container or a service may use of the machine's."""
    probe = subprocess.run([sys.executable, "-m", MACHINE_PROBE], capture_output=True, text=True, check=False)
    if probe.returncode != 0:
        reason = (probe.stderr.strip().splitlines() or ["no message"])[-1]
        yield Finding("CPU", f"unknown: {reason}", "everything", fatal=True)
        return
    found: dict[str, Any] = json.loads(probe.stdout)
    yield cpu(int(found["cores"]["amount"]), found["cores"]["source"])
    yield memory(int(found["memory"]["amount"]), found["memory"]["source"])


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


def gpu(loaded: Path = Path("/proc/driver/nvidia/version")) -> Finding:
    """What serving on a GPU needs: NVIDIA's driver and Triton, which compiles the kernels."""
    driver = loaded.exists() or shutil.which("nvidia-smi") is not None
    try:
        triton = f"Triton {version('triton')}"
    except PackageNotFoundError:
        triton = "no Triton"
    detail = f"{'NVIDIA driver' if driver else 'no NVIDIA driver'}, {triton}"
    ready = driver and not triton.startswith("no")
    return Finding("GPU", detail, "" if ready else _NO_GPU)


def compiler(built: bool) -> Finding:
    """A C++ compiler, with which `make setup` builds the CPU kernels; an image has them `built`, and no compiler."""
    found = next((path for name in ("c++", "g++", "clang++") if (path := shutil.which(name))), None)
    if found is None and built:
        return Finding("C++ compiler", "not found, and not needed: the CPU kernels are built")
    if found is None:
        return Finding(
            "C++ compiler",
            "not found",
            "building the CPU kernels: `apt install g++`, then `python -m kernels.cpu.build`",
        )
    return Finding("C++ compiler", found)
