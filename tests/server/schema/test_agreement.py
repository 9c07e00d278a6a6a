"""What is published about a body, with the model's bounds and the rules between fields, is what a body is refused by.

Held against parsing and validation, over a model of 258 ids and 256 tokens of context. Only some refusals are beyond a schema.
"""

import json
import re
from functools import cache

import hypothesis
import jsonschema_rs
import pytest
import schemathesis
from hypothesis import given
from hypothesis import strategies as st
from schemathesis import GenerationMode

from server.api.endpoint import PostEndpoint
from server.api.endpoints import ENDPOINTS
from server.api.requests.parse import parse
from server.api.tenants import ANYBODY
from server.errors import ApiError, ContextExceeded, ResponseNotFound
from server.schema.openapi import body_schema
from tests.drawn import drawn
from tests.server.api.scripted import CONTEXT, Server

ENDPOINT = {endpoint.path: endpoint for endpoint in ENDPOINTS if isinstance(endpoint, PostEndpoint)}
BEYOND_SCHEMA = re.compile(
    r"`min_tokens` must be at most `max_(completion_)?tokens`=|`max_completion_tokens` must equal|`n` times the number of prompts"
    r"|`text_1` must have 1 entry|must fit 64 bits|a name with the NUL"
    r"|`best_of` must be at least `n`"
    r"|an answer fits one of them|must be JSON: |must be a JSON schema that|must be a structural tag as JSON|must begin with one of"
    r"|must hold one of|needs `json` or `json_object`|needs `guided_json`"
    r"|no variable for it|that does not think first|to hold at least one, got none|must name functions that are offered"
    r"|is the older form of"
    r"|must not be given twice"
    r"|(with|needs) `use_beam_search`"
)
STRICT = {
    "scheduling": "fcfs",
    "prefix_caching": False,
    "unknown_fields": "ignore",
    "default_max_tokens": 5,
    "max_output_tokens": 9,
    "resume_seconds": 0,
}
CONTEXTS = [Server(scheduling="fair").context, Server(**STRICT).context]

USER = {"role": "user", "content": "a"}
SHARED = {
    "model": [None, "small", "org/small", "large", ""],
    "max_tokens": [None, 0, 5, 9, 10, CONTEXT - 1, CONTEXT],
    "min_tokens": [None, 0, 5, 6, 16, 17, CONTEXT],
    "n": [None, 1, 2, 3],
    "stream": [None, False, True],
    "resumable": [None, False, True],
    "stream_options": [
        None,
        {},
        {"include_usage": True},
        {"continuous_usage_stats": True},
        {"continuous_usage_stats": False, "include_usage": None, "x": None},
        {"continuous_usage_stats": True, "include_usage": True},
    ],
    "stop_token_ids": [[], [0, 257], [258], [-1]],
    "logit_bias": [{}, {"257": 1}, {"258": 1}, {"05": 1}, {"x": None, "5": None}],
    "top_p": [None, 0, 1, 1.1],
    "truncate_prompt_tokens": [None, -2, -1, 0, 1, 3],
    "truncation_side": [None, "left", "right"],
    "allowed_token_ids": [[], [0, 257], [258]],
    "priority": [None, 0, 1],
    "cache_pin_seconds": [None, 0, 3],
    "use_beam_search": [None, False, True],
    "length_penalty": [None, 1, 2, 11],
    "early_stopping": [None, False, "never", "x"],
    "no_such_field": [None, 1],
}
CONTINUED = {
    "add_generation_prompt": [None, False, True],
    "continue_final_message": [None, False, True],
    "chat_template_kwargs": [None, {}, {"messages": None}, {"messages": []}, {"x": 1}],
}
CALL = {"id": "c", "index": 0, "type": "function", "function": {"name": "f", "arguments": "{}"}}
MESSAGES = [[USER], [USER, {"role": "assistant", "content": [{"type": "text", "text": "a"}]}], [], [{"role": "tool"}]]
MESSAGES += [[USER, {"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "tool_call_id": "c", "content": "a"}]]
MESSAGES += [[{**USER, "tool_calls": [CALL]}], [{**USER, "tool_calls": []}], [{"role": "assistant", "reasoning": "a"}]]
FUNCTION = {"name": "f", "parameters": {"type": "object"}, "strict": True}
TOOL = {"type": "function", "function": FUNCTION}
NAMED = {"type": "function", "function": {"name": "f"}}
ALLOWED = {"mode": "auto", "tools": [NAMED]}
TOOLS = {
    "tools": [
        None,
        [],
        [TOOL],
        [TOOL, TOOL],
        [{"type": "custom"}],
        [{"type": "function", "function": {"name": "a b"}}],
    ],
    "tool_choice": [None, "none", "auto", "required", "any", NAMED, {"type": "function"}, {"type": "allowed_tools"}]
    + [{"type": "allowed_tools", "allowed_tools": each} for each in (ALLOWED, {**ALLOWED, "mode": "none"}, {})],
    "functions": [None, [], [FUNCTION], [{}]],
    "function_call": [None, "none", "auto", "required", {"name": "f"}, {}],
    "parallel_tool_calls": [None, False, 1],
}
ITEMS = [
    {"role": "developer", "content": "a"},
    {"role": "assistant", "id": "m", "content": [{"type": "output_text", "text": "a", "annotations": []}]},
]
IDS = [[0, 257], [258], [], [1] * CONTEXT, [1] * (CONTEXT + 1)]
FIELDS = {
    "/v1/completions": SHARED
    | {"prompt": ["a", "", ["a", "b"], ["a", ""], *IDS, [[1], [257]], [[1], [258]], [[]]]}
    | {"best_of": [None, 0, 1, 2, 3], "add_special_tokens": [None, True, False], "logprobs": [None, 0, True]}
    | {"suffix": [None, "", "a"], "echo": [None, False, True]},
    "/v1/chat/completions": SHARED
    | CONTINUED
    | TOOLS
    | {"messages": MESSAGES, "max_completion_tokens": [None, 5, 10, CONTEXT]}
    | {"logprobs": [None, False, True], "top_logprobs": [None, 0, 3], "reasoning_effort": [None, "none", "high"]}
    | {"thinking_token_budget": [None, 0, -1]},
    "/tokenize": CONTINUED
    | {"tools": TOOLS["tools"]}
    | {"prompt": [None, "", "a"], "messages": [None, *MESSAGES], "add_special_tokens": [True]},
    "/detokenize": {"tokens": IDS, "skip_special_tokens": [None, True], "model": ["small", "large"]},
    "/v1/responses": {
        "input": ["a", "", [], ITEMS, [{"type": "message", **USER}], [{"role": "user", "content": [{"type": "text"}]}]],
        "instructions": [None, "a"],
        "max_output_tokens": SHARED["max_tokens"],
        "include": [None, [], ["message.output_text.logprobs"], ["reasoning.content"]],
        "text": [
            None,
            {},
            {"format": {"type": "text"}},
            {"format": {"type": "xml"}},
            {"format": {"type": "json_schema"}},
        ],
        "tools": [
            None,
            [],
            [{"type": "function", "name": "f"}],
            [{"type": "web_search"}],
            [{"type": "mcp"}],
            [{"name": "f"}],
        ],
        "tool_choice": [None, "none", "any", {"type": "function"}, {"type": "allowed_tools", "mode": "none"}],
        "reasoning": [None, {}, {"effort": "none"}, {"effort": "max"}],
        "metadata": [
            None,
            {},
            {"a": "b"},
            {"a": 1},
            {"": "b"},
            {"a" * 65: "b"},
            {"a": "b" * 513},
            {str(i): "" for i in range(17)},
        ],
        "stream_options": [None, {}, {"include_obfuscation": True}, {"include_usage": True}],
    },
    "/v1/messages": {
        "messages": [[USER], [{"role": "user", "content": [{"type": "text", "text": "a"}]}], [], [{"role": "tool"}]],
        "system": [None, "a", [{"type": "text", "text": "a", "cache_control": {}}], [{"type": "image"}], 5],
        "max_tokens": [None, 0, 1, 9, 10, CONTEXT],
        "stop_sequences": [None, [], ["a"], [""], ["a"] * 17],
        "metadata": [None, {}, {"user_id": None}, {"user_id": "a"}, {"user": "a"}],
        "thinking": [None, {"type": "disabled"}, {"type": "enabled", "budget_tokens": 1024}, {"type": "off"}],
        "tools": [None, [], [{"name": "f", "input_schema": {}}], [{"name": "f"}], [{"type": "web_search_20250305"}]],
        "tool_choice": [None, {"type": "none"}, {"type": "auto"}, {"type": "tool"}, "auto"],
        "top_k": [None, 0, 5, -2],
    },
}


def refusal(path, body, context=CONTEXTS[0]):
    """How a body is refused, on the way on which every request goes until it is handed to the engine."""
    endpoint = ENDPOINT[path]
    try:
        request = parse(endpoint.body, json.dumps(body).encode(), None, context.settings).request
        endpoint.validate(request, context, ANYBODY)
    except ApiError as error:
        return error
    return None


def is_beyond_a_schema(error):
    """Prompt and output exceed the context together, numbers are compared, or JSON itself is bounded."""
    return isinstance(error, ContextExceeded | ResponseNotFound) or BEYOND_SCHEMA.search(error.message)


BASE = {
    "/v1/completions": {"prompt": "a"},
    "/v1/chat/completions": {"messages": [USER]},
    "/tokenize": {},
    "/detokenize": {"tokens": [1]},
    "/v1/responses": {"input": "a"},
    "/v1/messages": {"messages": [USER], "max_tokens": 5},
}


@st.composite
def bodies(draw, path):
    """A few fields at a time, as most bodies with many are refused for the first that is wrong."""
    names = draw(st.lists(st.sampled_from(sorted(FIELDS[path])), max_size=4, unique=True))
    return BASE[path] | {name: draw(st.sampled_from(FIELDS[path][name])) for name in names}


@cache
def validator(path, number):
    context = CONTEXTS[number]
    return jsonschema_rs.validator_for(body_schema(ENDPOINT[path].body, context.settings, context.bounds()))


@pytest.mark.parametrize("number", range(len(CONTEXTS)), ids=["plain", "strict"])
@pytest.mark.parametrize("path", FIELDS)
@given(data=st.data())
@hypothesis.settings(max_examples=drawn(80))
def test_a_body_is_accepted_if_and_only_if_it_fits_the_schema(path, number, data):
    body = data.draw(bodies(path))
    error = refusal(path, body, CONTEXTS[number])
    fits = validator(path, number).is_valid(body)
    assert fits == (error is None) or (fits and is_beyond_a_schema(error)), (body, error)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "a", "stream_options": {"include_usage": True}}),
        ("/v1/completions", {"prompt": "a", "stream": True, "stream_options": {"continuous_usage_stats": True}}),
        ("/v1/completions", {"prompt": "a", "resumable": True}),
        ("/v1/completions", {"prompt": "a", "best_of": 2, "stream": True}),
        ("/v1/completions", {"prompt": "a", "best_of": 3, "n": 2, "stream": True}),
        ("/v1/completions", {"prompt": "a", "truncation_side": "right"}),
        ("/v1/completions", {"prompt": "a", "truncate_prompt_tokens": 0}),
        ("/v1/completions", {"prompt": "a", "suffix": "b"}),
        ("/v1/completions", {"prompt": "a", "allowed_token_ids": [258]}),
        ("/v1/completions", {"prompt": "a", "min_tokens": 17}),
        ("/v1/completions", {"prompt": [257, 258]}),
        ("/v1/completions", {"prompt": [[257], [258]]}),
        ("/v1/completions", {"prompt": ""}),
        ("/v1/completions", {"prompt": [1] * (CONTEXT + 1)}),
        ("/v1/completions", {"prompt": "a", "max_tokens": CONTEXT}),
        ("/v1/completions", {"prompt": "a", "stop_token_ids": [258]}),
        ("/v1/completions", {"prompt": "a", "logit_bias": {"258": 1}}),
        ("/v1/completions", {"prompt": "a", "model": "large"}),
        ("/v1/chat/completions", {"messages": [USER], "top_logprobs": 1}),
        ("/v1/chat/completions", {"messages": [USER], "chat_template_kwargs": {"messages": 1}}),
        ("/v1/chat/completions", {"messages": [USER], "add_generation_prompt": True, "continue_final_message": True}),
        ("/tokenize", {}),
        ("/tokenize", {"prompt": "a", "messages": [USER]}),
        ("/tokenize", {"prompt": "a", "continue_final_message": False}),
        ("/detokenize", {"tokens": [258]}),
        ("/detokenize", {"tokens": [1] * (CONTEXT + 1)}),
    ],
    ids=str,
)
def test_a_rule_between_fields_or_of_the_model_is_published(path, body):
    assert refusal(path, body) is not None and not validator(path, 0).is_valid(body)


def test_what_depends_on_an_operator_is_published():
    def fits(body, **settings):
        context = Server(**settings).context
        schema = body_schema(ENDPOINT["/v1/completions"].body, context.settings, context.bounds())
        return jsonschema_rs.is_valid(schema, {"prompt": "a", **body})

    assert fits({"priority": 1}, scheduling="fair") and not fits({"priority": 1}, scheduling="fcfs")
    assert fits({"cache_pin_seconds": 1}) and not fits({"cache_pin_seconds": 1}, prefix_caching=False)
    kept = {"stream": True, "resumable": True}
    assert fits(kept) and not fits(kept, resume_seconds=0)
    assert fits({"x": 1}, unknown_fields="ignore") and not fits({"x": 1})
    assert fits({"prompt": ""}, bos=True) and not fits({"prompt": ""})
    assert fits({"max_tokens": 9}, max_output_tokens=9) and not fits({"max_tokens": 10}, max_output_tokens=9)


def whole(value):
    """To JSON Schema 1.0 is an integer. Here it is none, which no schema can say, so generated values are made plain."""
    if isinstance(value, dict):
        return {name: whole(item) for name, item in value.items()}
    if isinstance(value, list):
        return [whole(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


@pytest.fixture(scope="module")
def published():
    return schemathesis.openapi.from_dict(Server(scheduling="fair").app.openapi())


@pytest.mark.parametrize("path", ENDPOINT)
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["valid", "invalid"])
def test_what_a_fuzzer_makes_of_the_document_is_judged_alike(published, path, mode):
    """The e2e test of this kind sends such bodies to a real server, which says less about each."""

    @hypothesis.settings(max_examples=drawn(5), suppress_health_check=list(hypothesis.HealthCheck))
    @given(case=published[path]["POST"].as_strategy(generation_mode=mode))
    def check(case):
        if not isinstance(case.body, dict | list | str | int | float | None):
            return  # it leaves the body out, or sends it as something else
        error = refusal(path, whole(case.body))
        if mode is GenerationMode.NEGATIVE:
            assert error is not None
        else:
            assert error is None or is_beyond_a_schema(error), error

    check()
