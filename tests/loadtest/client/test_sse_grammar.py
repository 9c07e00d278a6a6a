"""Valid streams pass; for each rule of docs/sse.md a stream that breaks only this rule fails, at the event that breaks it."""

import copy
import json
import re
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.client.sse_grammar import EventSplitter, GrammarError, StreamValidator, validate, validate_body

DONE = "data: [DONE]\n\n"
ERROR = {"error": {"message": "gone", "type": "server_error", "param": None, "code": "engine_died"}}
USAGE = {
    "prompt_tokens": 9,
    "completion_tokens": 3,
    "total_tokens": 12,
    "prompt_tokens_details": {"cached_tokens": 8},
}
TIMINGS = {"queue_ms": 0.1, "prefill_ms": 2.0, "decode_ms": 3.5}


def event(chunk):
    return f"data: {json.dumps(chunk)}\n\n"


def chunk(kind, *choices, **extra):
    name = "chat.completion.chunk" if kind == "chat" else "text_completion"
    head = {"id": "r-1", "object": name, "created": 1790000000, "model": "m"}
    return head | {"choices": list(choices)} | extra


def role(index=0, **extra):
    return {"index": index, "delta": {"role": "assistant", "content": ""}, "finish_reason": None, **extra}


def said(kind, text, index=0, **extra):
    body = {"delta": {"content": text}} if kind == "chat" else {"text": text}
    return {"index": index, **body, "finish_reason": None, **extra}


def finish(kind, reason="stop", index=0, **extra):
    body = {"delta": {}} if kind == "chat" else {"text": ""}
    return {"index": index, **body, "finish_reason": reason, **extra}


def stream(kind):
    """The chunks of a plain valid stream. Chat: 0 role, 1 and 2 content, 3 finish. Completions: without the role chunk."""
    start = [chunk(kind, role())] if kind == "chat" else []
    texts = [chunk(kind, said(kind, text)) for text in ("Hel", "lo")]
    return [*start, *texts, chunk(kind, finish(kind), timings=TIMINGS)]


def with_usage(kind):
    return [*(part | {"usage": None} for part in stream(kind)), chunk(kind, usage=USAGE)]


def check(chunks, **options):
    return validate([*map(event, chunks), DONE], **options)


def fails(events, rule, at, **options):
    with pytest.raises(GrammarError, match=rule) as caught:
        validate([one if isinstance(one, str | bytes) else event(one) for one in events], **options)
    assert caught.value.event == at
    return caught.value


both = pytest.mark.parametrize("kind", ["chat", "completion"])


@both
def test_a_plain_stream(kind):
    summary = check(stream(kind), kind=kind)
    assert (summary.kind, summary.id, summary.model, summary.text) == (kind, "r-1", "m", "Hello")
    assert summary.choices[0].finish_reason == "stop"
    assert summary.choices[0].role == ("assistant" if kind == "chat" else None)
    assert (summary.choices[0].chunks, summary.chunks) == (2, len(stream(kind)))
    assert (summary.usage, summary.timings, summary.error) == (None, TIMINGS, None)


@both
def test_usage(kind):
    summary = check(with_usage(kind), include_usage=True)
    assert summary.usage == USAGE


@both
def test_continuous_usage(kind):
    chunks = stream(kind)
    for count, part in enumerate(chunks):
        part["usage"] = {"prompt_tokens": 9, "completion_tokens": min(count, 3), "total_tokens": 9 + min(count, 3)}
    assert check([*chunks, chunk(kind, usage=USAGE)], include_usage=True, continuous_usage=True).usage == USAGE


@both
def test_interleaved_choices(kind):
    roles = [chunk(kind, role(0)), chunk(kind, role(1))] if kind == "chat" else []
    body = [
        chunk(kind, said(kind, "b", 1)),
        chunk(kind, said(kind, "a", 0)),
        chunk(kind, finish(kind, "length", 1)),
        chunk(kind, said(kind, "A", 0)),
        chunk(kind, finish(kind, "stop", 0), timings=TIMINGS),
    ]
    summary = check([*roles, *body], choices=2)
    assert {index: choice.text for index, choice in summary.choices.items()} == {0: "aA", 1: "b"}
    assert summary.choices[1].finish_reason == "length"


@both
def test_an_empty_answer(kind):
    chunks = stream(kind)
    assert check([*chunks[:-3], chunks[-1]]).text == ""


def test_comments_keep_alive():
    events = [": waiting\n\n", *map(event, stream("chat")), ":\n: two\n\n", DONE]
    assert validate(events).comments == 2


@both
@pytest.mark.parametrize("sent", range(5))
def test_an_error_may_end_a_stream_anywhere(kind, sent):
    chunks = stream(kind)[: min(sent, 3)]
    summary = validate([*map(event, chunks), event(ERROR)])
    assert summary.error == ERROR["error"]
    assert summary.chunks == len(chunks) + 1


def test_logprobs_and_token_ids_are_collected():
    entry = {"token": "lo", "logprob": -0.5, "bytes": [108, 111], "top_logprobs": [{"token": "x", "logprob": -2}]}
    chat = stream("chat")
    chat[1]["choices"][0]["token_ids"] = [5]
    chat[2]["choices"][0] |= {"logprobs": {"content": [entry]}, "token_ids": [6, 7]}
    summary = check(chat)
    assert (summary.choices[0].logprob_tokens, summary.choices[0].token_ids) == (["lo"], [5, 6, 7])

    plain = stream("completion")
    plain[0]["choices"][0]["logprobs"] = lists(["Hel"], [0])
    plain[1]["choices"][0]["logprobs"] = lists(["l", "o"], [3, 4])
    assert check(plain).choices[0].logprob_tokens == ["Hel", "l", "o"]


def lists(tokens, offsets):
    many = len(tokens)
    return {"tokens": tokens, "token_logprobs": [-1.0] * many, "top_logprobs": [None] * many, "text_offset": offsets}


def test_a_chunk_without_text_may_carry_tokens():
    chunks = stream("chat")
    chunks.insert(3, chunk("chat", said("chat", "", token_ids=[2])))
    assert check(chunks).choices[0].token_ids == [2]


@both
def test_prompt_tokens_stand_in_the_first_chunk(kind):
    chunks = stream(kind)
    chunks[0]["choices"][0] |= {"prompt_token_ids": [1, 2], "prompt_logprobs": [None, {}]}
    check(chunks)
    chunks[1]["choices"][0]["prompt_token_ids"] = [1]
    fails([*chunks, DONE], "first chunk only", at=1)


def test_other_servers_send_no_timings():
    chunks = stream("chat")
    del chunks[-1]["timings"]
    check(chunks, require_timings=False)
    fails([*chunks, DONE], "timings", at=3)


def test_the_example_of_the_docs():
    page = (Path(__file__).parents[3] / "docs" / "sse.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"## Example\n\n```\n(.*)```", page, re.DOTALL)
    assert validate_body(example.encode(), kind="chat", include_usage=True).text == "Hello"


# --- events ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("data: {}\n", "blank line"),
        ("data: {}\r\n\r\n", "blank line"),
        ("data:{}\n\n", "one line"),
        ("event: x\ndata: {}\n\n", "one line"),
        ("data: {\ndata: }\n\n", "one line"),
        ("{}\n\n", "one line"),
        ("data: \n\n", "JSON"),
        ("data: [1]\n\n", "JSON object"),
        ("data: {'a': 1}\n\n", "JSON or"),
        ('data: {"a": NaN}\n\n', "NaN is not JSON"),
        (b"data: {\xff}\n\n", "UTF-8"),
    ],
)
def test_events_have_one_form(text, rule):
    fails([": first\n\n", text], rule, at=1)


def ids(events, first=1):
    return [f"id: {number}\n{one}" for number, one in enumerate(events, start=first)]


def test_all_events_have_ids_or_none():
    events = [*map(event, stream("chat")), DONE]
    assert (validate(events).last_id, validate([": first\n\n", *ids(events)]).last_id) == (0, 5)
    ended = [*ids(events[:2]), event(ERROR)]  # of the connection, which another has replaced
    assert validate(ended).error and validate(ids([*events[:2], event(ERROR)])).error
    for broken, at in ((ids(events, first=2), 0), ([events[0], *ids(events[1:])], 1), ([*ids(events[:4]), DONE], 4)):
        fails(broken, "ids", at=at)
    for again in ([*ids(events[:2]), *ids(events[1:])], [*ids(events[:2]), *ids(events[3:], first=4)]):
        fails(again, "ids count", at=2)


@both
def test_a_stream_has_exactly_one_terminal_event(kind):
    chunks = stream(kind)
    for more in (DONE, ": late\n\n", chunks[-1]):
        fails([*chunks, DONE, more], "nothing follows", at=len(chunks) + 1)
        fails([chunks[0], ERROR, more], "nothing follows", at=2)
    fails(chunks, "ends without", at=len(chunks))
    fails([], "ends without", at=0)


@both
def test_done_waits_for_every_choice(kind):
    chunks = stream(kind)
    fails([*chunks[:-1], DONE], "every choice has finished", at=len(chunks) - 1)
    del chunks[-1]["timings"]
    fails([*chunks, DONE], "every choice has finished", at=len(chunks), choices=2)


# --- chunks ----------------------------------------------------------------------------------------------------------


def set_key(*path):
    """A change of one chunk: the last of `path` is put where the others lead; None of a key removes it."""

    def change(target):
        *way, key, value = path
        for step in way:
            target = target[step]
        if value is ABSENT:
            del target[key]
        else:
            target[key] = value

    return change


ABSENT = object()
FIRST = ("choices", 0)
BROKEN_CHAT = {
    "no id": (1, set_key("id", ABSENT), "every chunk has"),
    "another id": (2, set_key("id", "r-2"), "all chunks share"),
    "another model": (2, set_key("model", "other"), "all chunks share"),
    "another time": (2, set_key("created", 1790000001), "all chunks share"),
    "another object": (2, set_key("object", "text_completion"), "all chunks share"),
    "unknown object": (0, set_key("object", "chat.completion"), "names the kind"),
    "empty id": (0, set_key("id", ""), "id and model"),
    "fractional time": (0, set_key("created", 1.5), "Unix time"),
    "unknown key": (1, set_key("extra", 1), "unknown keys"),
    "choices missing": (1, set_key("choices", ABSENT), "`choices`"),
    "two choices": (1, set_key("choices", [said("chat", "a"), said("chat", "b")]), "`choices`"),
    "choice no object": (1, set_key("choices", ["x"]), "a choice is an object"),
    "unknown choice key": (1, set_key(*FIRST, "text", "x"), "unknown keys"),
    "no finish_reason": (1, set_key(*FIRST, "finish_reason", ABSENT), "a choice has"),
    "no delta": (1, set_key(*FIRST, "delta", ABSENT), "a choice has"),
    "index too large": (1, set_key(*FIRST, "index", 1), "below 1"),
    "index no number": (1, set_key(*FIRST, "index", True), "below 1"),
    "role with text": (0, set_key(*FIRST, "delta", "content", "x"), "begins with the role chunk"),
    "role without content": (0, set_key(*FIRST, "delta", {"role": "assistant"}), "begins with the role chunk"),
    "other role": (0, set_key(*FIRST, "delta", "role", "user"), "begins with the role chunk"),
    "role finishes": (0, set_key(*FIRST, "finish_reason", "stop"), "carries nothing else"),
    "role with tokens": (0, set_key(*FIRST, "token_ids", [1]), "carries nothing else"),
    "role again": (1, set_key(*FIRST, "delta", "role", "assistant"), "has `content`"),
    "empty delta": (1, set_key(*FIRST, "delta", {}), "has `content`"),
    "null content": (1, set_key(*FIRST, "delta", "content", None), "text is a string"),
    "empty content": (1, set_key(*FIRST, "delta", "content", ""), "without text"),
    "stop_reason early": (1, set_key(*FIRST, "stop_reason", "x"), "stop_reason"),
    "token ids": (1, set_key(*FIRST, "token_ids", [1, "2"]), "whole numbers"),
    "finish with text": (3, set_key(*FIRST, "delta", {"content": "x"}), "empty delta"),
    "finish with tokens": (3, set_key(*FIRST, "token_ids", [1]), "no token ids"),
    "finish with logprobs": (3, set_key(*FIRST, "logprobs", {"content": []}), "no logprobs"),
    "finish for abort": (3, set_key(*FIRST, "finish_reason", "abort"), "finish_reason is one of"),
    "finish for error": (3, set_key(*FIRST, "finish_reason", "error"), "finish_reason is one of"),
    "finish unknown": (3, set_key(*FIRST, "finish_reason", "eos"), "finish_reason is one of"),
    "timings early": (2, set_key("timings", TIMINGS), "only the last finish chunk"),
    "timings missing": (3, set_key("timings", ABSENT), "timings"),
    "timings empty": (3, set_key("timings", {}), "timings"),
    "usage uninvited": (1, set_key("usage", None), "no `usage` key"),
    "logprobs shape": (1, set_key(*FIRST, "logprobs", []), "object or null"),
    "logprobs entries": (1, set_key(*FIRST, "logprobs", {"content": [{"token": "x"}]}), "lists tokens"),
}


@pytest.mark.parametrize("name", BROKEN_CHAT)
def test_broken_chat_chunks(name):
    at, change, rule = BROKEN_CHAT[name]
    chunks = stream("chat")
    change(chunks[at])
    fails([*chunks, DONE], rule, at)


BROKEN_COMPLETION = {
    "delta": (0, set_key(*FIRST, "delta", {}), "unknown keys"),
    "no text": (0, set_key(*FIRST, "text", ABSENT), "a choice has"),
    "null text": (0, set_key(*FIRST, "text", None), "text is a string"),
    "empty text": (0, set_key(*FIRST, "text", ""), "without text"),
    "finish without text": (2, set_key(*FIRST, "text", None), "text is a string"),
    "stop reason early": (1, set_key(*FIRST, "stop_reason", "x"), "stands in the finish chunk"),
    "finish for error": (2, set_key(*FIRST, "finish_reason", "error"), "finish_reason is one of"),
    "uneven logprobs": (1, set_key(*FIRST, "logprobs", lists(["a"], [0, 1])), "equally long"),
    "missing list": (1, set_key(*FIRST, "logprobs", {"tokens": []}), "equally long"),
    "shrinking offset": (1, set_key(*FIRST, "logprobs", lists(["a", "b"], [4, 3])), "text_offset"),
}


@pytest.mark.parametrize("name", BROKEN_COMPLETION)
def test_broken_completion_chunks(name):
    at, change, rule = BROKEN_COMPLETION[name]
    chunks = stream("completion")
    change(chunks[at])
    fails([*chunks, DONE], rule, at)


def test_the_last_text_of_a_completion_may_come_with_its_finish():
    chunks = stream("completion")
    last = chunks[-1]["choices"][0]
    last |= {"text": "!", "logprobs": lists(["!"], [9]), "token_ids": [7], "stop_reason": 7}
    said = validate([*map(event, chunks), DONE]).choices[0]
    assert (
        said.text.endswith("!")
        and said.token_ids == [7]
        and said.logprob_tokens == ["!"]
        and said.chunks == len(chunks)
    )


def test_offsets_grow_over_the_chunks():
    chunks = stream("completion")
    chunks[0]["choices"][0]["logprobs"] = lists(["a"], [4])
    chunks[1]["choices"][0]["logprobs"] = lists(["b"], [3])
    fails([*chunks, DONE], "text_offset", at=1)


@both
def test_the_kind_is_the_one_asked_for(kind):
    other = "completion" if kind == "chat" else "chat"
    fails([*stream(kind), DONE], "names the kind", at=0, kind=other)


@both
def test_nothing_of_a_choice_follows_its_finish(kind):
    chunks = stream(kind)
    last = len(chunks)
    extra = [*chunks, chunk(kind, said(kind, "more"))]
    fails([*extra, DONE], "only the usage chunk may come", at=last)
    del chunks[-1]["timings"]
    fails([*chunks, chunk(kind, said(kind, "more")), DONE], "choice 0 has finished already", at=last, choices=2)
    fails([*chunks, chunk(kind, finish(kind)), DONE], "choice 0 has finished already", at=last, choices=2)


def test_chat_begins_with_a_role():
    fails([*stream("chat")[1:], DONE], "begins with the role chunk", at=0)


# --- usage and errors ------------------------------------------------------------------------------------------------


@both
def test_usage_is_complete_in_place_and_only_on_request(kind):
    chunks = with_usage(kind)
    last = len(chunks) - 1
    options = {"include_usage": True}
    fails([*chunks[:-1], DONE], "a usage chunk before", at=last, **options)
    fails([*stream(kind), DONE], "every chunk has `usage`", at=0, **options)
    fails([*stream(kind), chunks[-1], DONE], "only with include_usage", at=last)
    fails([*chunks, chunks[-1], DONE], "only .DONE. follows", at=last + 1, **options)
    fails([*chunks[:-2], chunks[-1], DONE], "after every choice", at=last - 1, **options)
    fails([*chunks, DONE], "`usage` is an object", at=0, continuous_usage=True, **options)
    fails([chunks[0] | {"usage": USAGE}, DONE], "null before the usage chunk", at=0, **options)
    fails([*chunks[:-1], chunks[-1] | {"timings": TIMINGS}, DONE], "only the last finish chunk", at=last, **options)
    fails([*chunks[:-1], chunk(kind), DONE], "`usage` is an object", at=last, **options)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"total_tokens": 13}, "is the sum"),
        ({"completion_tokens": -1}, "whole number"),
        ({"prompt_tokens": None}, "whole number"),
        ({"prompt_tokens_details": {"cached_tokens": 10}}, "at most prompt_tokens"),
        ({"prompt_tokens_details": {"cached_tokens": "1"}}, "whole number"),
    ],
)
def test_usage_adds_up(change, rule):
    chunks = copy.deepcopy(with_usage("chat"))
    chunks[-1]["usage"] |= change
    fails([*chunks, DONE], rule, at=4, include_usage=True)


def test_counts_never_shrink():
    chunks = stream("completion")
    for count, part in zip((3, 4, 4), chunks, strict=True):
        part["usage"] = {"prompt_tokens": 9, "completion_tokens": count, "total_tokens": 9 + count}
    events = [*chunks, chunk("completion", usage=USAGE), DONE]
    fails(events, "never shrinks", at=3, include_usage=True, continuous_usage=True)


@pytest.mark.parametrize(
    "broken",
    [
        {"error": "text"},
        {"error": {"message": "m", "type": "t", "param": None}},
        {"error": {**ERROR["error"], "status": 500}},
        {"error": {**ERROR["error"], "message": None}},
        {**ERROR, "id": "r-1"},
    ],
)
def test_errors_have_one_form(broken):
    fails([stream("chat")[0], broken], "error|strings", at=1)


# --- bytes -----------------------------------------------------------------------------------------------------------


@given(cuts=st.lists(st.integers(0, 2000), max_size=20))
def test_bytes_may_arrive_in_any_pieces(cuts):
    body = "".join([*map(event, with_usage("chat")), ": äöü\n\n", DONE]).encode()
    edges = [0, *sorted(min(cut, len(body)) for cut in cuts), len(body)]
    splitter, validator = EventSplitter(), StreamValidator(include_usage=True)
    for begin, end in pairwise(edges):
        for one in splitter.push(body[begin:end]):
            validator.feed(one)
    assert splitter.rest == b""
    assert validator.finish() == validate_body(body, include_usage=True)


def test_a_body_that_breaks_off_inside_an_event_fails():
    body = "".join(map(event, stream("chat"))).encode() + DONE.encode()[:-1]
    with pytest.raises(GrammarError, match="blank line"):
        validate_body(body)
