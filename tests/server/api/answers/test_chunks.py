"""What the chunks of a stream say when: the end, the usage so far, the times."""

import pytest

from tests.server.api.answers.test_formats import CHAT, COMPLETIONS, ROUTES, exchange


@pytest.mark.parametrize("tokens_per_step", [1, 3])
@pytest.mark.parametrize("fields", [{}, {"logprobs": 1, "return_token_ids": True}], ids=["text", "tokens"])
def test_a_completion_ends_with_its_last_text_where_that_is_known(tokens_per_step, fields):
    def choices(**more):
        chunks, *_ = exchange(COMPLETIONS, tokens_per_step=tokens_per_step, **fields, **more)
        return [(chunk["choices"][0]["text"], chunk["choices"][0]["finish_reason"]) for chunk in chunks]

    texts = ["a", "b", "c", "d", "e", "f"] if tokens_per_step == 1 else ["abc", "def"]
    by_length = choices(reply="abcdefgh", max_tokens=6)
    assert by_length == [*((text, None) for text in texts[:-1]), (texts[-1], "length")]
    assert choices(reply="abcdefgh", stop_token_ids=[ord("f")], include_stop_str_in_output=True)[-1][1] == "stop"
    assert [text for text, _ in choices(reply="abcdef", max_tokens=6, echo=True)] == ["abc", *texts]
    alone = choices(reply="abcdef")  # the end is a token of its own, without text
    assert alone == [*((text, None) for text in texts), ("", "stop")]


@pytest.mark.parametrize("path", ROUTES)
def test_usage_counts_what_was_sent_so_far(path):
    def counts(**fields):
        options = {"include_usage": True, "continuous_usage_stats": True}
        chunks, summary, _ = exchange(path, reply="abc", stream_options=options, max_tokens=3, **fields)
        assert chunks[-1]["usage"] == summary.usage
        return [chunk["usage"]["completion_tokens"] for chunk in chunks]

    if path == CHAT:
        assert counts() == [0, 1, 2, 3, 3, 3]  # role, three texts, finish, usage
        assert counts(n=2) == [0, 1, 1, 2, 3, 4, 5, 5, 6, 6, 6]
    else:
        assert counts() == [1, 2, 3, 3]
        assert counts(echo=True) == [0, 1, 2, 3, 3]
        assert counts(n=2) == [1, 2, 3, 4, 5, 6, 6]


@pytest.mark.parametrize("path", ROUTES)
def test_an_answer_without_tokens_has_the_time_of_its_prefill(path):
    _, _, answer = exchange(path, max_tokens=0)
    timings = answer["timings"]
    assert timings["prefill_ms"] == pytest.approx(timings["total_ms"] - timings["queue_ms"], abs=0.01)
    assert timings["decode_ms"] == 0 < min(timings["prefill_ms"], timings["prefill_tokens_per_second"])
