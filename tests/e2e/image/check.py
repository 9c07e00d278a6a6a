"""Builds the CPU image and runs it as a stranger would, alone and by docker-compose.yml: `make image-check`. Not part of CI.

Needs Debian's buildah, podman, runc and mmdebstrap, the extra `image`, root, a network for the packages, some 20 GB of disk and
some twenty minutes on two cores.

Without IMAGE_BASE (a name, or a .tar of a root file system) the base is a Debian that mmdebstrap makes: a stand-in for
python:3.11-slim-bookworm, which is not to be had everywhere. IMAGE_BUILD_ARGS: further arguments of `buildah build`, such as
`--volume` for a local index of packages. What cannot be checked where it runs is said in a line that begins with "not checked".
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

import httpx

from tests.e2e.dashboards.real_prometheus import free_port
from tests.e2e.image.compose import build_prometheus
from tests.e2e.image.containers import BASE, BUILDAH_BUILD, FOLDER, IMAGE, PODMAN, ULIMITS, build_arguments, found, run
from tests.source_tree import ROOT

MAX_BYTES = 1.2e9
UID = 12345
PROGRAMS = ("buildah", "podman", "runc", "mmdebstrap", "unshare", "ip")  # the last two: util-linux, iproute2
LINTS = (
    ("hadolint", "Dockerfile"),
    ("check-jsonschema", "--builtin-schema", "vendor.compose-spec", "docker-compose.yml"),
)
BOUNDED = tuple(f"--ulimit={name}={most}:{most}" for name, most in ULIMITS.items())
QUOTA = ("--cpus", "1.5", "--memory", "2g")
NO_COMPILER = "import shutil; print([shutil.which(each) for each in ('gcc', 'cc', 'g++', 'c++', 'clang', 'ld', 'as')])"
KERNELS = "from kernels.cpu.variants import VARIANTS; print([each.name for each in VARIANTS if each.library.is_file()])"


def lint() -> None:
    """Dockerfile and compose file. Raises CalledProcessError with what is wrong."""
    for name, *arguments in LINTS:
        print(run(str(found(name)), *arguments, cwd=ROOT) or f"{name}: clean")


def base() -> None:
    """The image to build on: what IMAGE_BASE names, or a Debian made for it."""
    given = os.environ.get("IMAGE_BASE", "")
    if given and not given.endswith(".tar"):
        run(*PODMAN, "pull", given)
        run(*PODMAN, "tag", given, BASE)
        return
    with tempfile.TemporaryDirectory() as folder:
        archive = given or f"{folder}/base.tar"
        if not given:
            packages = "--include=python3,python3-venv,ca-certificates"
            run("mmdebstrap", "--variant=minbase", packages, "bookworm", archive)
            print("not checked: python:3.11-slim-bookworm as the base; the stand-in is Debian's python3, by mmdebstrap")
        run(*PODMAN, "import", archive, BASE)


def build() -> None:
    """The image as the Dockerfile says, and how large it is. Raises AssertionError if that is more than the Dockerfile says."""
    begun = time.monotonic()
    command = (*BUILDAH_BUILD, "--build-arg", f"PYTHON_IMAGE={BASE}", *build_arguments(), "-t", IMAGE, str(ROOT))
    subprocess.run(command, check=True)  # minutes, so that it is good to see where it is
    size = int(run(*PODMAN, "image", "inspect", "--format", "{{.Size}}", IMAGE))
    below = int(run(*PODMAN, "image", "inspect", "--format", "{{.Size}}", BASE))
    print(f"built in {time.monotonic() - begun:.0f} s; {size:,} bytes unpacked, of which {below:,} are the base")
    assert size <= MAX_BYTES, "the image is larger than docs/deploy.md says"


@contextlib.contextmanager
def running(port: int, *limits: str) -> Iterator[str]:
    """The id of a container on a read-only root, as a user that nobody knows, without a capability and without HOME."""
    stranger = ("--read-only", "--cap-drop", "all", "--user", f"{UID}:{UID}")
    settings = {"PORT": port, "KV_DISK_PATH": "/kv/cache", "HOST": "127.0.0.1"}
    environment = [f"--env=HEADRACE_{name}={value}" for name, value in settings.items()]
    no_home = ("--entrypoint", '["env", "-u", "HOME", "headrace"]')  # podman and runc give one to whoever has none
    name = run(
        *(*PODMAN, "run", "--detach", "--network", "host", *BOUNDED, *stranger, *environment, *limits, *no_home),
        *(IMAGE, "serve"),
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
    with running(port) as name:
        ready(url, name)
        print(f"ready {time.monotonic() - begun:.1f} s after `podman run`")
        look_inside(name)
        run(*PODMAN, "healthcheck", "run", name)
        print(inside(name, "headrace", "doctor"))
        chat(url)
        drain(url, name)


def look_inside(name: str) -> None:
    """Who it is, what it has and what it may write."""
    assert inside(name, "id", "-u") == str(UID)
    assert "HOME=" not in inside(name, "cat", "/proc/1/environ").replace("HF_HOME=", "")
    assert inside(name, "python3", "-c", NO_COMPILER) == str([None] * 7)
    kernels = inside(name, "python3", "-P", "-c", KERNELS)
    assert kernels == "['amx', 'avx512_bf16', 'avx512_vnni', 'avx512', 'avx2']", kernels
    refused = subprocess.run([*PODMAN, "exec", name, "touch", "/opt/headrace/x"], check=False, capture_output=True)
    assert refused.returncode != 0, "the root file system can be written"
    inside(name, "touch", "/kv/x", "/models/x", "/cache/x")


def chat(url: str) -> None:
    body = {"messages": [{"role": "user", "content": "Where does a river end?"}], "max_tokens": 20, "temperature": 0}
    answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=120).json()
    page = httpx.get(f"{url}/", headers={"Accept": "text/html"})
    assert page.headers["content-type"].startswith("text/html") and "<html" in page.text, "the page is not in the image"
    print(f"it says: {answer['choices'][0]['message']['content']!r}, {answer['usage']}")
    assert answer["usage"]["completion_tokens"] > 0


def drain(url: str, name: str) -> None:
    """Stop it in the midst of a stream, which comes to its end."""
    body = {"prompt": "Water turns the", "max_tokens": 200, "temperature": 0, "ignore_eos": True, "stream": True}
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


def limited() -> None:
    """A container with a quota of 1.5 cores and 2 GiB computes with one thread, within its memory, and says so at its start."""
    tried = subprocess.run(
        [*PODMAN, "run", "--rm", "--network", "host", *BOUNDED, *QUOTA, IMAGE, "--version"],
        check=False,
        capture_output=True,
        text=True,
    )
    if tried.returncode != 0:
        print(
            f"not checked: a container with limits, which needs control groups: {tried.stderr.strip().splitlines()[-1]}"
        )
        return
    port = free_port()
    with running(port, *QUOTA, "--env=HEADRACE_KV_HOST_GIB=0") as name:
        ready(f"http://127.0.0.1:{port}", name)
        said = run(*PODMAN, "logs", name)
        (cores,) = (line for line in said.splitlines() if line.startswith("Cores"))
        print(cores)
        assert cores.split()[1] == "1" and "cpu.c" in cores, "the quota of 1.5 cores is not seen"
        chat(f"http://127.0.0.1:{port}")


def main() -> int:
    """Exit code 2 if a program is missing."""
    ours = (*(name for name, *_ in LINTS), "podman-compose")
    if missing := [name for name in (*PROGRAMS, *ours) if found(name) is None]:
        print(
            f"missing: {', '.join(missing)}; Debian has {', '.join(PROGRAMS)}, headrace[image] the others",
            file=sys.stderr,
        )
        return 2
    lint()
    try:
        base()
        build()
        serve()
        limited()
        build_prometheus()
        # In a network of its own, where all ports are free.
        subprocess.run(["unshare", "--net", sys.executable, "-m", "tests.e2e.image.compose"], cwd=ROOT, check=True)
    finally:
        shutil.rmtree(FOLDER, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
