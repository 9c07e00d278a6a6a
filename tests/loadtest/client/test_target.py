"""What a target says of itself before the run: taken if it makes sense, refused in a sentence if not. And asking again after it."""

import asyncio
import json
from contextlib import suppress
from random import Random

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from loadtest.client.streams import StreamedAnswer
from loadtest.client.target import Known, Target, TargetError, meet, request_body
from loadtest.client.verify import differences, sampled, verify
from loadtest.report.records import ErrorClass, RequestRecord
from loadtest.workload.vocabulary import FileTokenizer, PromptTokenizerError, ServerTokenizer, Vocabulary
from tests.drawn import drawn

MODELS = {"data": [{"id": "m", "owned_by": "vllm", "max_model_len": 4096}, {"id": "n"}]}
ANSWER = {"choices": [{"text": "x", "token_ids": [1], "finish_reason": "length"}], "usage": {"prompt_tokens": 9}}
WHOLE = StreamedAnswer(
    texts=[(0.0, "abc", None)], finish_reason="stop", usage={"prompt_tokens": 4, "completion_tokens": 3}
)


@pytest.mark.parametrize(
    ("given", "api", "root"),
    [
        ("http://h:1", "http://h:1/v1", "http://h:1"),
        ("http://h:1/", "http://h:1/v1", "http://h:1"),
        ("http://h:1/v1/", "http://h:1/v1", "http://h:1"),
        ("http://h:1/gate/v1", "http://h:1/gate/v1", "http://h:1/gate"),
    ],
)
def test_v1_may_be_left_out_of_a_target(given, api, root):
    target = Target(base_url=given)
    assert (target.api, target.root, target.url) == (api, root, f"{api}/completions")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def served(models=MODELS, answer=ANSWER, status=200, refused=()):
    """A target as a function; `refused`: fields that it does not take."""

    def handle(request):
        if request.url.path.endswith("/models"):
            return httpx.Response(200, content=models if isinstance(models, bytes) else json.dumps(models))
        if set(json.loads(request.content)) & set(refused):
            return httpx.Response(400, json={"error": "unknown field"})
        return httpx.Response(status, content=answer if isinstance(answer, bytes) else json.dumps(answer))

    return httpx.MockTransport(handle)


def met(transport, **target):
    async def ask():
        async with httpx.AsyncClient(transport=transport) as client:
            return await meet(Target(base_url="http://h/v1", **{"characters_per_token": 4.0} | target), client)

    return asyncio.run(ask())


def test_the_first_model_is_taken_and_the_fields_it_takes():
    known = met(served())
    assert (known.model, known.owner, known.context) == ("m", "vllm", 4096)
    assert (known.ignore_eos, known.token_ids, known.limit_field) == (True, True, "max_tokens")
    assert known.ends_only_by_length and not known.own_grammar
    other = met(served(), model="n")
    assert (other.model, other.owner, other.context, other.ends_only_by_length) == ("n", "unknown", None, False)


@pytest.mark.parametrize(
    ("refused", "ignore_eos", "ids", "limit"),
    [
        (["return_token_ids"], True, False, "max_tokens"),
        (["ignore_eos", "return_token_ids"], False, False, "max_tokens"),
        (["max_tokens"], True, True, "max_completion_tokens"),
        (["max_tokens", "ignore_eos", "return_token_ids"], False, False, "max_completion_tokens"),
    ],
)
def test_fields_that_are_refused_are_not_sent(refused, ignore_eos, ids, limit):
    known = met(served(refused=refused))
    assert (known.ignore_eos, known.token_ids, known.limit_field) == (ignore_eos, ids, limit)


@pytest.mark.parametrize("context", [0, -1, True, "4096", 4096.5, None, [4096]])
def test_a_context_that_is_none_is_unknown(context):
    assert met(served({"data": [{"id": "m", "max_model_len": context}]})).context is None


NO_MODELS = [
    b"<html>",
    [],
    {},
    {"data": None},
    {"data": 5},
    {"data": ["m"]},
    {"data": [{}]},
    {"data": [{"id": []}]},
]


@pytest.mark.parametrize("models", NO_MODELS)
def test_a_list_of_models_that_is_none_is_refused(models):
    with pytest.raises(TargetError, match="lists no models: status 200"):
        met(served(models))


def test_a_model_that_is_not_there_is_refused_with_those_that_are():
    with pytest.raises(TargetError, match="no model 'x' there; it has m, n"):
        met(served(), model="x")
    with pytest.raises(TargetError, match="it has none"):
        met(served({"data": []}))


NO_ANSWER = [
    b"<html>",
    [],
    {},
    {"choices": []},
    {"choices": [5]},
    {"choices": None},
    {"choices": [{"text": 5}]},
]


@pytest.mark.parametrize("answer", NO_ANSWER)
def test_an_answer_to_the_probe_that_is_none_is_refused(answer):
    with pytest.raises(TargetError, match="no answer as OpenAI does"):
        met(served(answer=answer))


@pytest.mark.parametrize("status", [401, 404, 500])
def test_a_refusal_is_shown_with_what_was_asked(status):
    with pytest.raises(TargetError, match=f"refuses .*: status {status}"):
        met(served(status=status))


@settings(max_examples=drawn(40))
@given(JSON, st.booleans())
def test_whatever_a_target_says_it_is_met_or_refused(value, wrapped):
    for transport in (
        served({"data": [value]} if wrapped else value),
        served(answer={"choices": [value]} if wrapped else value),
    ):
        with suppress(TargetError):
            assert isinstance(met(transport).model, str)


@pytest.mark.parametrize("url", ["http://h/v1", "http://h/v1/"])
def test_urls(url):
    target = Target(base_url=url)
    assert (target.root, target.url) == ("http://h", "http://h/v1/completions")
    assert Target(base_url=url, endpoint="chat").url == "http://h/v1/chat/completions"


def test_a_body_has_what_is_known_to_be_taken_and_extras_win():
    known = Known(model="m", owner="x", context=None, vocabulary=Vocabulary.estimated(4), tokenizer=None)
    target = Target(base_url="http://h/v1", extra={"temperature": 1, "top_k": 2})
    assert request_body(target, known, "hi", 3, stream=False) == {
        "model": "m", "prompt": "hi", "max_tokens": 3, "temperature": 1, "top_k": 2,
    }  # fmt: skip
    chat = request_body(Target(base_url="http://h/v1", endpoint="chat"), known, "hi", 3, ids=True)
    assert chat["messages"] == [{"role": "user", "content": "hi"}] and chat["return_token_ids"]
    assert chat["stream_options"] == {"include_usage": True} and "ignore_eos" not in chat


@pytest.mark.parametrize("found", [None, 5, "ab", {"0": 1}, [], ["a"], [1.5]])
def test_a_tokenizer_that_gives_no_ids_is_refused(found):
    async def ask():
        transport = httpx.MockTransport(lambda request: httpx.Response(200, json={"tokens": found}))
        async with httpx.AsyncClient(transport=transport) as client:
            await ServerTokenizer(client, "http://h/tokenize", "m").ids("x")

    with pytest.raises(PromptTokenizerError, match="gives no token ids"):
        asyncio.run(ask())


def test_a_tokenizer_is_asked_in_the_form_it_understood():
    asked = []

    def handle(request):
        asked.append(json.loads(request.content))
        return httpx.Response(200, json={"tokens": [1, 2]}) if "content" in asked[-1] else httpx.Response(400)

    async def ask():
        async with httpx.AsyncClient(transport=httpx.MockTransport(handle)) as client:
            tokenizer = ServerTokenizer(client, "http://h/tokenize", "m")
            return [await tokenizer.ids(text) for text in ("a", "b")]

    assert asyncio.run(ask()) == [[1, 2], [1, 2]]
    assert asked == [{"model": "m", "prompt": "a"}, *({"content": text, "add_special": True} for text in "ab")]


def test_a_tokenizer_file_is_read(tmp_path):
    made = Tokenizer(models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.save(str(tmp_path / "tokenizer.json"))
    assert asyncio.run(FileTokenizer(tmp_path / "tokenizer.json").ids("a b c")) == [0, 1, 2]
    (tmp_path / "broken.json").write_text("{}")
    for name in ("broken.json", "absent.json"):
        with pytest.raises(PromptTokenizerError, match=name):
            FileTokenizer(tmp_path / name)


@pytest.mark.parametrize("characters", [0, -1, float("nan"), float("inf")])
def test_estimates_need_a_positive_number(characters):
    with pytest.raises(ValueError, match="positive and finite"):
        Vocabulary.estimated(characters)


def record(index=0, **more):
    return RequestRecord(index=index, intended=0.0, asked_prompt=4, asked_output=3, **{"finished": 1.0} | more)


@given(st.integers(0, 30), st.integers(0, 40), st.integers(0, 5))
def test_a_sample_holds_complete_answers_only(many, wanted, seed):
    records = [
        record(index, error=ErrorClass.STREAM if Random(index).random() < 0.3 else None) for index in range(many)
    ]
    chosen = sampled(records, wanted, seed)
    whole = [each for each in records if each.ok]
    assert len(chosen) == min(wanted, len(whole)) and all(each.ok for each in chosen)
    assert [each.index for each in chosen] == sorted({each.index for each in chosen})
    assert chosen == sampled(records, wanted, seed)


@given(st.text(max_size=8), st.text(max_size=8))
def test_a_difference_names_the_first_character(one, other):
    answers = [StreamedAnswer(texts=[(0.0, text, None)]) for text in (one, other)]
    found = differences(*answers)
    assert bool(found) == (one != other)
    if found:
        place = int(found[0].split("character ")[1].split(" ")[0])
        assert one[:place] == other[:place] and one[place : place + 1] != other[place : place + 1]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"choices": [{"text": "abc", "finish_reason": "stop"}], "usage": WHOLE.usage}, []),
        (
            {"choices": [{"text": "abd", "finish_reason": "stop"}], "usage": WHOLE.usage},
            ["another text from character 2"],
        ),
        ({"choices": [{"text": "abc", "finish_reason": "length"}], "usage": WHOLE.usage}, ["'length', not 'stop'"]),
        (
            {"choices": [{"text": "abc", "finish_reason": "stop"}]},
            ["prompt_tokens None, not 4", "completion_tokens None"],
        ),
        ({"choices": []}, ["no answer without streaming"]),
        ({"choices": None}, ["no answer without streaming"]),
        ({"choices": [{"message": "abc"}]}, ["no answer without streaming"]),
        ([], ["no answer without streaming"]),
        (5, ["no answer without streaming"]),
    ],
)
def test_asking_again_notes_differences_and_never_fails(body, said):
    asked = record()
    known = Known(model="m", owner="x", context=None, vocabulary=Vocabulary.estimated(4), tokenizer=None)

    async def again():
        async with httpx.AsyncClient(transport=served(answer=body)) as client:
            await verify(client, Target(base_url="http://h/v1"), known, {0: (asked, "hi", WHOLE)}, patience=60)

    asyncio.run(again())
    assert len(asked.violations) == len(said)
    assert all(words in found for words, found in zip(said, asked.violations, strict=True)), asked.violations
