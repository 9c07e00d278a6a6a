"""What the page on clients says is run is what is pinned and run."""

import json
import re

from tests.clients.__main__ import CLIENTS, Report, read
from tests.clients.environments import HERE, NEWER, NODE, OLDER, PythonClients, environment
from tests.source_tree import ROOT

PACKAGES = {"openai-node": "openai", "pydantic-ai": "pydantic-ai-slim"}  # by client, where they are not of one name


def pinned(name: str) -> str:
    package, place = PACKAGES.get(name, name), CLIENTS[name][0]
    if isinstance(place, PythonClients):
        return dict(re.findall(r"^(\S+)==(\S+)$", place.requirements.read_text(), re.MULTILINE))[package]
    lock = json.loads((place.folder / "package-lock.json").read_text())
    return lock["packages"][f"node_modules/{package}"]["version"]


def test_the_page_has_every_client_and_its_version():
    rows = re.findall(r"^\| \[(.+?)\]\(#.+?\) \| (\S+) \|", (ROOT / "docs" / "clients.md").read_text(), re.MULTILINE)
    spelled = {"openai (Node)": "openai-node", "ai (Vercel)": "ai"}
    assert {spelled.get(name, name): version for name, version in rows} == {name: pinned(name) for name in CLIENTS}


def test_every_client_has_a_script_and_every_script_a_client():
    scripts = {HERE / f"ask_{script}.py" for place, script in CLIENTS.values() if place is not NODE}
    assert scripts == set(HERE.glob("ask_*.py"))
    scripts = {NODE.folder / f"{script}.mjs" for place, script in CLIENTS.values() if place is NODE}
    assert scripts == set(NODE.folder.glob("*.mjs")) - {NODE.folder / "asking.mjs"}


def test_everything_is_pinned_and_torch_is_not_among_it():
    for place in (NEWER, OLDER):
        lines = [line for line in place.requirements.read_text().splitlines() if not line.startswith("#")]
        assert lines and all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)
        assert not [line for line in lines if line.startswith(("torch", "triton", "nvidia"))]


def test_a_report_has_what_failed_and_passes_over_what_a_client_prints():
    output = '{"package": "p", "version": "1"}\n{"a": 1}\n[1]\nnoise\n{"check": "plain", "seconds": 1}\n'
    assert str(read("p", output)) == "p 1: ok (plain)"
    failed = read("p", output + '{"check": "stream", "trouble": "why", "seconds": 1}')
    assert (failed.ok, str(failed)) == (False, "p 1: FAILED (plain, stream)\n  stream: why")
    assert not read("p", output, "the script ended with 1").ok
    assert not Report("p").ok, "nothing ran"


def test_clients_are_given_no_keys_and_told_to_be_quiet(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    told = environment()
    assert "OPENAI_API_KEY" not in told and told["OPENAI_AGENTS_DISABLE_TRACING"] == "1"
