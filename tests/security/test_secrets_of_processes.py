"""API keys as other processes see them: a real server's children, command lines, output, answers and files."""

import itertools
import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest

from engine.ipc.child import spawn
from tests.security.test_secrets import HEADERS, KEY, WAYS, secret_in
from tests.source_tree import ROOT

pytestmark = pytest.mark.processes


def children(pid: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent == pid:
            found += [int(stat.parent.name), *children(int(stat.parent.name))]
    return found


@pytest.mark.parametrize("way", ["flag", *(pytest.param(way, marks=pytest.mark.long) for way in ("variable", "file"))])
def test_a_real_server_shows_no_key(tmp_path, way):
    flags, variables = WAYS[way](tmp_path)
    environment = {**os.environ, **variables, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    line = [sys.executable, "-m", "server.cli", "serve", "--port", "0", "--load-format", "dummy", "--access-log"]
    line += ["--log-level", "debug", "--kv-blocks", "64", *flags]
    with subprocess.Popen(
        line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=ROOT
    ) as process:
        said: list[str] = []
        readers = [threading.Thread(target=said.extend, args=(pipe,)) for pipe in (process.stdout, process.stderr)]
        for reader in readers:
            reader.start()
        try:
            url = address(process, said)
            with httpx.Client(base_url=url, timeout=60) as client:
                while client.get("/ready").status_code != 200:
                    assert process.poll() is None, said
                    time.sleep(0.05)
                shown = "".join(answer.text + str(answer.headers) for answer in asked(client))
            engines = children(process.pid)
            assert engines
            for pid, name in itertools.product(engines, ("cmdline", "environ")):
                assert secret_in(Path(f"/proc/{pid}/{name}").read_bytes().decode("utf-8", "replace")) == [], name
            if way != "flag":  # which is the operator's own doing
                assert secret_in(Path(f"/proc/{process.pid}/cmdline").read_text(encoding="utf-8")) == []
            assert secret_in(shown) == []
        finally:
            process.terminate()
            process.wait(60)
            for reader in readers:
                reader.join(60)
    assert len("".join(said)) > 200
    assert secret_in("".join(said)) == []
    for file in tmp_path.rglob("*"):
        assert file.name == "settings.yaml" or file.is_dir() or secret_in(file.read_text(errors="replace")) == []


def address(process, said) -> str:
    while not (found := re.search(r"http://127\.0\.0\.1:\d+", "".join(list(said)))):
        assert process.poll() is None, said
        time.sleep(0.02)
    return found[0]


def asked(client):
    """Answers good and bad, with the key, without it, and with it in the wrong places."""
    body = {"prompt": "a", "max_tokens": 1}
    yield client.post("/v1/completions", json=body, headers=HEADERS)
    yield client.post("/v1/completions", json={**body, "max_tokens": -1}, headers=HEADERS)
    yield client.post("/v1/completions", json={**body, "api_key": 1}, headers=HEADERS)
    yield client.post("/v1/completions", json=body)
    yield client.post("/v1/completions", json=body, headers={"Authorization": f"Basic {KEY}"})
    yield client.post("/v1/completions", json=body, headers={"Authorization": f"Bearer {KEY[:14]}"})
    yield client.get("/v1/models", headers=HEADERS)
    yield client.get("/nowhere", headers=HEADERS)
    yield client.get("/metrics", headers=HEADERS)
    yield client.get("/health", headers=HEADERS)
    yield client.get("/version", headers=HEADERS)
    yield client.get("/openapi.json", headers=HEADERS)


def test_a_child_inherits_the_environment_but_for_secrets(monkeypatch, tmp_path):
    monkeypatch.setenv("HEADRACE_API_KEY", KEY)
    monkeypatch.setenv("HEADRACE_KV_BLOCKS", "64")
    out = tmp_path / "environment"
    code = f"import json, os; json.dump(dict(os.environ), open({str(out)!r}, 'w'))"
    child = spawn([sys.executable, "-c", code], {"ADDED": "1"})
    assert child.wait(60) == 0
    child.stdin.close()
    environment = json.loads(out.read_text(encoding="utf-8"))
    assert environment["HEADRACE_KV_BLOCKS"] == "64" and environment["ADDED"] == "1" and "PATH" in environment
    assert secret_in(json.dumps(environment)) == []
