"""What is published, in /openapi.json and docs/api.md, is what is done."""

import json
import re
from functools import cache
from pathlib import Path

import jsonschema_rs
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from configs.settings import Settings
from server import reference
from server.api.endpoint import PostEndpoint
from server.api.endpoints import ENDPOINTS
from server.api.requests.parse import parse
from server.schema.chat import ChatRequest, ContentPart
from server.schema.completions import CompletionRequest
from server.schema.fields import decimal_up_to
from server.schema.openapi import ModelBounds, body_schema
from server.schema.sampling import StreamOptions
from tests.drawn import drawn
from tests.server.api.requests.test_parse import REFUSED
from tests.server.api.scripted import CONTEXT, Server, run
from tests.server.schema.test_agreement import is_beyond_a_schema, refusal, validator

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
ROOT = Path(__file__).parents[3]
MODELS = {endpoint.path: endpoint.body for endpoint in ENDPOINTS if isinstance(endpoint, PostEndpoint)}
BASE = {CompletionRequest: {"prompt": "a"}, ChatRequest: {"messages": [{"role": "user", "content": "a"}]}}


@pytest.fixture(scope="module")
def openapi():
    return run(lambda: Server().client.get("/openapi.json")).json()


def test_the_page_is_up_to_date():
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert page == reference.page(), "run: python -m server.reference > docs/api.md"


def test_every_endpoint_is_published_and_on_the_page(openapi):
    page = reference.page()
    published = {(path, method) for path, methods in openapi["paths"].items() for method in methods}
    assert published == {(endpoint.shown_path, endpoint.method.lower()) for endpoint in ENDPOINTS}
    assert all(f"| `{method.upper()} {path}` |" in page for path, method in published)


@pytest.mark.parametrize("path", MODELS)
def test_published_bodies(openapi, path):
    operation = openapi["paths"][path]["post"]
    content = operation["requestBody"]["content"]["application/json"]
    assert content["schema"] == body_schema(MODELS[path], Settings(), Server().context.bounds())
    for example in content["examples"].values():
        parse(MODELS[path], json.dumps(example["value"]).encode(), None, Settings())


def test_every_answer_of_ours_is_published_with_the_error_schema(openapi):
    for path in [*MODELS, "/v1/models", "/v1/models/{model}"]:
        for operation in openapi["paths"][path].values():
            responses = operation["responses"]
            assert "422" not in responses, f"{path}: a status that is never sent"
            for status, response in responses.items():
                if status != "200":
                    form = "MessagesErrorAnswer" if path.startswith("/v1/messages") else "ErrorAnswer"
                    assert response["content"]["application/json"]["schema"]["$ref"].endswith(f"/{form}")
    error = openapi["components"]["schemas"]["ErrorDetail"]
    assert sorted(error["required"]) == ["code", "message", "param", "type"]


def test_limits_of_the_operator_are_published():
    schema = body_schema(CompletionRequest, Settings(max_n=3, max_stop=2, max_prompts=5, max_output_tokens=9))
    fields = schema["properties"]
    assert fields["max_tokens"]["anyOf"][0]["maximum"] == 9
    assert fields["n"]["anyOf"][0]["maximum"] == 3
    assert [branch.get("maxItems") for branch in fields["stop"]["anyOf"]] == [None, 2, None]
    assert [branch.get("maxItems") for branch in fields["prompt"]["anyOf"]] == [None, 5, None, 5]


@pytest.mark.parametrize("most", [0, 1, 9, 10, 19, 99, 100, 257, 1000, 1009])
def test_a_pattern_of_numbers_up_to_a_bound(most):
    texts = [f"{number}" for number in range(1200)] + ["", "00", "01", "-1", "1 ", "1\n", "٥"]
    assert [text for text in texts if re.fullmatch(decimal_up_to(most), text)] == texts[: most + 1]


@cache
def validator_of(model):
    return jsonschema_rs.validator_for(body_schema(model, Settings()))


# JSON Schema counts 1.0 among the integers
BEYOND_SCHEMA = [row[:2] for row in REFUSED if not (isinstance(row[1], float) and row[1] == 1.0)]


@pytest.mark.parametrize("model", BASE)
@pytest.mark.parametrize(("field", "value"), BEYOND_SCHEMA, ids=str)
def test_what_is_refused_is_outside_the_schema(model, field, value):
    validator = validator_of(model)
    assert not validator.is_valid({**BASE[model], field: value})


def values():
    simple = st.none() | st.booleans() | st.integers(-200, 200) | st.floats(-200, 200).filter(lambda x: x % 1)
    simple |= st.sampled_from(
        ["", "a", "text", "none", "user", "5", {"type": "text"}, {"include_usage": True}, {"5": 3}]
    )
    return simple | st.lists(simple | st.lists(st.integers(-1, 9), max_size=2), max_size=2)


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
@given(data=st.data())
@hypothesis_settings(max_examples=drawn(300))
def test_schema_and_server_agree_on_any_value_of_a_field(path, data):
    model = MODELS[path]
    name = data.draw(st.sampled_from([*sorted(model.known() - model.IGNORED), "no_such_field"]))
    body = {**BASE[model], name: data.draw(values())}
    error = refusal(path, body)
    fits = validator(path, 0).is_valid(body)
    assert fits == (error is None) or (fits and is_beyond_a_schema(error)), (body, error)


def test_what_the_model_bounds_is_published_once_an_engine_is_ready():
    async def documents():
        server = Server(ready=False)
        before = (await server.client.get("/openapi.json")).json()
        server.replace(server.process)
        return before, (await server.client.get("/openapi.json")).json(), server.context.bounds()

    before, after, bounds = run(documents)
    assert bounds == ModelBounds(
        vocab_size=258,
        context=CONTEXT,
        names=("small", "org/small"),
        begins=False,
        fills=False,
        dimensions=bounds.dimensions,
        input_types=bounds.input_types,
    )
    for document, known in [(before, None), (after, bounds)]:
        for path, model in MODELS.items():
            content = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]
            assert content["schema"] == body_schema(model, Settings(), known)
        assert "x-bound" not in json.dumps(document)


def test_no_field_of_openais_own_client_is_unknown():
    from openai.types import completion_create_params as completions  # dear to import
    from openai.types.chat import ChatCompletionContentPartTextParam as TextPart
    from openai.types.chat import ChatCompletionStreamOptionsParam as StreamOptionsParam
    from openai.types.chat import completion_create_params as chat

    for theirs, ours in [
        (completions.CompletionCreateParamsBase, CompletionRequest),
        (chat.CompletionCreateParamsBase, ChatRequest),
        (TextPart, ContentPart),
        (StreamOptionsParam, StreamOptions),
    ]:
        assert not set(theirs.__annotations__) - ours.known(), ours
