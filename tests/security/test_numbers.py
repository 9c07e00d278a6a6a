"""Any number in any field of any request: a 400 that names the field, or an answer; never a 500. The fields are the schema's."""

import json
import math

import pytest

from server.api.endpoint import PostEndpoint
from server.api.endpoints import ENDPOINTS
from server.schema.dialects.messages import CountTokensRequest, MessagesRequest
from server.schema.dialects.responses import ResponseInput
from server.schema.openapi import body_schema
from tests.server.api.scripted import Server, run

BASE = {
    "/v1/completions": {"prompt": "a", "max_tokens": 1},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1, "logprobs": True},
    "/v1/responses": {"input": "a", "max_output_tokens": 16},
    "/v1/embeddings": {"input": "a"},
    "/v1/rerank": {"query": "a", "documents": ["b"]},
    "/v1/score": {"text_1": "a", "text_2": "b"},
    "/tokenize": {"prompt": "a"},
    "/detokenize": {"tokens": [1]},
}
POSTS = [endpoint for endpoint in ENDPOINTS if isinstance(endpoint, PostEndpoint)]
MODELS = {endpoint.path: endpoint.body for endpoint in POSTS if "model" in endpoint.body.known()}
# As JSON text: what Python's json module would write, or could not.
NOT_NUMBERS = ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "9" * 401, "-" + "9" * 401, "9" * 100_000]
HUGE = ["9" * 30, "-" + "9" * 30, str(2**63), str(-(2**63) - 1), str(2**64)]
WRONG = ["true", '"1"', "[]", "{}"]
FRACTIONS = ["0.5", "1e300", "-1e300", "5e-324", "1.0"]


def numeric_fields(schema, definitions, path=()):
    """(path, schema) of each integer or number: a name for a property, 0 for an entry of an array."""
    if "$ref" in schema:
        schema = definitions[schema["$ref"].rpartition("/")[2]]
    for branch in schema.get("anyOf", []):
        yield from numeric_fields(branch, definitions, path)
    if schema.get("type") in ("integer", "number"):
        yield path, schema
    if schema.get("type") == "array":
        yield from numeric_fields(schema.get("items", {}), definitions, (*path, 0))
    for name, inner in schema.get("properties", {}).items():
        yield from numeric_fields(inner, definitions, (*path, name))
    for inner in schema.get("patternProperties", {}).values():
        yield from numeric_fields(inner, definitions, (*path, "5"))


def fields_of(path):
    schema = body_schema(MODELS[path], Server().settings)
    found = {}
    for where, kind in numeric_fields(schema, schema.get("$defs", schema.get("definitions", {}))):
        found[where] = kind
    return found


def body_with(base, where, number: str) -> bytes:
    """The JSON of `base` with this text as the number at this path."""
    value: object = "\u0001"
    for name in reversed(where):
        value = [value] if name == 0 else {name: value}
    return json.dumps({**base, **value}).replace('"\\u0001"', number).encode()


def named(where) -> str:
    text = ""
    for name in where:
        text += "[0]" if name == 0 else f".{name}" if text else name
    return text


def test_the_schema_has_the_fields_that_this_file_is_about():
    names = {named(where) for path in BASE for where in fields_of(path)}
    assert {MODELS[path] for path in BASE} | {MessagesRequest, CountTokensRequest, ResponseInput} == set(
        MODELS.values()
    )
    assert {"max_tokens", "temperature", "n", "seed", "top_k", "priority", "logit_bias.5", "stop_token_ids[0]"} <= names
    assert {"prompt[0]", "prompt[0][0]", "tokens[0]", "top_logprobs", "cache_pin_seconds"} <= names
    assert len(names) > 20


def asked(path, bodies):
    """The responses to these bodies of one server, which still answers afterwards and holds nothing."""

    async def ask():
        server = Server("ab")
        answers = [await server.post(path, body) for body in bodies]
        assert (await server.post("/v1/completions", {"prompt": "a", "max_tokens": 1})).status_code == 200
        assert server.engine.open_count == 0 and not server.process.playing
        return answers

    return run(ask)


def check_named(answer, where, number):
    assert answer.status_code == 400, (named(where), number[:40], answer.text)
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error" and len(error["message"]) < 400
    # With an array's entry refused as of a wrong kind, the array is what is named.
    paths = {named(where[: end + 1]) for end in range(len(where))}
    assert error["param"] in paths, (named(where), number[:40], error)
    assert f"`{error['param']}`" in error["message"]


@pytest.mark.parametrize("path", BASE)
def test_what_is_no_number_is_refused_by_name(path):
    cases = [(where, number) for where in fields_of(path) for number in [*NOT_NUMBERS, *HUGE]]
    answers = asked(path, [body_with(BASE[path], where, number) for where, number in cases])
    for (where, number), answer in zip(cases, answers, strict=True):
        check_named(answer, where, number)


@pytest.mark.parametrize("path", BASE)
def test_what_is_of_another_type_is_refused_by_name(path):
    cases = [(where, number) for where in fields_of(path) for number in WRONG]
    answers = asked(path, [body_with(BASE[path], where, number) for where, number in cases])
    for (where, number), answer in zip(cases, answers, strict=True):
        # chat's `logprobs`, prompts and inputs take some of these types
        if answer.status_code != 200:
            check_named(answer, where, number)
        else:
            assert where[0] in ("prompt", "logprobs", "stop", "messages", "input"), (where, number)


@pytest.mark.parametrize("path", BASE)
def test_bounds_of_the_schema_are_those_of_the_server(path):
    """Just outside of each published bound: refused. Of integers also a fraction."""
    cases = []
    for where, kind in fields_of(path).items():
        step = 1 if kind["type"] == "integer" else 1e-6
        if "minimum" in kind:
            cases.append((where, json.dumps(kind["minimum"] - step)))
        if "maximum" in kind:
            cases.append((where, json.dumps(kind["maximum"] + step)))
        if "exclusiveMinimum" in kind:
            cases.append((where, json.dumps(kind["exclusiveMinimum"])))
        if kind["type"] == "integer":
            cases.append((where, "0.5"))
        assert "minimum" in kind or "exclusiveMinimum" in kind, f"{named(where)} has no lower bound in the schema"
        assert "maximum" in kind, f"{named(where)} has no upper bound in the schema"
    answers = asked(path, [body_with(BASE[path], where, number) for where, number in cases])
    for (where, number), answer in zip(cases, answers, strict=True):
        check_named(answer, where, number)


@pytest.mark.parametrize("path", BASE)
def test_odd_but_finite_numbers_are_answered_or_refused(path):
    numbers = ["0", "-0", "-0.0", "-1", str(2**31 - 1), str(2**31), str(2**63 - 1), str(-(2**63)), *FRACTIONS]
    cases = [(where, number) for where in fields_of(path) for number in numbers]
    answers = asked(path, [body_with(BASE[path], where, number) for where, number in cases])
    for (where, number), answer in zip(cases, answers, strict=True):
        assert answer.status_code in (200, 400, 429), (named(where), number, answer.text)
        if answer.status_code == 400:
            param = answer.json()["error"]["param"]
            assert param and param.partition("[")[0].partition(".")[0] in {
                str(where[0]),
                "prompt",
                "max_tokens",
                "best_of",
                "n",
            }
        else:
            assert "NaN" not in answer.text and "Infinity" not in answer.text
            json.loads(answer.text, parse_constant=pytest.fail)


@pytest.mark.parametrize("number", [*NOT_NUMBERS, "1e308", str(2**62)])
def test_numbers_of_fields_that_nobody_bounds(number):
    """Variables of a template, metadata, unknown fields, and a body that is only a number."""
    chat = BASE["/v1/chat/completions"]
    bodies = [body_with(chat, ("chat_template_kwargs", "n"), number), body_with(chat, ("metadata", "n"), number)]
    for answer in asked("/v1/chat/completions", [*bodies, body_with(chat, ("nobody", "n"), number), number.encode()]):
        assert answer.status_code in (200, 400)
        assert math.isfinite(len(answer.text)) and "Traceback" not in answer.text
