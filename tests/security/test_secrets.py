"""API keys, however they are set, are read by nobody but the server: no log, metric, error, process list or child has them."""

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

from configs.loader import ConfigError, load, render
from configs.settings import Settings
from engine.ipc.child import spawn
from tests.server.api.scripted import Server, run
from tests.source_tree import ROOT

KEY = "sk-very-secret-0123456789"
OTHER = "sk-another-secret-987654321"
HEADERS = {"Authorization": f"Bearer {KEY}"}


def by_flag(tmp_path):
    return ["--api-key", f"{KEY},{OTHER}"], {}


def by_variable(tmp_path):
    return [], {"HEADRACE_API_KEY": f"{KEY},{OTHER}"}


def by_file(tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text(f"api_key: [{KEY}, {OTHER}]\n", encoding="utf-8")
    return ["--config", str(file)], {}


WAYS = {"flag": by_flag, "variable": by_variable, "file": by_file}


def secret_in(text: str) -> list[str]:
    return [key for key in (KEY, OTHER) if key in text or key[3:14] in text]


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


@pytest.mark.processes
@pytest.mark.parametrize("way", ["flag", "variable", pytest.param("file", marks=pytest.mark.long)])
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


@pytest.mark.parametrize("way", WAYS)
def test_print_config_masks_keys(tmp_path, way):
    flags, variables = WAYS[way](tmp_path)
    named = (
        dict(itertools.batched(flags, 2))
        if hasattr(itertools, "batched")
        else dict(zip(flags[::2], flags[1::2], strict=True))
    )
    loaded = load({"api_key": [named["--api-key"]]} if "--api-key" in named else {}, variables, named.get("--config"))
    assert loaded.settings.api_key and secret_in(render(loaded)) == []
    assert "api_key" in render(loaded)


@pytest.mark.parametrize(
    "content",
    [
        f"api_key: [{KEY}",
        f"api_key: '{KEY}",
        f"api_key: {KEY}\n  port: 1",
        f"api_key:\n\t- {KEY}",
        f"api_key: !!python/name:{KEY}",
        f"api_key: &a {KEY}\nport: *b",
        f"api_key: {KEY}: x",
        f"api_key: {{{KEY}: 1}}",
        f"api_key: [{KEY}, 1]",
        f"api_key: [[{KEY}]]",
        f"{KEY}",
        f'api_key: "\\q{KEY}"',
    ],
    ids=range(12),
)
def test_a_broken_settings_file_is_refused_without_its_content(tmp_path, content):
    file = tmp_path / "broken.yaml"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError) as refused:
        load({}, {}, str(file))
    assert secret_in(str(refused.value)) == []
    assert "broken.yaml" in str(refused.value)


def test_the_line_of_a_broken_settings_file_is_named(tmp_path):
    file = tmp_path / "broken.yaml"
    file.write_text(f"port: 1\napi_key: [{KEY}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"cannot be read as YAML: .*line \d, column \d"):
        load({}, {}, str(file))


@pytest.mark.parametrize("value", ["", " ", [], [1], {"a": KEY}, [KEY, ""]], ids=range(6))
def test_a_refused_key_is_not_repeated(tmp_path, value):
    file = tmp_path / "settings.yaml"
    file.write_text(json.dumps({"api_key": value, "port": -1}), encoding="utf-8")
    with pytest.raises(ConfigError) as refused:
        load({}, {}, str(file))
    assert secret_in(str(refused.value)) == []


def test_what_an_engine_is_told_holds_no_key():
    settings = Settings(api_key=[KEY, OTHER], key_names=["a", "b"], isolate_keys=True)
    assert secret_in(settings.for_engine()) == []
    assert "api_key" not in settings.for_engine() and "key_names" not in settings.for_engine()


@pytest.mark.processes
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


@pytest.mark.parametrize(
    "header",
    [f"Bearer {KEY}x", f"bearer  {KEY}", f"Basic {KEY}", KEY, f"Bearer {OTHER[:-1]}", f"Bearer {KEY}, Bearer {OTHER}"],
    ids=range(6),
)
def test_an_offered_key_is_not_repeated(header, caplog):
    async def ask():
        server = Server(api_key=[KEY], access_log=True)
        headers = {"Authorization": header}
        return [
            await server.client.post("/v1/completions", json={"prompt": "a"}, headers=headers),
            await server.client.get("/metrics", headers=headers),
            await server.client.get("/metrics", headers=HEADERS),
        ]

    for answer in run(ask):
        assert secret_in(answer.text + str(dict(answer.headers))) == []
    assert secret_in(caplog.text) == []


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.name)
def test_the_documentation_holds_no_key(page):
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"\b(?:sk|hf|ghp|AKIA)[-_][A-Za-z0-9]{16,}", text)
