"""`/v1/rerank` and `/v1/score`, by a cross-encoder and by similarity."""

import pytest

from configs.model.pooling import PoolingRules
from scheduler.types.output_kind import OutputKind
from server.api.pooling.scores import cosine
from server.schema.pooling.bodies import RerankAnswer, ScoreAnswer
from server.text.tokenizer import Tokenizer
from tests.server.api.scripted import CONTEXT, Server, pooled_values, run
from tests.tiny_encoders import VOCABULARY, word_pieces

CROSS, SIMILAR = [OutputKind.SCORES], [OutputKind.VECTOR]
DOCUMENTS = ["the cat", "the cat sat on a mat", "a dog sat"]


def ask(path, body, **server):
    async def call():
        made = Server(**server)
        return made, await made.post(path, body)

    return run(call)


def words(request):
    return " ".join(VOCABULARY[token] for token in request.prompt_ids)


@pytest.mark.parametrize("path", ["/v1/rerank", "/rerank", "/v2/rerank"])
def test_a_cross_encoder_reads_query_and_document_together(path):
    made, response = ask(
        path, {"query": "where", "documents": DOCUMENTS}, produces=CROSS, tokenizer=Tokenizer(word_pieces(), {})
    )
    assert [words(request) for request in made.process.requests] == [
        f"[CLS] where [SEP] {document} [SEP]" for document in DOCUMENTS
    ]
    assert {request.pair_start for request in made.process.requests} == {3}
    answer = RerankAnswer.model_validate_json(response.content)
    assert [(each.index, each.relevance_score) for each in answer.results] == [(1, 0.10), (2, 0.07), (0, 0.06)]
    assert [each.document.text for each in answer.results] == [DOCUMENTS[1], DOCUMENTS[2], DOCUMENTS[0]]
    assert answer.usage.total_tokens == answer.usage.prompt_tokens == 23


def test_an_embedding_model_ranks_by_the_cosine_with_its_own_prompts():
    rules = PoolingRules(kind="mean", prompts={"query": "q:", "document": "d:"})
    body = {"query": "ab", "documents": ["zz", {"text": "ab"}, "ac"], "top_n": 2, "return_documents": False}
    made, response = ask("/v1/rerank", body, produces=SIMILAR, pooling=rules)
    texts = [bytes(request.prompt_ids).decode() for request in made.process.requests]
    assert texts == ["q:ab", "d:zz", "d:ab", "d:ac"]
    query, *documents = map(pooled_values, made.process.requests)
    scores = {index: cosine(query, vector) for index, vector in enumerate(documents)}
    best = sorted(scores, key=scores.get, reverse=True)[:2]
    results = response.json()["results"]
    assert [each["index"] for each in results] == best and all(each["document"] is None for each in results)
    assert [each["relevance_score"] for each in results] == [scores[index] for index in best]


@pytest.mark.parametrize(
    ("first", "second", "pairs"),
    [
        ("a", "b", [("a", "b")]),
        ("a", ["b", "c"], [("a", "b"), ("a", "c")]),
        (["a", "b"], ["c", "d"], [("a", "c"), ("b", "d")]),
    ],
)
def test_scores_of_one_with_many_and_of_many_with_as_many(first, second, pairs):
    server = {"tokenizer": Tokenizer(word_pieces(), {})}
    made, response = ask("/v1/score", {"text_1": first, "text_2": second}, produces=CROSS, **server)
    assert [words(request) for request in made.process.requests] == [f"[CLS] {a} [SEP] {b} [SEP]" for a, b in pairs]
    assert [each.score for each in ScoreAnswer.model_validate_json(response.content).data] == [0.05] * len(pairs)
    made, response = ask("/score", {"text_1": first, "text_2": second}, produces=SIMILAR, **server)
    vectors = {words(request): pooled_values(request) for request in made.process.requests}
    want = [cosine(vectors[f"[CLS] {a} [SEP]"], vectors[f"[CLS] {b} [SEP]"]) for a, b in pairs]
    assert [each["score"] for each in response.json()["data"]] == pytest.approx(want)


def test_a_pair_that_is_too_long_is_cut_where_that_is_asked_for():
    server = {"tokenizer": Tokenizer(word_pieces(), {}), "produces": CROSS}
    body = {"query": "the cat", "documents": ["dog", "dog " * CONTEXT]}
    _, response = ask("/v1/rerank", body, **server)
    error = response.json()["error"]
    assert response.status_code == 400 and error["param"] == "documents[1]" and f"{CONTEXT}" in error["message"]
    made, _ = ask("/v1/rerank", {**body, "truncate": True}, **server)
    assert [len(request.prompt_ids) for request in made.process.requests] == [6, CONTEXT]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/score", {"text_1": ["a", "b"], "text_2": ["c"]}, "text_1"),
        ("/v1/score", {"text_1": "a", "text_2": []}, "text_2"),
        ("/v1/rerank", {"query": "a", "documents": []}, "documents"),
        ("/v1/rerank", {"query": "a", "documents": ["b", {"title": "c"}]}, "documents[1]"),
        ("/v1/rerank", {"query": "a", "documents": ["b"], "top_n": 0}, "top_n"),
        ("/v1/rerank", {"query": "a", "documents": ["b"], "rank_fields": ["title"]}, "rank_fields"),
        ("/v1/rerank", {"query": "a", "documents": ["b"] * 5}, "documents"),
    ],
)
def test_what_is_wrong_is_refused_by_name(path, body, param):
    _, response = ask(path, body, max_inputs=4)
    assert response.status_code == 400 and response.json()["error"]["param"] == param


def test_a_model_that_generates_gives_no_scores():
    _, response = ask("/v1/rerank", {"query": "a", "documents": ["b"]}, produces=[OutputKind.TOKENS])
    assert response.status_code == 404
    assert "task `generate`; this endpoint needs `rerank` or `embed`" in response.json()["error"]["message"]


def test_the_cosine_of_nothing_is_nothing():
    assert cosine([0.0, 0.0], [1.0, 2.0]) == 0.0
    assert cosine([3.0, 4.0], [3.0, 4.0]) == pytest.approx(1.0)
