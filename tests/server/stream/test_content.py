"""Texts for the log and for traces: the beginning of each, made of no more tokens than that takes."""

from types import SimpleNamespace

from server.stream import content
from server.stream.content import content_of
from server.stream.job import Job, TokenizedPrompt
from server.telemetry.lifetime import Exchange, Lifetime


def test_of_long_texts_only_the_beginning_is_made(monkeypatch):
    made = []
    monkeypatch.setattr(content, "text_of_tokens", lambda tokenizer, ids: made.append(len(ids)) or "ab" * len(ids))
    prompts = [TokenizedPrompt([1] * 100_000, None, "prompt"), TokenizedPrompt([1], "x" * 100_000, "prompt")]
    job = Job(id="a", created=0, model="m", sequences=[SimpleNamespace(prompt=each) for each in prompts])
    lifetime = Lifetime(received=0.0, output_ids=[1] * 100_000)
    texts = content_of(job, Exchange(request_id="r", received=0.0, lifetimes=[lifetime]), None)()
    assert {name: [len(text) for text in each] for name, each in texts.items()} == {
        "prompts": [16_384, 16_384],
        "answers": [16_384],
    }
    assert made == [16_384, 16_384]
