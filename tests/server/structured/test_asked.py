"""Which grammar a request's fields ask for, and what is refused of them."""

import pytest
from llguidance import LLMatcher
from pydantic import ValidationError

from server.errors import InvalidRequest
from server.schema.completions import CompletionRequest
from server.schema.structured import MAX_TAGS, MAX_TRIGGERS
from server.structured.asked import grammar_of
from server.structured.size import MAX_SOURCE_BYTES
from tests.server.structured.test_features import TOKENIZER, fits

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
TAG = {"begin": "<f>", "schema": {"type": "integer"}, "end": "</f>"}


def asked(**fields):
    return grammar_of(CompletionRequest.model_validate({"prompt": ["a"], **fields}))


@pytest.mark.parametrize(
    ("fields", "kind", "param"),
    [
        ({"response_format": {"type": "json_object"}}, "json_schema", "response_format"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}},
            "json_schema",
            "response_format.json_schema.schema",
        ),
        ({"structured_outputs": {"json": SCHEMA}}, "json_schema", "structured_outputs.json"),
        ({"structured_outputs": {"json": '{"type":"integer"}'}}, "json_schema", "structured_outputs.json"),
        ({"structured_outputs": {"json_object": True}}, "json_schema", "structured_outputs.json_object"),
        ({"structured_outputs": {"regex": "a"}}, "regex", "structured_outputs.regex"),
        ({"structured_outputs": {"choice": ["a", "b"]}}, "choice", "structured_outputs.choice"),
        ({"structured_outputs": {"grammar": 'start: "a"'}}, "lark", "structured_outputs.grammar"),
        ({"guided_json": True}, "json_schema", "guided_json"),
        ({"guided_regex": "a"}, "regex", "guided_regex"),
        ({"guided_choice": ["a"]}, "choice", "guided_choice"),
        ({"guided_grammar": "root ::= [a-z]"}, "lark", "guided_grammar"),
        (
            {"response_format": {"type": "structural_tag", "structures": [TAG], "triggers": ["<f"]}},
            "lark",
            "response_format.structures",
        ),
    ],
    ids=str,
)
def test_each_field_asks_for_its_grammar(fields, kind, param):
    grammar = asked(**fields)
    assert (grammar.kind, grammar.param) == (kind, param)


def test_text_asks_for_nothing():
    assert asked() is None and asked(response_format={"type": "text"}) is None


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {"type": "json_object"}, "guided_regex": "a"}, "guided_regex"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs.choice"),
        ({"structured_outputs": {}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a", "whitespace_pattern": " "}}, "structured_outputs.whitespace_pattern"),
        ({"guided_regex": "a", "guided_whitespace_pattern": " "}, "guided_whitespace_pattern"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "text", "triggers": ["a"]}}, "response_format.triggers"),
        ({"response_format": {"type": "structural_tag", "structures": [TAG]}}, "response_format.triggers"),
        (
            {"response_format": {"type": "structural_tag", "structures": [TAG], "triggers": ["<g"]}},
            "response_format.structures[0].begin",
        ),
        ({"structured_outputs": {"structural_tag": "{}"}}, "structured_outputs.structural_tag"),
        (
            {"structured_outputs": {"json": {"properties": {"a": {"not": {}}}}}},
            "structured_outputs.json.properties.a.not",
        ),
    ],
    ids=str,
)
def test_what_does_not_go_together_is_refused_by_the_field(fields, param):
    with pytest.raises(InvalidRequest) as refused:
        asked(**fields)
    assert refused.value.param == param


@pytest.mark.parametrize(
    ("options", "yes", "no"),
    [
        ({}, '{ "a": 1 }', '{"a": 1' + " " * 50 + "}"),
        ({"disable_any_whitespace": True}, '{"a":1}', '{"a": 1}'),
        ({"whitespace_pattern": " "}, '{ "a": 1}', '{"a":  1}'),
        ({"disable_additional_properties": True}, '{"a":1}', '{"a":1,"b":2}'),
    ],
    ids=str,
)
def test_what_goes_with_a_schema_has_its_effect(options, yes, no):
    source = asked(structured_outputs={"json": SCHEMA, **options}).source
    assert fits(source, yes) and not fits(source, no)


def test_a_structural_tag_constrains_what_begins_and_nothing_else():
    source = asked(response_format={"type": "structural_tag", "structures": [TAG], "triggers": ["<f"]}).source

    def allowed(text):
        matcher = LLMatcher(TOKENIZER, LLMatcher.grammar_from_lark(source), log_level=0)
        return matcher.validate_tokens(list(text.encode())) == len(text) and matcher.consume_tokens(list(text.encode()))

    assert allowed("any <text> <f>12</f> and <f>3</f>")
    assert not allowed("any <f>x") and not allowed("<fx")


@pytest.mark.parametrize("field", ["json", "structural_tag"])
def test_a_text_is_no_longer_than_a_grammar_may_be(field):
    with pytest.raises(InvalidRequest, match=f"at most {MAX_SOURCE_BYTES} bytes, got {MAX_SOURCE_BYTES + 2}"):
        asked(structured_outputs={field: f"[{'1' * MAX_SOURCE_BYTES}]"})


@pytest.mark.parametrize("levels", [150, 900, 20_000])
@pytest.mark.parametrize("name", ["items", "x-note", "example"])
def test_a_text_that_is_nested_deep_is_refused(name, levels):
    text = f'{{"{name}":' * levels + "1" + "}" * levels
    for more in ({}, {"disable_additional_properties": True}):
        if name == "items" or levels > 200:
            with pytest.raises(InvalidRequest, match=r"nested deeper|must be JSON") as refused:
                asked(structured_outputs={"json": text, **more})
            assert refused.value.param.startswith("structured_outputs.json")
        else:
            assert asked(structured_outputs={"json": text, **more}).source


@pytest.mark.parametrize(
    ("structures", "triggers", "most"), [(MAX_TAGS + 1, 1, MAX_TAGS), (1, MAX_TRIGGERS + 1, MAX_TRIGGERS)]
)
def test_tags_and_triggers_are_bounded_since_each_is_held_against_each(structures, triggers, most):
    form = {"type": "structural_tag", "structures": [TAG] * structures, "triggers": ["<f"] * triggers}
    with pytest.raises(ValidationError, match=f"at most {most} items"):
        asked(response_format=form)
