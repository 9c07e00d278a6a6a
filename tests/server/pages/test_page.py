"""What a browser is sent for a page: one document that needs nothing else, and a policy under which nothing else runs."""

import base64
import gzip
import hashlib
import inspect
import json
import re

import openai
import pytest

from configs.settings import Settings
from server.api.requests.parse import parse
from server.pages import page as pages
from server.pages.page import page
from server.schema.chat import ChatRequest
from server.schema.completions import CompletionRequest
from server.schema.openapi import body_schema
from tests.server.api.scripted import Server, run

NAMES = [path.parent.name for path in pages._FOLDER.glob("*/page.html")]
EVERY_PAGE = pytest.mark.parametrize("name", NAMES)
ELEMENT = re.compile(r"<(style|script)[^>]*>(.*?)</\1>", re.DOTALL)
SVG = "http://www.w3.org/2000/svg"  # the name of a kind of element: nothing is loaded from there


def html(name):
    return page(name).plain.decode()


def policy(name):
    directives = page(name).headers["content-security-policy"].split("; ")
    return dict(directive.split(" ", 1) for directive in directives)


@EVERY_PAGE
def test_a_page_loads_nothing(name):
    text = html(name)
    assert not re.findall(r"<!-- (?:style|script):", text)
    assert not re.search(r"<(?:link|img|iframe|object|embed|base)\b(?![^>]*href=\"data:)|@import|[:\s]url\(", text)
    assert not re.search(r"^\s*import\b|\bimport\(", text, re.MULTILINE)
    assert set(re.findall(r"https?://[\w.-]+[^\s\"'`)\\]*", text)) <= {SVG}
    assert all(
        not re.search(r"\bsrc=|style=|\bon\w+=\"", tag) for tag in re.findall(r"<\w[^>]*>", ELEMENT.sub("", text))
    )


@EVERY_PAGE
def test_no_script_makes_html_of_a_string(name):
    scripts = "".join(content for kind, content in ELEMENT.findall(html(name)) if kind == "script")
    parsing = (
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|createContextualFragment|DOMParser|setHTML|srcdoc"
    )
    assert scripts and not re.search(rf"{parsing}|\beval\(|new Function|setTimeout\(\s*[\"'`]|javascript:", scripts)


@EVERY_PAGE
def test_the_policy_lets_the_page_s_own_parts_run_and_nothing_else(name):
    found = ELEMENT.findall(html(name))
    assert {kind for kind, _ in found} == {"style", "script"}
    for kind in ("style", "script"):
        digests = [hashlib.sha256(content.encode()).digest() for each, content in found if each == kind]
        expected = " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
        assert policy(name)[f"{kind}-src"] == expected
    assert policy(name)["default-src"] == policy(name)["frame-ancestors"] == policy(name)["base-uri"] == "'none'"
    assert policy(name)["connect-src"] == "'self'" and policy(name)["require-trusted-types-for"] == "'script'"


def get(path="/", **headers):
    async def ask():
        return await Server().client.get(path, headers=headers)

    return run(ask)


@EVERY_PAGE
def test_its_links_lead_to_pages_that_are_served(name):
    paths = set(re.findall(r'<a [^>]*href="([^"]*)"', html(name)))
    assert paths
    for path in paths:
        answer = get(f"/{path.removeprefix('.')}")
        assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/html"), path


def test_the_playground_leads_to_the_map():
    assert 'href="map"' in html("playground")


def test_the_playground_is_at_the_root():
    answer = get()
    assert answer.status_code == 200 and answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.text == html("playground")
    expected = {**page("playground").headers, "content-length": answer.headers["content-length"]}
    assert expected.items() <= dict(answer.headers).items()


@pytest.mark.parametrize(
    ("accepted", "packed"),
    [
        ("gzip", True), ("br, gzip;q=0.5", True), ("GZIP", True), ("gzip;q=0", False), ("gzip; q=0.0, br", False),
        ("br", False), ("", False), ("gzipped", False),
    ],
)  # fmt: skip
def test_it_is_compressed_for_those_who_ask(accepted, packed):
    answer = page("playground").response({"accept-encoding": accepted})
    assert (answer.headers.get("content-encoding") == "gzip") == packed
    body = gzip.decompress(answer.body) if packed else answer.body
    assert body == page("playground").plain and answer.headers["vary"] == "accept-encoding"


@pytest.mark.parametrize(("known", "status"), [("{}", 304), ('"x", {}', 304), ("*", 304), ('W/"x"', 200), ("", 200)])
def test_a_browser_that_has_it_is_told_so(known, status):
    tag = page("playground").headers["etag"]
    answer = get(**{"if-none-match": known.format(tag)})
    assert answer.status_code == status and answer.headers["etag"] == tag
    assert bool(answer.content) == (status == 200)


def test_head_says_what_get_would():
    async def ask():
        client = Server().client
        return await client.head("/"), await client.get("/")

    head, whole = run(ask)
    assert head.status_code == 200 and not head.content
    assert {**head.headers, "x-request-id": ""} == {**whole.headers, "x-request-id": ""}


def test_it_needs_no_key_and_gives_none():
    async def ask():
        client = Server(api_key=["secret-key"]).client
        return await client.get("/"), await client.get("/v1/models")

    shown, models = run(ask)
    assert shown.status_code == 200 and "secret-key" not in shown.text
    assert models.status_code == 401


def test_without_the_playground_the_root_says_where_to_look():
    async def ask():
        client = Server(playground=False).client
        return await client.get("/"), await client.get("/index.html")

    index, elsewhere = run(ask)
    assert index.json() == {"name": "headrace", "openapi": "/openapi.json", "models": "/v1/models"}
    assert elsewhere.status_code == 404 and elsewhere.json()["error"]["code"]


# --- what the playground sends ---


def table(name):
    """A table of `playground/fields.js`, which is JSON."""
    found = re.search(rf"^const {name} = (.*?^[\]}}])", html("playground"), re.DOTALL | re.MULTILINE)
    return json.loads(found[1])


FIELDS, ENDPOINTS = table("FIELDS"), table("ENDPOINTS")
BODIES = {"chat": ChatRequest, "completion": CompletionRequest}
PROMPTS = {"chat": {"messages": [{"role": "user", "content": "a"}]}, "completion": {"prompt": "a"}}
BOTH = pytest.mark.parametrize("mode", BODIES)


def accept(mode, asked):
    body = {**PROMPTS[mode], **ENDPOINTS["every"], **asked}
    return parse(BODIES[mode], json.dumps(body).encode(), "application/json", Settings()).request


@BOTH
def test_what_the_playground_sends_is_accepted(mode):
    values = {field["name"]: ["."] if field.get("lines") else field.get("standard", 1) for field in FIELDS}
    accepted = accept(mode, {"model": "m", **values, **ENDPOINTS[mode]["scores"]})
    assert accepted.stream and accepted.stream_options.include_usage and accepted.logprobs
    assert {name: getattr(accepted, name) for name in values} == values


@BOTH
@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field["name"])
def test_bounds_and_defaults_are_the_server_s(mode, field):
    properties = body_schema(BODIES[mode], Settings())["properties"][field["name"]]
    if "standard" in field:
        assert properties["default"] == field["standard"]
    if "step" in field:
        number = next(each for each in properties["anyOf"] if each["type"] == "number")
        assert (field["least"], field["most"]) == (number["minimum"], number["maximum"])


@BOTH
def test_programs_in_python_say_extra_what_openai_s_client_does_not_know(mode):
    resource = openai.resources.chat.completions.Completions if mode == "chat" else openai.resources.Completions
    known = set(inspect.signature(resource.create).parameters)
    assert {field["name"] for field in FIELDS if not field.get("extension")} <= known
    assert not {field["name"] for field in FIELDS if field.get("extension")} & known
    assert {*ENDPOINTS["every"], *ENDPOINTS[mode]["scores"], "model", *PROMPTS[mode]} <= known


@BOTH
def test_paths_are_those_that_are_served(mode):
    async def ask():
        answer = await Server().post(f"/{ENDPOINTS[mode]['path']}", {**PROMPTS[mode], **ENDPOINTS["every"]})
        return answer.status_code, answer.headers["content-type"].partition(";")[0]

    assert run(ask) == (200, "text/event-stream")
