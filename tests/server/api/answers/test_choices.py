"""Which candidates become choices, and what an answer says of them beside their text."""

import json

import pytest

from scheduler.types.step import TokenLogprobs
from server.schema.answers import CompletionAnswer
from tests.server.api import scripted
from tests.server.api.answers.test_formats import CHAT, COMPLETIONS, ROUTES, exchange
from tests.server.api.scripted import END, Server, run


def test_of_several_candidates_the_likeliest_are_answered_and_all_are_counted(monkeypatch):
    """Their log probabilities per token are -3, -1, -4, -2 for the first prompt; the second's are in the opposite order."""
    texts = ["cccccc", "a", "ddd", "bb", "bb", "ddd", "a", "cccccc"]
    monkeypatch.setattr(
        scripted, "entry", lambda token, most: TokenLogprobs(token_id=token, logprob=96.0 - token, rank=1, top=[])
    )

    async def ask(**fields):
        server = Server(lambda request: texts[int(request.request_id.rpartition("-")[2])].encode())
        body = {"prompt": ["x", "yz"], "max_tokens": 9, "best_of": 4, **fields}
        answer = await server.post(COMPLETIONS, body)
        CompletionAnswer.model_validate_json(answer.content)
        return answer.json()

    answer = run(lambda: ask(n=2))
    assert [(each["index"], each["text"]) for each in answer["choices"]] == [(0, "a"), (1, "bb"), (2, "a"), (3, "bb")]
    assert all(each["logprobs"] is None for each in answer["choices"])
    assert (answer["usage"]["prompt_tokens"], answer["usage"]["completion_tokens"]) == (3, 24)
    echoed = run(lambda: ask(n=1, logprobs=0, echo=True))
    assert [each["text"] for each in echoed["choices"]] == ["xa", "yza"]
    assert [each["logprobs"]["token_logprobs"][-1] for each in echoed["choices"]] == [-1.0, -1.0]
    assert [each["text"] for each in run(lambda: ask(n=4))["choices"]] == texts  # nothing to choose


@pytest.mark.parametrize("path", ROUTES)
def test_tokens_of_logprobs_are_named_by_their_ids_where_asked_for(path):
    asked = {"logprobs": 2} if path == COMPLETIONS else {"logprobs": True, "top_logprobs": 2}
    chunks, _, answer = exchange(path, reply="ab", return_tokens_as_token_ids=True, **asked)
    (choice,) = answer["choices"]
    if path == COMPLETIONS:
        assert choice["logprobs"]["tokens"] == ["token_id:97", "token_id:98", f"token_id:{END}"]
        assert set(choice["logprobs"]["top_logprobs"][0]) == {"token_id:98", "token_id:97"}
    else:
        first = choice["logprobs"]["content"][0]
        assert (first["token"], first["bytes"]) == ("token_id:97", [97])
        assert [each["token"] for each in first["top_logprobs"]] == ["token_id:98", "token_id:97"]
    assert "token_id:97" in json.dumps(chunks)


def test_usage_says_that_nothing_was_reasoned_or_predicted():
    _, _, answer = exchange(CHAT, prediction={"type": "content", "content": "Hello"})
    details = answer["usage"]["completion_tokens_details"]
    assert details == {"reasoning_tokens": 0, "accepted_prediction_tokens": 0, "rejected_prediction_tokens": 0}
