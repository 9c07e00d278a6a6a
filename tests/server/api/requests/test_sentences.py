"""What a refusal says, word for word."""

import json

import pytest

from configs.settings import Settings
from server.api.requests.parse import parse
from server.errors import InvalidRequest
from server.schema.chat import ChatRequest
from server.schema.completions import CompletionRequest

USER = {"role": "user", "content": "hi"}


@pytest.mark.parametrize(
    ("model", "body", "said"),
    [
        (ChatRequest, {"prompt": "a"}, "`prompt` is not a field of this request; POST /v1/completions takes it"),
        (CompletionRequest, {"messages": [USER]}, "; POST /v1/chat/completions takes it"),
        (ChatRequest, {"messages": []}, "must have at least 1 entry, got an array of 0"),
        (ChatRequest, {"messages": [USER], "documents": [{}]}, "; only [] is accepted"),
    ],
)
def test_refusals_say_in_plain_words_what_to_do(model, body, said):
    with pytest.raises(InvalidRequest) as caught:
        parse(model, json.dumps(body).encode(), "application/json", Settings())
    assert caught.value.message.endswith(said)
