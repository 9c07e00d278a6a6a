"""Some hundred schemas in public styles: each is refused with a reason, or compiled, and then whatever is generated is valid."""

import json
import random
from pathlib import Path

import pytest
from jsonschema.validators import validator_for
from llguidance import LLMatcher, LLTokenizer

from server.errors import InvalidRequest
from server.structured.json_schema import json_grammar

SCHEMAS = json.loads((Path(__file__).parents[2] / "data" / "json_schemas.json").read_text())
REFUSED = {
    "pydantic set",
    "store dependencies",
    "store if",
    "store not",
    "store contains",
    "store names",
    "store unevaluated",
    "store remote",
    "store file reference",
    "store one of",
    "look-ahead",
    "back-reference",
    "word border",
    "format unknown",
    "impossible length",
    "impossible type",
    "impossible enum",
    "impossible false",
    "min properties",
}
TOKENIZER = LLTokenizer("byte")
END = TOKENIZER.eos_token
CLOSING = [ord(char) for char in '"]}']


def matcher_for(schema):
    """A walk through the schema's grammar, or why there is none."""
    try:
        grammar = json_grammar(schema, "s")
    except InvalidRequest as refused:
        return refused.message
    matcher = LLMatcher(TOKENIZER, LLMatcher.grammar_from_json_schema(grammar.source), log_level=0)
    return matcher.get_error() or matcher


def walked(matcher, draw, most=3000):
    """A text that the grammar allows, drawn at random but towards its end."""
    text = bytearray()
    while not matcher.is_stopped() and len(text) < most:
        bits = int.from_bytes(matcher.compute_bitmask(), "little")
        allowed = [token for token in range(bits.bit_length()) if bits >> token & 1]
        closing = [token for token in (END, *CLOSING) if token in allowed]
        token = draw.choice(closing) if closing and draw.random() < 0.5 else draw.choice(allowed)
        assert matcher.consume_token(token)
        if token == END:
            break
        text.append(token)
    return text.decode() if matcher.is_accepting() or matcher.is_stopped() else None


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_schema_is_refused_with_a_reason_or_everything_that_fits_is_valid(name):
    schema = SCHEMAS[name]
    found = matcher_for(schema)
    assert isinstance(found, str) == (name in REFUSED), found
    if name in REFUSED:
        assert found
        return
    validator = validator_for(schema)(schema)
    texts = [walked(found.deep_copy(), random.Random(seed)) for seed in range(4)]
    whole = [json.loads(text) for text in texts if text is not None]
    assert whole
    for value in whole:
        validator.validate(value)
