"""How texts are spelled that must follow: as the model's own tokenizer does."""

import json
from pathlib import Path

from llguidance import LLMatcher

from engine.ipc.vocabulary import TokenSpellings, matcher_of

SCHEMAS = json.loads((Path(__file__).parents[2] / "data" / "json_schemas.json").read_text())


def literals(schema):
    """Names of properties, and texts of `enum` and `const`."""
    if isinstance(schema, dict):
        if isinstance(schema.get("properties"), dict):
            yield from schema["properties"]
        yield from (text for text in [schema.get("const"), *schema.get("enum", ())] if isinstance(text, str))
        for part in schema.values():
            yield from literals(part)
    elif isinstance(schema, list):
        for part in schema:
            yield from literals(part)


def spellings_of(tokenizer, size, special=()):
    tokens = [tokenizer.token_bytes(token) for token in range(size)]
    added = [token for token in tokenizer.added_tokens if token not in tokenizer.special_ids]
    return TokenSpellings(tokens, sorted(tokenizer.special_ids), added)


def test_what_must_follow_is_spelled_as_the_models_tokenizer_does(smollm2_tokenizer):
    spellings = spellings_of(smollm2_tokenizer, 49152)
    tokenizer = spellings.tokenizer(49152, [2])
    texts = {text for schema in SCHEMAS.values() for text in literals(schema)}
    texts |= {f'"{text}": ' for text in texts} | {
        "is_navigable",
        "Größe in km²",
        "名前",
        "def f(x):\n    return x + 12\n",
    }
    assert len(texts) > 200
    for text in texts:
        wanted = smollm2_tokenizer.encode(text)
        assert tokenizer.tokenize_str(text) == wanted, text
    grammar = LLMatcher.grammar_from_lark('start: "is_navigable" /[0-9]/')
    forced = matcher_of(tokenizer, grammar).compute_ff_tokens()
    assert forced == smollm2_tokenizer.encode("is_navigable")


def test_added_tokens_are_found_whole_and_special_ones_never():
    tokens = [b"<end>", b"<", b">", b"c", b"a", b"l", b"ca", b"<call>", b" "]
    tokenizer = TokenSpellings(tokens, [0], [7]).tokenizer(len(tokens), [0])
    assert tokenizer.tokenize_str("ca <call>l") == [6, 8, 7, 5]
    assert tokenizer.tokenize_str("<ca>l<") == [1, 6, 2, 5, 1]
    assert tokenizer.tokenize_str("<c" + "a" * 200) == [1, 6, *[4] * 199]  # however it is cut
