"""What of JSON Schema is served: nothing that a schema says is left aside without a word."""

import pytest
from llguidance import LLMatcher, LLTokenizer

from server.errors import InvalidRequest, UnsupportedField
from server.structured.features import FORMATS, HONOURED, REMARKS, check_schema, without_additional
from server.structured.json_schema import json_grammar
from server.structured.size import MAX_SOURCE_BYTES

TOKENIZER = LLTokenizer("byte")
REFUSED = [
    ({"uniqueItems": True}, "s.uniqueItems"),
    ({"not": {"type": "string"}}, "s.not"),
    ({"properties": {"a": {"nullable": True}}}, "s.properties.a.nullable"),
    ({"items": {"minLenght": 3}}, "s.items.minLenght"),
    ({"anyOf": [{}, {"if": {}, "then": {}}]}, "s.anyOf[1].if"),
    ({"$defs": {"x": {"contentEncoding": "base64"}}}, "s.$defs.x.contentEncoding"),
    ({"x-guidance": {"lenient": True}}, "s.x-guidance"),
    ({"prefixItems": [{"contains": {}}]}, "s.prefixItems[0].contains"),
    ({"format": "credit-card"}, "s.format"),
    ({"minProperties": 2, "required": ["a"]}, "s.minProperties"),
    ({"required": True}, "s.required"),
    ({"properties": {"a": 3}}, "s.properties.a"),
    ({"additionalProperties": {"dependentRequired": {}}}, "s.additionalProperties.dependentRequired"),
]


def fits(source, text):
    matcher = LLMatcher(TOKENIZER, LLMatcher.grammar_from_json_schema(source), log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    tokens = list(text.encode())
    return matcher.validate_tokens(tokens) == len(tokens) and matcher.consume_tokens(tokens) and matcher.is_accepting()


@pytest.mark.parametrize(("schema", "path"), REFUSED, ids=str)
def test_what_is_not_honoured_is_refused_by_its_path(schema, path):
    with pytest.raises(InvalidRequest) as refused:
        check_schema(schema, "s")
    assert refused.value.param == path and f"`{path}`" in refused.value.message


def test_what_is_too_large_is_refused_unread_and_long_names_are_cut_in_paths():
    with pytest.raises(InvalidRequest, match=f"at most {MAX_SOURCE_BYTES} bytes") as refused:
        json_grammar({"not": "x" * MAX_SOURCE_BYTES}, "s")
    assert refused.value.param == "s"
    with pytest.raises(UnsupportedField) as refused:
        check_schema({"properties": {"x" * 1000: {"not": {}}}}, "s")
    assert refused.value.param == f"s.properties.{'x' * 100}.not"


def test_remarks_change_nothing_and_neither_does_what_asks_for_nothing():
    check_schema(
        {
            "title": "t",
            "default": {"uniqueItems": 1},
            "const": {"not": 1},
            "x-order": 3,
            "uniqueItems": False,
            "nullable": False,
        },
        "s",
    )
    assert not HONOURED & REMARKS


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_every_format_that_is_let_through_is_known_to_the_library(name):
    assert not fits(json_grammar({"type": "string", "format": name}, "s").source, '"?? ??"')


def test_what_nests_without_end_is_refused():
    schema = {}
    for _ in range(80):
        schema = {"items": schema}
    with pytest.raises(UnsupportedField, match="deeper than 64"):
        check_schema(schema, "s")


@pytest.mark.parametrize("text", ['{"\\u0061":"x"}', '{"a":"\\u0041"}', '{"a":1' + " " * 40 + "}"])
def test_names_have_one_spelling_and_spaces_an_end(text):
    assert not fits(json_grammar({"type": "object", "properties": {"a": {}}}, "s").source, text)


def test_objects_may_be_closed_where_the_schema_does_not_say():
    schema = {
        "type": "object",
        "properties": {"a": {"properties": {}, "additionalProperties": True}, "b": {"const": {"properties": {}}}},
    }
    closed = without_additional(schema)
    assert closed["additionalProperties"] is False
    assert closed["properties"]["a"]["additionalProperties"] is True
    assert closed["properties"]["b"] == {"const": {"properties": {}}}


@pytest.mark.parametrize("text", ["{", "false", "3", '{"const": "\\ud800"}', "[" * 5000])
def test_text_that_is_no_schema_is_refused(text):
    with pytest.raises(InvalidRequest):
        json_grammar(text, "guided_json")
