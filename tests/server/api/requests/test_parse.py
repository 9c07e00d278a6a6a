"""Bodies to typed requests: every refusal names field, limit and value; nothing but an ApiError ever comes out."""

import contextlib
import itertools
import json

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from configs.settings import Settings
from server.api.requests.parse import MAX_DEPTH, parse
from server.errors import InvalidRequest, UnknownField, UnsupportedField, UnsupportedMediaType
from server.schema.chat import ChatRequest, ContentPart, Message
from server.schema.completions import CompletionRequest
from server.schema.sampling import StreamOptions
from server.schema.tokens import DetokenizeRequest, TokenizeRequest
from tests.drawn import drawn

SETTINGS = Settings()
USER = {"role": "user", "content": "hi"}


def parsed(model, body, content_type="application/json", settings=SETTINGS):
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return parse(model, raw, content_type, settings)


def completion(**fields):
    return parsed(CompletionRequest, {"prompt": "a", **fields}).request


def chat(**fields):
    return parsed(ChatRequest, {"messages": [USER], **fields}).request


def refusal(model, body, **kwargs):
    with pytest.raises(InvalidRequest) as caught:
        parsed(model, body, **kwargs)
    return caught.value


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("a", ["a"]),
        ("", [""]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [[1, 2]]),
        ([[1, 2], [3]], [[1, 2], [3]]),
    ],
)
def test_a_prompt_may_have_four_forms(prompt, prompts):
    assert completion(prompt=prompt).prompt == prompts


# field, value, words of the message, path if it is not the field
REFUSED = [
    ("temperature", 2.5, ["at most 2", "2.5"]),
    ("temperature", -1, ["at least 0", "-1"]),
    ("temperature", True, ["number", "true"]),
    ("temperature", "1", ["number", '"1"']),
    ("temperature", 10**18, ["at most 2", str(10**18)]),
    ("top_p", -0.1, ["at least 0", "-0.1"]),
    ("top_p", 1.5, ["at most 1", "1.5"]),
    ("min_p", -0.1, ["at least 0", "-0.1"]),
    ("presence_penalty", 2.1, ["at most 2", "2.1"]),
    ("frequency_penalty", -2.1, ["at least -2", "-2.1"]),
    ("repetition_penalty", 0, ["at least 0.1", "0"]),
    ("top_k", -2, ["at least -1", "-2"]),
    ("top_k", 1.0, ["integer", "1.0"]),
    ("n", 0, ["at least 1", "0"]),
    ("n", 129, ["at most 128", "129"]),
    ("n", "2", ["integer", '"2"']),
    ("max_tokens", -1, ["at least 0", "-1"]),
    ("min_tokens", -1, ["at least 0", "-1"]),
    ("stream", "yes", ["true or false", '"yes"']),
    ("stream", 1, ["true or false", "1"]),
    ("stream_options", 3, ["object", "3"]),
    ("stream_options", {"include_usage": 1}, ["true or false", "1"], "stream_options.include_usage"),
    ("stop", 3, ["string", "3"]),
    ("stop", "", ["1 to 1024", "0"]),
    ("stop", ["a", ""], ["1 to 1024", "0"], "stop[1]"),
    ("stop", ["a", 5], ["string", "5"], "stop[1]"),
    ("stop", ["a"] * 17, ["at most 16", "17"]),
    ("stop", "a" * 1025, ["1 to 1024", "1025"]),
    ("seed", 2**63, ["64 bits", str(2**63)]),
    ("seed", "7", ["integer", '"7"']),
    ("logit_bias", [], ["object", "an array of 0"]),
    ("logit_bias", {"x": 1}, ["token id", '"x"'], "logit_bias.x"),
    ("logit_bias", {"-5": 1}, ["token id", '"-5"'], "logit_bias.-5"),
    ("logit_bias", {"05": 1}, ["token id", '"05"'], "logit_bias.05"),
    ("logit_bias", {"٥": 1}, ["token id", '"٥"'], "logit_bias.٥"),
    ("logit_bias", {str(2**31): 1}, ["token id", str(2**31)], f"logit_bias.{2**31}"),
    (
        "logit_bias",
        {"x": 1, "5": 1, "": 2, "6": "a"},
        ["3 wrong", '"x" must be named', '"" must be', '"6" must be a number'],
    ),
    ("logit_bias", {f"x{i}": 1 for i in range(20)}, ["20 wrong", '"x7"', "and 12 more"]),
    ("logit_bias", {"5": 101}, ["-100 and 100", "101"], "logit_bias.5"),
    ("logit_bias", {"5": True}, ["number", "true"], "logit_bias.5"),
    ("logit_bias", {str(i): 1 for i in range(1025)}, ["at most 1024", "1025"]),
    ("stop_token_ids", [-1], ["at least 0", "-1"], "stop_token_ids[0]"),
    ("stop_token_ids", list(range(17)), ["at most 16", "17"]),
    ("bad_words", [""], ["at least 1", "0"], "bad_words[0]"),
    ("bad_words", ["a"] * 129, ["at most 128", "129"]),
    ("priority", 2**31, ["at most 2147483647", str(2**31)]),
    ("cache_salt", "a" * 257, ["at most 256", "257"]),
    ("prompt_logprobs", 21, ["at most 20", "21"]),
    ("model", 5, ["string", "5"]),
]


@pytest.mark.parametrize(("base", "model"), [({"prompt": "a"}, CompletionRequest), ({"messages": [USER]}, ChatRequest)])
@pytest.mark.parametrize(("field", "value", "words", "path"), [(*row, row[0])[:4] for row in REFUSED])
def test_refusals_of_shared_fields(base, model, field, value, words, path):
    error = refusal(model, {**base, field: value})
    assert error.param == path
    assert f"`{path}`" in error.message
    assert all(word in error.message for word in words), error.message


@pytest.mark.parametrize(
    ("body", "path", "words"),
    [
        ({}, "prompt", ["required"]),
        ({"prompt": None}, "prompt", ["required"]),
        ({"prompt": 5}, "prompt", ["string or an array", "5"]),
        ({"prompt": []}, "prompt", ["at least one", "empty"]),
        ({"prompt": [[1], []]}, "prompt[1]", ["at least one", "empty"]),
        ({"prompt": [[1], [2, "x"]]}, "prompt[1][1]", ["token id", '"x"']),
        ({"prompt": [3, -1]}, "prompt[1]", ["of 0 to", "-1"]),
        ({"prompt": [[3], [2**31]]}, "prompt[1][0]", ["of 0 to", "2147483648"]),
        ({"prompt": [[1], [2, None]]}, "prompt[1][1]", ["token id", "null"]),
        ({"prompt": ["a", 1]}, "prompt", ["mixes"]),
        ({"prompt": [True]}, "prompt", ["mixes"]),
        ({"prompt": ["a"] * 1025}, "prompt", ["at most 1024", "1025"]),
        ({"prompt": "a", "logprobs": 21}, "logprobs", ["at most 20", "21"]),
        ({"prompt": "a", "logprobs": True}, "logprobs", ["integer", "true"]),
        ({"prompt": "a", "echo": "no"}, "echo", ["true or false", '"no"']),
    ],
)
def test_refusals_of_completions(body, path, words):
    error = refusal(CompletionRequest, body)
    assert error.param == path
    assert all(word in error.message for word in words), error.message


@pytest.mark.parametrize(
    ("messages", "path", "words"),
    [
        ([], "messages", ["at least 1", "an array of 0"]),
        ("hi", "messages", ["array", '"hi"']),
        ([3], "messages[0]", ["object", "3"]),
        ([None], "messages[0]", ["object", "null"]),
        ([{"content": "a"}], "messages[0].role", ["required"]),
        ([USER, {"role": "user"}], "messages[1].content", ["required"]),
        ([USER, {"role": "tool", "content": None}], "messages[1].content", ["required"]),
        ([{"role": "judge", "content": "a"}], "messages[0].role", ["'assistant'", '"judge"']),
        ([{"role": "user", "content": 5}], "messages[0].content", ["string or an array", "5"]),
        ([{"role": "user", "content": ["a"]}], "messages[0].content[0]", ["object", '"a"']),
        ([{"role": "user", "content": [{"text": "a"}]}], "messages[0].content[0].type", ['"text"', "null"]),
        (
            [{"role": "user", "content": [{"type": "text"}]}],
            "messages[0].content[0].text",
            ["string", "null"],
        ),
        ([{"role": "user", "content": "a", "name": 1}], "messages[0].name", ["string", "1"]),
    ],
)
def test_refusals_of_messages(messages, path, words):
    error = refusal(ChatRequest, {"messages": messages})
    assert error.param == path
    assert all(word in error.message for word in words), error.message


def test_text_parts_are_kept_apart_for_the_template():
    parts = [
        {"type": "text", "text": "a", "prompt_cache_breakpoint": {"mode": "explicit"}},
        {"type": "text", "text": "b", "cache_control": {"type": "ephemeral"}},
    ]
    assert chat(messages=[{"role": "user", "content": parts}]).messages[0].content == ["a", "b"]


def test_nulls_count_as_absent_at_every_depth():
    sent = {
        "messages": [{**USER, "name": None, "tool_calls": None}],
        "temperature": None,
        "tools": None,
        "stream_options": {"include_usage": None},
        "logit_bias": None,
        "chat_template_kwargs": {"x": None},
        "no_such_field": None,
    }
    request = parsed(ChatRequest, sent).request
    assert request == chat(stream_options={}, chat_template_kwargs={})


def test_integers_are_numbers():
    assert completion(temperature=1).temperature == 1.0


@pytest.mark.parametrize(
    ("name", "near"), [("temprature", "temperature"), ("max_token", "max_tokens"), ("tool", "tools"), ("users", "user")]
)
def test_an_unknown_field_is_refused_with_the_nearest_known_name(name, near):
    error = refusal(ChatRequest, {"messages": [USER], name: 1})
    assert isinstance(error, UnknownField)
    assert error.param == name
    assert f"`{near}`" in error.message


def test_an_unknown_field_far_from_any_other_gets_no_hint():
    assert "mean" not in refusal(CompletionRequest, {"prompt": "a", "zzzzqqqq": 1}).message


def test_a_misspelt_required_field_is_named_rather_than_the_missing_one():
    assert refusal(CompletionRequest, {"promt": "a"}).param == "promt"


def test_unknown_fields_inside_objects():
    assert refusal(ChatRequest, {"messages": [USER, {**USER, "rolle": 1}]}).param == "messages[1].rolle"
    body = {"prompt": "a", "stream": True, "stream_options": {"include_usages": True}}
    assert refusal(CompletionRequest, body).param == "stream_options.include_usages"


def test_unknown_fields_may_be_ignored_with_a_warning():
    lax = Settings(unknown_fields="ignore")
    body = {"messages": [{**USER, "colour": 1}], 'wei"rd\r\nX-Evil: 1': 2, "größe": 3}
    answer = parsed(ChatRequest, body, settings=lax)
    assert answer.request == chat()
    warning = answer.headers["Warning"]
    assert warning.startswith('299 headrace "') and "messages[0].colour" in warning
    assert warning.isascii() and warning.isprintable()
    assert warning.count('"') == 2


def test_known_fields_are_checked_when_unknown_ones_are_ignored():
    lax = Settings(unknown_fields="ignore")
    assert refusal(ChatRequest, {"messages": [USER], "n": 0, "x": 1}, settings=lax).param == "n"
    assert isinstance(refusal(ChatRequest, {"messages": [USER], "audio": [1]}, settings=lax), UnsupportedField)


BODIES = {CompletionRequest: {"prompt": "a"}, ChatRequest: {"messages": [USER]}}


@pytest.mark.parametrize(("model", "name"), [(m, name) for m in BODIES for name in sorted(m.IGNORED)])
def test_ignored_fields_change_nothing(model, name):
    plain = parsed(model, BODIES[model]).request
    assert all(parsed(model, {**BODIES[model], name: value}).request == plain for value in ("x", 5, {"a": [1]}, True))


@pytest.mark.parametrize(("model", "name"), [(m, name) for m in BODIES for name in m.UNSUPPORTED])
def test_unserved_fields_are_named_unless_they_ask_for_nothing(model, name):
    for value in model.UNSUPPORTED[name]:
        assert parsed(model, {**BODIES[model], name: value}).request == parsed(model, BODIES[model]).request
    error = refusal(model, {**BODIES[model], name: ["something"]})
    assert isinstance(error, UnsupportedField)
    assert error.param == name and f"`{name}`" in error.message


def test_true_is_not_one_and_zero_is_not_false():
    assert refusal(CompletionRequest, {"prompt": "a", "use_beam_search": 0}).param == "use_beam_search"
    assert refusal(CompletionRequest, {"prompt": "a", "length_penalty": True}).param == "length_penalty"
    spelled = refusal(CompletionRequest, {"prompt": "a", "early_stopping": "always"})
    assert spelled.message == '`early_stopping` must be true, false or "never", got "always"'


@pytest.mark.parametrize("name", sorted(Message.UNSUPPORTED))
def test_unserved_fields_of_messages(name):
    assert refusal(ChatRequest, {"messages": [{**USER, name: [{}]}]}).param == f"messages[0].{name}"


@pytest.mark.parametrize("name", sorted(ContentPart.UNSUPPORTED))
def test_parts_that_are_no_text(name):
    body = {"messages": [{"role": "user", "content": [{"type": name, name: {"url": "x"}}]}]}
    error = refusal(ChatRequest, body)
    assert isinstance(error, UnsupportedField)
    assert error.param == f"messages[0].content[0].{name}"


def test_tables_and_fields_do_not_overlap():
    for model in (CompletionRequest, ChatRequest, Message, ContentPart, StreamOptions, TokenizeRequest):
        names = [*model.model_fields, *model.IGNORED, *model.UNSUPPORTED]
        assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"{'a': 1}", "not JSON"),
        (b'{"prompt": "a"} x', "not JSON"),
        (b"\xef\xbb\xbf", "not JSON"),
        (b'\xef\xbb\xbf\xef\xbb\xbf{"prompt": "a"}', "not JSON"),
        (b"\xff\xfe{\x00}\x00", "not UTF-8: byte 0"),
        (b"\xff\xfe", "not UTF-8: byte 0"),
        (b"[]", "a JSON object, got an array of 0"),
        (b'"a"', 'a JSON object, got "a"'),
        (b"null", "a JSON object, got null"),
        (b'{"prompt": "a", "top_p": NaN}', "NaN"),
        (b'{"prompt": "a", "top_p": Infinity}', "Infinity"),
        (b'{"prompt": "a", "top_p": -Infinity}', "Infinity"),
        (b'{"prompt": "a", "top_p": 1e999}', "1e999 is too large"),
        (b'{"prompt": "a", "top_p": -1e999}', "1e999 is too large"),
        (b'{"prompt": "a", "seed": ' + b"9" * 30 + b"}", "64 bits"),
        (b'{"prompt": "a", "seed": ' + b"9" * 399 + b"}", "a number of 399 digits"),
        (b'{"prompt": "a", "seed": ' + b"9" * 100_000 + b"}", "at most 400 digits, got 100000"),
        (b'{"prompt": [1, 99999999999999999999]}', "`prompt[1]` must fit 64 bits"),
        (b'{"prompt": "\\ud800"}', "`prompt` must not contain the lone surrogate U+D800"),
        (b'{"prompt": "a", "user": "\\udfff"}', "`user` must not contain the lone surrogate U+DFFF"),
        (b'{"prompt": "a", "\\u0000": 1}', "NUL"),
        (b'{"prompt": "a", "\\ud800": 1}', "lone surrogate"),
        (b'{"prompt": "a", "prompt": "b"}', '"prompt" is given twice'),
        (b'{"prompt": "a", "metadata": {"\\ud800": 1, "\\ud800": 2}}', "given twice"),
        (b"[" * 1_000_000, "at most 32768 objects and arrays"),
        (b"[" * 30_000, "nested deeper than 64"),
        (b'{"a":' * 30_000, "nested deeper than 64"),
        (b'{"a":' * 65 + b"1" + b"}" * 65, "nested deeper than 64"),
    ],
    ids=itertools.count(),
)
def test_bodies_that_are_no_request(body, words):
    error = refusal(CompletionRequest, body)
    assert words in error.message
    json.dumps(error.body(), ensure_ascii=False).encode()


def test_a_byte_order_mark_is_dropped():
    assert parsed(CompletionRequest, b'\xef\xbb\xbf{"prompt": "\xef\xbb\xbfa"}').request.prompt == ["\ufeffa"]
    assert "byte 16 is" in refusal(CompletionRequest, b'\xef\xbb\xbf{"prompt": "a\xff"}').message


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_more_tokens_than_an_operator_allows(field):
    bounded = Settings(max_output_tokens=9)
    assert getattr(parsed(ChatRequest, {"messages": [USER], field: 9}, settings=bounded).request, field) == 9
    error = refusal(ChatRequest, {"messages": [USER], field: 10}, settings=bounded)
    assert error.param == field and error.message == f"`{field}` must be at most 9, got 10"


def test_a_nul_in_a_text_is_a_character():
    assert parsed(CompletionRequest, b'{"prompt": ["a\\u0000b"], "user": "\\u0000"}').request.prompt == ["a\0b"]


def test_a_pair_of_surrogates_is_a_character():
    assert parsed(CompletionRequest, b'{"prompt": "\\ud83d\\ude00"}').request.prompt == ["😀"]


def test_as_deep_as_allowed():
    value: object = 1
    for _ in range(MAX_DEPTH - 2):
        value = [value]
    assert completion(metadata={"a": value[0]}).prompt == ["a"]


def test_many_names_given_twice_are_found_in_one_pass():
    body = b"{" + b",".join(b'"%d":1' % i for i in range(100_000)) + b',"99999":2}'
    assert '"99999" is given twice' in refusal(CompletionRequest, body).message


@pytest.mark.parametrize(
    "content_type",
    [
        None,
        "application/json",
        "application/json; charset=utf-8",
        'APPLICATION/JSON;charset="UTF-8"',
        "application/x+json",
    ],
)
def test_content_types_that_are_json(content_type):
    assert parsed(CompletionRequest, {"prompt": "a"}, content_type=content_type).request.prompt == ["a"]


@pytest.mark.parametrize("content_type", ["", "text/plain", "application/x-www-form-urlencoded", "application/jsonx"])
def test_content_types_that_are_not(content_type):
    with pytest.raises(UnsupportedMediaType, match="application/json"):
        parsed(CompletionRequest, {"prompt": "a"}, content_type=content_type)


@pytest.mark.parametrize("charset", ["latin-1", '"UTF-16"', "utf-7", ""])
def test_other_charsets(charset):
    with pytest.raises(UnsupportedMediaType, match="must be utf-8, got") as caught:
        parsed(CompletionRequest, {"prompt": "a"}, content_type=f"application/json; x=1; Charset={charset}")
    assert charset.strip('"').lower() in caught.value.message


def test_tokenize_takes_one_source():
    assert parsed(TokenizeRequest, {"prompt": ""}).request.prompt == ""
    assert "neither" in refusal(TokenizeRequest, {}).message
    assert "both" in refusal(TokenizeRequest, {"prompt": "a", "messages": [USER]}).message
    assert refusal(TokenizeRequest, {"prompt": "a", "add_generation_prompt": True}).param == "add_generation_prompt"
    assert refusal(TokenizeRequest, {"messages": [{**USER, "rol": 1}]}).param == "messages[0].rol"


def test_detokenize_takes_ids():
    assert refusal(DetokenizeRequest, {"tokens": "a"}).param == "tokens"
    assert refusal(DetokenizeRequest, {"tokens": []}).param == "tokens"
    assert refusal(DetokenizeRequest, {"tokens": [1, "a"]}).param == "tokens[1]"


def names_of(model):
    return sorted(model.known())


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=True)
    | st.text(st.characters(exclude_categories=()), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize("model", [CompletionRequest, ChatRequest, TokenizeRequest, DetokenizeRequest])
@given(data=st.data())
@hypothesis_settings(max_examples=drawn(150))
def test_any_json_is_parsed_or_refused(model, data):
    fields = data.draw(st.dictionaries(st.sampled_from(names_of(model)) | st.text(max_size=4), json_values, max_size=5))
    if data.draw(st.booleans()):
        fields |= {"prompt": "a"} if model is not ChatRequest else {"messages": [USER]}
    try:
        answer = parse(model, json.dumps(fields).encode(), None, SETTINGS)
    except InvalidRequest as error:
        json.dumps(error.body(), ensure_ascii=False).encode()
    else:
        assert isinstance(answer.request, model)


@given(
    body=st.binary(max_size=64) | st.text(alphabet='{}[]",:0123456789.eE+-\\untrfalse ', max_size=64).map(str.encode)
)
@hypothesis_settings(max_examples=drawn(300))
def test_any_bytes_are_parsed_or_refused(body):
    with contextlib.suppress(InvalidRequest):
        parse(CompletionRequest, body, None, SETTINGS)
