"""A Prometheus of one's own: Debian's program, with our configuration and rules, on loopback; and the questions it is asked."""

import contextlib
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

import httpx
import yaml

from server.monitoring.files import prometheus
from tests.source_tree import ROOT

RULES = ("rules.yml", "alerts.yml")


class MissingProgramError(RuntimeError):
    """A program that the check needs is not there."""


def program(name: str) -> str:
    """Its path: in the folder that PROMETHEUS names, else where a shell finds it.

    Raises:
        MissingProgramError: it is in neither.
    """
    folder = os.environ.get("PROMETHEUS")
    found = shutil.which(name, path=folder) if folder else shutil.which(name)
    if found is None:
        raise MissingProgramError(
            f"{name} is missing: apt install prometheus, or PROMETHEUS=FOLDER for the folder of both"
        )
    return found


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class PrometheusQuestions:
    """What a Prometheus at this address is asked."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._client = httpx.Client(base_url=url, timeout=30)

    def _ask(self, path: str, **parameters: object) -> dict:
        answer = (
            self._client.post(path, data=parameters) if "query" in path else self._client.get(path, params=parameters)
        )
        body = answer.json()
        if body["status"] != "success":
            raise ValueError(f"{body['errorType']}: {body['error']}")
        return body["data"]

    def now(self, expression: str) -> list[dict]:
        """The series that an expression has now, without those that are no number. Raises ValueError with what Prometheus says."""
        found = self._ask("/api/v1/query", query=expression)
        values = [found["result"]] if found["resultType"] == "scalar" else [one["value"] for one in found["result"]]
        labels = [{}] if found["resultType"] == "scalar" else [one["metric"] for one in found["result"]]
        return [one for one, (_, value) in zip(labels, values, strict=True) if value != "NaN"]

    def values(self, expression: str) -> list[float]:
        """Of the series that an expression has now."""
        return [float(one["value"][1]) for one in self._ask("/api/v1/query", query=expression)["result"]]

    def lately(self, expression: str, seconds: float) -> list[dict]:
        """The series that it has had within the last seconds, likewise."""
        end = time.time()
        found = self._ask("/api/v1/query_range", query=expression, start=end - seconds, end=end, step=2)
        return [one["metric"] for one in found["result"] if any(value != "NaN" for _, value in one["values"])]

    def label_values(self, label: str, series: str) -> set[str]:
        """What a variable of Grafana offers."""
        return set(self._ask(f"/api/v1/label/{label}/values", **{"match[]": series}))

    def rules(self) -> list[dict]:
        """Each rule, with its health and last error."""
        return [rule for group in self._ask("/api/v1/rules")["groups"] for rule in group["rules"]]

    def targets(self) -> list[dict]:
        """Each target, with its health and last error."""
        return list(self._ask("/api/v1/targets")["activeTargets"])


class RealPrometheus(PrometheusQuestions):
    """Scrapes `target` (host and port) once a second with this key, until `stop`."""

    def __init__(self, folder: Path, target: str, key: str) -> None:
        (folder / "key").write_text(key)
        config = prometheus(target, str(folder / "key"))
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        for name in RULES:
            shutil.copy(ROOT / "configs" / "prometheus" / name, folder)
        super().__init__(f"http://127.0.0.1:{free_port()}")
        self.log = folder / "prometheus.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    program("prometheus"),
                    f"--config.file={folder / 'prometheus.yml'}",
                    f"--storage.tsdb.path={folder / 'data'}",
                    f"--web.listen-address={self.url.removeprefix('http://')}",
                ],
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self._wait_ready()

    def _wait_ready(self) -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and self.process.poll() is None:
            with contextlib.suppress(httpx.TransportError):
                if self._client.get("/-/ready").status_code == 200:
                    return
            time.sleep(0.2)
        self.stop()
        raise RuntimeError(f"Prometheus did not become ready:\n{self.log.read_text()}")

    def stop(self) -> None:
        self._client.close()
        self.process.terminate()
        self.process.wait(30)
