"""`/v1/embeddings`: inputs of every kind, both encodings, cutting, prompts, and what is refused."""

import base64
import json
import math
import struct

import pytest

from configs.model.pooling import PoolingRules
from scheduler.types.output_kind import OutputKind
from server.schema.pooling.bodies import EmbeddingAnswer
from server.text.tokenizer import Tokenizer
from tests.server.api.scripted import CONTEXT, Server, pooled_values, run
from tests.tiny_encoders import VOCABULARY, word_pieces

PATH = "/v1/embeddings"
PROMPTS = {"query": "q: ", "passage": "p: ", "clustering": "c: "}
RULES = PoolingRules(kind="mean", prompts=PROMPTS, stated=True)


def ask(body, **server):
    async def call():
        made = Server(**server)
        return made, await made.post(PATH, body)

    made, response = run(call)
    return made, response


def refused(body, status=400, **server):
    _, response = ask(body, **server)
    assert response.status_code == status, response.text
    return response.json()["error"]


@pytest.mark.parametrize(
    ("given", "ids"),
    [
        ("ab", [[97, 98]]),
        (["a", "b"], [[97], [98]]),
        ([1, 2, 3], [[1, 2, 3]]),
        ([[1], [2, 3]], [[1], [2, 3]]),
    ],
)
def test_every_form_of_input(given, ids):
    made, response = ask({"input": given, "model": "small", "user": "me"})
    assert [request.prompt_ids for request in made.process.requests] == ids
    answer = EmbeddingAnswer.model_validate_json(response.content)
    assert [item.index for item in answer.data] == list(range(len(ids)))
    assert [item.embedding for item in answer.data] == [pooled_values(request) for request in made.process.requests]
    assert {request.produces for request in made.process.requests} == {OutputKind.VECTOR}
    assert (answer.model, answer.usage.prompt_tokens, answer.usage.total_tokens) == ("small", *[sum(map(len, ids))] * 2)
    assert answer.id.startswith("embd-") and made.engine.open_count == 0


def test_base64_has_the_same_numbers_in_32_bits():
    _, plain = ask({"input": "abc"})
    _, coded = ask({"input": "abc", "encoding_format": "base64"})
    raw = base64.b64decode(coded.json()["data"][0]["embedding"])
    assert list(struct.unpack("<8f", raw)) == plain.json()["data"][0]["embedding"]


@pytest.mark.parametrize("normalize", [True, False])
def test_fewer_dimensions_are_the_first_ones(normalize):
    rules = PoolingRules(kind="mean", normalize=normalize)
    _, whole = ask({"input": "abcdef"}, pooling=rules)
    _, cut = ask({"input": "abcdef", "dimensions": 5}, pooling=rules)
    kept, found = whole.json()["data"][0]["embedding"][:5], cut.json()["data"][0]["embedding"]
    length = math.hypot(*kept) if normalize else 1
    assert found == pytest.approx([value / length for value in kept])
    assert math.hypot(*found) == pytest.approx(1.0 if normalize else math.hypot(*kept))


def test_a_vector_of_no_length_stays_one():
    _, response = ask({"input": [[7]], "dimensions": 2})
    assert response.json()["data"][0]["embedding"] == [0.0, 0.0]


def test_more_dimensions_than_there_are_are_refused():
    error = refused({"input": "a", "dimensions": 9})
    assert error["param"] == "dimensions" and "at most 8" in error["message"] and "got 9" in error["message"]


LONG = "x" * (CONTEXT + 5)


def test_what_is_too_long_is_refused():
    for given in (LONG, [0] * (CONTEXT + 5)):
        error = refused({"input": given})
        assert error["code"] == "context_length_exceeded" and error["param"] == "input"
        assert f"{CONTEXT}" in error["message"] and f"{CONTEXT + 5}" in error["message"]
    assert refused({"input": ["a", LONG]})["param"] == "input[1]"


@pytest.mark.parametrize(
    ("asked", "kept"),
    [
        ({"truncate": True}, slice(CONTEXT)),
        ({"truncate": "END"}, slice(CONTEXT)),
        ({"truncate": "START"}, slice(-CONTEXT, None)),
        ({"truncate_prompt_tokens": -1}, slice(CONTEXT)),
        ({"truncate_prompt_tokens": 7}, slice(7)),
        ({"truncate_prompt_tokens": 7, "truncate": "START"}, slice(-7, None)),
    ],
)
def test_or_cut_where_that_is_asked_for(asked, kept):
    ids = [place % 250 for place in range(CONTEXT + 40)]
    text = "".join(chr(97 + place % 26) for place in range(CONTEXT + 40))
    made, response = ask({"input": [ids, [1, 2]], **asked})
    assert [request.prompt_ids for request in made.process.requests] == [ids[kept], [1, 2]]
    assert response.json()["usage"]["prompt_tokens"] == len(ids[kept]) + 2
    made, _ = ask({"input": text, **asked})
    assert bytes(made.process.requests[0].prompt_ids).decode() == text[kept]


def test_special_tokens_stay_around_what_is_cut():
    server = {"tokenizer": Tokenizer(word_pieces(), {})}
    made, _ = ask({"input": "the cat sat on a mat", "truncate_prompt_tokens": 5}, **server)
    words = [VOCABULARY[token] for token in made.process.requests[0].prompt_ids]
    assert words == ["[CLS]", "the", "cat", "sat", "[SEP]"]
    made, _ = ask({"input": "the cat", "add_special_tokens": False}, **server)
    assert [VOCABULARY[token] for token in made.process.requests[0].prompt_ids] == ["the", "cat"]
    error = refused({"input": "the cat sat", "truncate_prompt_tokens": 2}, **server)
    assert error["param"] == "truncate_prompt_tokens" and "2 special tokens" in error["message"]


@pytest.mark.parametrize("value", [0, -2, CONTEXT + 1])
def test_lengths_that_mean_nothing_are_refused(value):
    error = refused({"input": "a", "truncate_prompt_tokens": value})
    assert error["param"] == "truncate_prompt_tokens" and str(value) in error["message"]


@pytest.mark.parametrize(
    ("asked", "prompt"),
    [
        ({}, ""),
        ({"input_type": "query"}, "q: "),
        ({"input_type": "search_query"}, "q: "),
        ({"input_type": "document"}, "p: "),
        ({"input_type": "clustering"}, "c: "),
        ({"prompt_name": "passage"}, "p: "),
    ],
)
def test_what_the_model_wants_before_a_text(asked, prompt):
    made, response = ask({"input": ["a", "b"], **asked}, pooling=RULES)
    assert [bytes(request.prompt_ids).decode() for request in made.process.requests] == [f"{prompt}a", f"{prompt}b"]
    assert response.json()["usage"]["prompt_tokens"] == 2 * len(prompt) + 2
    made, _ = ask({"input": [[5]], **asked}, pooling=RULES)
    assert made.process.requests[0].prompt_ids == [5], "ids are taken as they are"


def test_a_models_default_prompt_and_one_without_prompts():
    rules = PoolingRules(kind="mean", prompts=PROMPTS, default_prompt="clustering")
    made, _ = ask({"input": "a"}, pooling=rules)
    assert bytes(made.process.requests[0].prompt_ids) == b"c: a"
    made, _ = ask({"input": "a", "input_type": "query"})
    assert bytes(made.process.requests[0].prompt_ids) == b"a"


@pytest.mark.parametrize(
    ("asked", "param", "words"),
    [
        ({"input_type": "song"}, "input_type", "`clustering`, `document`"),
        ({"prompt_name": "document"}, "prompt_name", "`clustering`, `passage`, `query`"),
        ({"prompt_name": "query", "input_type": "query"}, "input_type", "exclude each other"),
    ],
)
def test_prompts_that_it_does_not_have_are_refused(asked, param, words):
    error = refused({"input": "a", **asked}, pooling=RULES)
    assert error["param"] == param and words in error["message"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": []}, "input"),
        ({"input": ""}, "input"),
        ({"input": [258]}, "input[0]"),
        ({"input": "a", "truncate": "MIDDLE"}, "truncate"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format"),
        ({"input": "a", "messages": []}, "messages"),
        ({"input": ["a"] * 3}, "input"),
        ({"input": "a", "priority": 1}, "priority"),
    ],
)
def test_what_is_wrong_is_refused_by_name(body, param):
    assert refused(body, max_inputs=2, scheduling="fcfs")["param"] == param


def test_a_model_that_generates_makes_no_vectors():
    error = refused({"input": "a"}, 404, produces=[OutputKind.TOKENS])
    assert (error["code"], error["param"]) == ("task_not_served", "model")
    assert "`small` is served for the task `generate`; this endpoint needs `embed`" in error["message"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "a"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}),
    ],
)
def test_and_one_for_vectors_makes_no_text(path, body):
    async def call():
        return await Server(produces=[OutputKind.VECTOR], template=None).post(path, body)

    response = run(call)
    assert response.status_code == 404 and response.json()["error"]["code"] == "task_not_served"
    assert "task `embed`; this endpoint needs `generate`" in response.json()["error"]["message"]


def test_the_priority_of_a_request_reaches_the_engine():
    made, _ = ask({"input": "a", "priority": 3}, priority_scope="all")
    assert made.process.requests[0].priority == 3


def test_a_large_answer_is_written_as_a_small_one(monkeypatch):
    monkeypatch.setattr("server.api.answers.answer.INLINE_NUMBERS", 0)
    _, response = ask({"input": ["a", "b"]})
    assert len(EmbeddingAnswer.model_validate(json.loads(response.content)).data) == 2
