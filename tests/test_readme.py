"""What the README tells a newcomer to type exists and is accepted."""

import json
import re
import shlex
from pathlib import Path

import pytest

from configs.loader import load
from configs.settings import Settings
from server.api.requests.parse import parse
from server.commands import COMMANDS, plugins, serve_parser
from server.schema.chat import ChatRequest
from server.schema.completions import CompletionRequest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SHELL = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
BODIES = {"/v1/chat/completions": ChatRequest, "/v1/completions": CompletionRequest}


def commands(start: str) -> list[list[str]]:
    lines = [line for block in SHELL for line in block.splitlines() if line.startswith(start)]
    assert lines
    return [shlex.split(line, comments=True) for line in lines]


@pytest.mark.parametrize("words", commands("make "), ids=" ".join)
def test_every_make_target_exists(words):
    target, variables = words[1], words[2:]
    makefile = (ROOT / "Makefile").read_text()
    assert re.search(rf"^{target}:", makefile, re.MULTILINE)
    for variable in variables:
        assert re.search(rf"^{variable.split('=')[0]} \?=", makefile, re.MULTILINE)
    if target == "serve" and variables:
        accepted(shlex.split(variables[0].removeprefix("ARGS=")))


@pytest.mark.parametrize("words", commands(".venv/bin/headrace "), ids=" ".join)
def test_every_command_line_is_accepted(words):
    assert words[1] in COMMANDS | plugins()
    if words[1] == "serve":
        accepted(words[2:])


def accepted(arguments: list[str]) -> None:
    """The arguments are settings that can be used, short of the model's being there."""
    options, unknown = serve_parser().parse_known_args(arguments)
    assert not unknown
    flags = vars(options)
    flags.pop("print_config", None)
    assert load(flags, {}, flags.pop("config", None)).origins


def test_every_curl_body_is_a_request():
    requests = re.findall(r"^curl .*?:8000(\S+) .*?-d '(.*?)'$", README, re.DOTALL | re.MULTILINE)
    assert {route for route, _ in requests} == set(BODIES)
    for route, body in requests:
        assert (
            parse(BODIES[route], body.encode(), "application/json", Settings()).request.model
            == json.loads(body)["model"]
        )


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda page: page.name
)
def test_every_link_leads_somewhere(page):
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    assert not [link for link in links if not (page.parent / link).exists()]


def test_the_openai_snippet_is_python():
    (snippet,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    compile(snippet, "README.md", "exec")
    assert f":{Settings().port}/v1" in snippet
