"""API keys, however they are set, are shown by nothing: no printed settings, log, error or page has them."""

import json
import re

import pytest

from configs.loader import ConfigError, load, render
from configs.settings import Settings
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


@pytest.mark.parametrize("way", WAYS)
def test_print_config_masks_keys(tmp_path, way):
    flags, variables = WAYS[way](tmp_path)
    named = dict(zip(flags[::2], flags[1::2], strict=True))
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
