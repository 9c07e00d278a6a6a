"""What a parameter takes is seen in its schema, and a value without quotes is read by it."""

import pytest

from server.text.formats.value_types import ANY_TYPE, TEXT_ONLY, types_of, value_as_json

ROOT = {
    "$defs": {
        "Kind": {"enum": ["a", 1]},
        "Loop": {"$ref": "#/$defs/Loop"},
        "Tree": {"anyOf": [{"$ref": "#/$defs/Tree"}, {"type": "null"}]},
        "a/b": {"type": "boolean"},
    }
}


@pytest.mark.parametrize(
    ("schema", "types"),
    [
        ({"type": "string"}, TEXT_ONLY),
        ({"type": ["string", "null"]}, TEXT_ONLY | {"null"}),
        ({"enum": ["a", "b"]}, TEXT_ONLY),
        ({"const": 1.5}, {"number"}),
        ({"enum": [True, None, -3]}, {"boolean", "null", "integer"}),
        ({"anyOf": [{"type": "string"}, {"type": "array"}], "title": "x"}, TEXT_ONLY | {"array"}),
        ({"type": "string", "oneOf": [{"enum": ["a"]}, {"enum": [1]}]}, TEXT_ONLY),
        ({"$ref": "#/$defs/Kind"}, TEXT_ONLY | {"integer"}),
        ({"$ref": "#/$defs/a~1b"}, {"boolean"}),
        ({"$ref": "#/$defs/Loop"}, ANY_TYPE),
        ({"$ref": "#/$defs/Tree"}, ANY_TYPE),
        ({"$ref": "#/nowhere/at/all"}, ANY_TYPE),
        ({"$ref": "https://example.com"}, ANY_TYPE),
        ({"type": 3, "enum": "a", "anyOf": {}}, ANY_TYPE),
        ({"type": "string", "const": 1}, ANY_TYPE),
        ({"anyOf": []}, ANY_TYPE),
        (True, ANY_TYPE),
        (None, ANY_TYPE),
    ],
)  # fmt: skip
def test_types_of_a_schema(schema, types):
    assert types_of(schema, ROOT) == types


@pytest.mark.parametrize(
    ("text", "types", "written"),
    [
        ("12", TEXT_ONLY, '"12"'),
        ("12", {"integer"}, "12"),
        ("12", {"number"}, "12"),
        ("12", TEXT_ONLY | {"number"}, "12"),
        ("1.5", TEXT_ONLY | {"integer"}, '"1.5"'),
        (" True ", {"boolean"}, "true"),
        ("None", TEXT_ONLY | {"null"}, "null"),
        ("none", TEXT_ONLY | {"null"}, '"none"'),
        ('"a"', TEXT_ONLY | {"null"}, '"\\"a\\""'),
        ('{"a": "\\ud83d\\ude00"}', {"object"}, '{"a": "\U0001f600"}'),
        ("{'a': (1, 2)}", {"object"}, '{"a": [1, 2]}'),
        ("3", {"object"}, "3"),
        ("x", {"integer"}, '"x"'),
        ("", {"integer"}, '""'),
        ("9" * 5000, {"integer"}, f'"{"9" * 5000}"'),
        ("[" * 5000, {"array"}, f'"{"[" * 5000}"'),
    ],
)  # fmt: skip
def test_a_value_without_quotes(text, types, written):
    assert value_as_json(text, frozenset(types)) == written
