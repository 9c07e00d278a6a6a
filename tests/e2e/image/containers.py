"""Containers of the check's own: one store and one podman for all of it, so that nothing of the machine's is touched."""

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

IMAGE, BASE = "localhost/headrace:check", "localhost/headrace-base:check"
FOLDER = Path(tempfile.gettempdir()) / "headrace-image-check"
STORE = ("--root", f"{FOLDER}/store", "--runroot", f"{FOLDER}/run", "--storage-driver", "vfs")
PODMAN_OPTIONS = (*STORE, "--runtime", "runc", "--cgroup-manager", "cgroupfs")
PODMAN = ("podman", *PODMAN_OPTIONS)
ULIMITS = {"nofile": 4096, "nproc": 4096}  # a container within another may not ask for more
BUILDAH_BUILD = ("buildah", *STORE, "build", "--runtime", "runc", "--network", "host", "--format", "docker")


def run(*command: str, **options: object) -> str:
    """Its output, without the newline at its end. Raises CalledProcessError."""
    print("+", shlex.join(command).replace(f" {shlex.join(PODMAN_OPTIONS)}", ""), flush=True)
    done = subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE, **options)
    return done.stdout.strip()


def found(program: str) -> str | None:
    """Where a program is: beside this Python, or where a shell finds it."""
    return shutil.which(program, path=os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", ""))))


def build_arguments() -> list[str]:
    """What IMAGE_BUILD_ARGS adds to `buildah build`."""
    return shlex.split(os.environ.get("IMAGE_BUILD_ARGS", ""))
