"""docker-compose.yml as podman-compose runs it: the server, Prometheus, and the load tester's replay of the shipped slice.

Runs in a network of its own (`unshare --net`), which has a loopback and nothing else: ports are free there, and nobody else sees
them. All services share it, as no network of several containers can be made everywhere; so names of services are written into
/etc/hosts. Images of Prometheus and Grafana are on no registry that packages come from, so Prometheus is Debian's (2.42, where the
file names 2.55), and in Grafana's place stands a recorder of the marks that the load tester sets.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx
import yaml

from tests.e2e.dashboards.check import queries
from tests.e2e.dashboards.real_prometheus import PrometheusQuestions
from tests.e2e.image.containers import BASE, BUILDAH_BUILD, IMAGE, PODMAN_OPTIONS, ULIMITS, build_arguments, found, run
from tests.source_tree import ROOT

PROMETHEUS = "localhost/headrace-prometheus:check"
STAND_IN = f"""FROM {BASE}
RUN apt-get update && apt-get install -y --no-install-recommends prometheus && mkdir -m 1777 /prometheus
USER nobody
"""
PROJECT = "headrace-check"
INVALID = 3  # the load tester's exit code where it was itself too slow
SLICE = 29  # requests of the shipped slice, of each one sequence
PAGES = ("Overview", "Load test")  # those that one engine without roles fills
# What this load does not fill: there is no keeper with one engine, no deadline in a trace, and no request that fails.
ELSEWHERE = ("headrace_keeper", "headrace_deadlines", "sum by (code)")
OUTSIDE = {"cwd": ROOT, "env": {**os.environ, "HEADRACE_API_KEY": "a-key-of-the-check"}}  # what each command is given


def build_prometheus() -> None:
    """The stand-in for Prometheus' own image."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "Dockerfile").write_text(STAND_IN, encoding="utf-8")
        subprocess.run([*BUILDAH_BUILD, *build_arguments(), "-t", PROMETHEUS, folder], check=True)


def override() -> dict[str, object]:
    """What is different here: one network for all, names of services by /etc/hosts, images that are here."""
    here = {
        "network_mode": "host",
        "extra_hosts": [f"{name}:127.0.0.1" for name in ("headrace", "prometheus", "grafana")],
        "ulimits": ULIMITS,
    }
    return {
        "services": {
            "headrace": {**here, "image": IMAGE},
            "load": {**here, "image": IMAGE},
            "prometheus": {**here, "image": PROMETHEUS},
        }
    }


class Marks:
    """In Grafana's place: takes annotations, and keeps them."""

    def __init__(self) -> None:
        self.kept: list[dict] = []
        marks = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                marks.kept.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
                answer = b'{"id": 1, "message": "Annotation added"}'
                self.send_response(200)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            do_PATCH = do_POST

            def log_message(self, *_):
                pass

        self._server = HTTPServer(("127.0.0.1", 3000), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()


@contextlib.contextmanager
def up(folder: Path) -> Iterator[tuple[str, ...]]:
    """podman-compose's command line, with server and Prometheus running until the block ends."""
    changes = folder / "here.yml"
    changes.write_text(yaml.safe_dump(override()), encoding="utf-8")
    compose = (
        *(str(found("podman-compose")), "-p", PROJECT, "--in-pod", "false", "--podman-args", " ".join(PODMAN_OPTIONS)),
        *("-f", "docker-compose.yml", "-f", str(changes)),
    )
    try:
        run(*compose, "up", "-d", "--no-build", "headrace", "prometheus", **OUTSIDE)
        yield compose
    finally:
        subprocess.run([*compose, "logs", "--tail", "40", "headrace", "prometheus"], check=False, **OUTSIDE)
        run(*compose, "down", "-v", **OUTSIDE)


def wait_for(url: str, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(url).status_code == 200:
                return
        time.sleep(1)
    raise AssertionError(f"{url} did not become ready")


def blank(prometheus: PrometheusQuestions, seconds: float) -> list[str]:
    """Panels of these pages that show nothing of the last seconds."""
    empty = []
    for page, panel, query, expression in queries():
        if page in PAGES and not any(name in query.expression for name in ELSEWHERE):
            series = prometheus.lately(expression, seconds)
            print(f"{len(series):4} {page:10} {panel.title:32} {expression}")
            if not series:
                empty.append(f"{page}: {panel.title}")
    return empty


def replay(compose: tuple[str, ...]) -> None:
    """The profile `load`. Where the machine is busy otherwise, the load tester may call its run no measurement; it was a load."""
    command = (*compose, "--profile", "load", "run", "--rm", "--no-deps", "-T", "load")
    code = subprocess.run(command, check=False, **OUTSIDE).returncode
    assert code in (0, INVALID), f"the load tester ended with exit code {code}"
    if code == INVALID:
        print("not checked: what the load tester measures; the machine was too busy")


def main() -> int:
    """Exit code 1 if a panel of the first pages is empty after the load."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    marks, begun = Marks(), time.monotonic()
    with tempfile.TemporaryDirectory() as folder, up(Path(folder)) as compose:
        wait_for("http://127.0.0.1:8000/ready")
        wait_for("http://127.0.0.1:9090/-/ready")
        prometheus = PrometheusQuestions("http://127.0.0.1:9090")
        print(f"up after {time.monotonic() - begun:.0f} s")
        replay(compose)
        time.sleep(10)  # two scrapes
        assert [target["health"] for target in prometheus.targets()] == ["up"]
        empty = blank(prometheus, time.monotonic() - begun)
        (ended,) = prometheus.values("sum(headrace_sequences_finished_total)")
    print(f"{ended:.0f} sequences in Prometheus, {len(marks.kept)} marks set; {len(empty)} panels empty: {empty}")
    assert marks.kept, "the load tester has set no mark"
    return 1 if empty or ended < SLICE else 0


if __name__ == "__main__":
    sys.exit(main())
