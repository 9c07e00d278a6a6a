"""What the list says of each endpoint is true: paths, examples, statuses, and the middleware's view of it."""

import json
import re
from functools import reduce

import pytest

from configs.settings import Settings
from server.api.endpoint import BodilessEndpoint, PostEndpoint
from server.api.endpoints import ENDPOINTS
from server.api.requests.parse import parse
from server.schema.answers import ERRORS
from server.schema.base import Body
from tests.server.api.scripted import Server, run

POSTS = [endpoint for endpoint in ENDPOINTS if isinstance(endpoint, PostEndpoint)]
BODILESS = [endpoint for endpoint in ENDPOINTS if isinstance(endpoint, BodilessEndpoint)]
BY_PATH = pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda endpoint: endpoint.path)
POSTED = pytest.mark.parametrize("endpoint", POSTS, ids=lambda endpoint: endpoint.path)
OF_A_MODEL = [endpoint for endpoint in POSTS if "model" in endpoint.body.known()]


def path_of(endpoint):
    """The endpoint's path, with something that is there in the place of its parameters."""
    return endpoint.shown_path.replace("{model}", "org/small").replace("{engine}", "engine")


async def upload(server):
    """The id of a file for a batch of one line."""
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions"}
    line["body"] = {"messages": [{"role": "user", "content": "a"}]}
    files = {"file": ("in.jsonl", json.dumps(line).encode())}
    answer = await server.client.post("/v1/files", files=files, data={"purpose": "batch"})
    assert answer.status_code == 200, answer.text
    return answer.json()["id"]


async def begin_batch(server, file):
    """The id of a batch of this file."""
    body = {"input_file_id": file, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    return (await server.post("/v1/batches", body)).json()["id"]


def test_no_two_have_one_place():
    places = [(endpoint.method, endpoint.shown_path) for endpoint in ENDPOINTS]
    assert len(places) == len(set(places)) == len(POSTS) + len(BODILESS) + 1, "and the upload of files"


@BY_PATH
def test_each_says_what_it_is(endpoint):
    assert endpoint.path.startswith("/") and endpoint.tag
    assert re.fullmatch(r"[A-Z].*[^.\n]", endpoint.summary)
    assert set(endpoint.errors) <= set(ERRORS)
    assert (401 in endpoint.errors) == endpoint.needs_key
    assert endpoint.answers is not None or endpoint.content


@POSTED
def test_examples_are_accepted_and_answered(endpoint, tmp_path):
    assert endpoint.examples and issubclass(endpoint.body, Body)
    for example in endpoint.examples.values():
        parse(endpoint.body, json.dumps(example["value"]).encode(), "application/json", Settings())

        async def ask(value=example["value"]):
            server = Server(data_dir=str(tmp_path))
            async with server.running_batches():
                if "input_file_id" in value:
                    value = {**value, "input_file_id": await upload(server)}
                return await server.post(path_of(endpoint), value)

        response = run(ask)
        assert response.status_code == 200, response.text
        assert endpoint.answers.model_validate_json(response.content)


@POSTED
@pytest.mark.parametrize(
    ("content", "content_type", "status", "words"),
    [
        (b"", "application/json", 400, "not JSON"),
        (b"[]", "application/json", 400, "must be a JSON object"),
        (b"\xff{}", "application/json", 400, "not UTF-8"),
        (b"{}", "text/plain", 415, "Content-Type"),
        (b"{}", "application/json; charset=latin-1", 415, "charset"),
    ],
)
def test_what_is_no_body_is_refused_everywhere(endpoint, content, content_type, status, words):
    async def ask():
        return await Server().client.post(path_of(endpoint), content=content, headers={"content-type": content_type})

    response = run(ask)
    assert response.status_code == status and words in response.json()["error"]["message"]


@pytest.mark.parametrize("endpoint", OF_A_MODEL, ids=lambda endpoint: endpoint.path)
def test_a_model_that_is_not_served_is_refused_everywhere(endpoint):
    body = {**next(iter(endpoint.examples.values()))["value"], "model": "large"}
    response = run(lambda: Server().post(endpoint.path, body))
    assert response.status_code == 404 and response.json()["error"]["param"] == "model"
    assert all(name in response.json()["error"]["message"] for name in ("large", "small", "org/small"))


ENDING = [endpoint for endpoint in BODILESS if "application/x-ndjson" not in endpoint.content]  # the others never end


@pytest.mark.parametrize("endpoint", ENDING, ids=lambda endpoint: endpoint.path)
def test_what_is_asked_without_a_body_answers_as_declared(endpoint, tmp_path):
    async def ask():
        counted = str(tmp_path / "use.db")
        server = Server(api_key=["key"], admin_keys=["key1"], usage_db=counted, data_dir=str(tmp_path / "data"))
        server.client.headers["Authorization"] = "Bearer key"
        async with server.running_batches():
            return await asked_of(server)

    async def asked_of(server):
        stream = await server.post("/v1/completions", {"prompt": "a", "stream": True, "resumable": True})
        named = {"{model}": "org/small", "{engine}": "engine"}
        named["{response}"] = (await server.post("/v1/responses", {"input": "a", "background": True})).json()["id"]
        named["{file}"] = await upload(server)
        if "{batch}" in endpoint.shown_path:  # a file that an open batch reads cannot be deleted
            named["{batch}"] = await begin_batch(server, named["{file}"])
        named |= {"{stream}": stream.headers["x-stream-id"], "{request}": stream.headers["x-request-id"]}
        path = reduce(lambda path, name: path.replace(name, named[name]), named, endpoint.shown_path)
        return await server.client.request(endpoint.method, path)

    response = run(ask)
    assert response.status_code == 200
    if endpoint.answers is not None:
        assert endpoint.answers.model_validate_json(response.content)


def test_operation_ids_are_unique_and_plain():
    document = run(lambda: Server().client.get("/openapi.json")).json()
    ids = [operation["operationId"] for path in document["paths"].values() for operation in path.values()]
    assert len(ids) == len(set(ids)) and all(re.fullmatch(r"\w+", name) for name in ids)
