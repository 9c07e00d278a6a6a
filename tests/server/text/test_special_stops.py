"""A stop string that spells a special token stops at it, alone or beside text, whether special tokens are shown or not."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.types.messages import FinishReason
from server.text.detokenizer import Detokenizer
from tests.drawn import drawn
from tests.server.api.scripted import END, START, Server, run
from tests.server.text.test_detokenizer import split

PAD, OPEN, CLOSE = 0, 1, 2  # <|endoftext|>, <|im_start|>, <|im_end|>
SPELLED = {PAD: "<|endoftext|>", OPEN: "<|im_start|>", CLOSE: "<|im_end|>"}


def oracle(pieces, stops, min_tokens, include, skip, hide_last):
    """For each stop string the text with what it spells, and where it ends there: token by token, character by character.

    `pieces`: text and id of each token. What is expected of text, stop string, tokens consumed and tokens released.
    """
    unseen = [
        (skip and token in SPELLED) or (hide_last and i == len(pieces) - 1) for i, (_, token) in enumerate(pieces)
    ]
    found = []
    for stop in stops:
        stream = [
            (char, i, j)
            for i, (text, token) in enumerate(pieces)
            if not unseen[i] or (token in SPELLED and text in stop)
            for j, char in enumerate(text)
        ]
        whole = "".join(char for char, _, _ in stream)
        for at in range(len(whole)):
            if whole.startswith(stop, at):
                _, i, j = stream[at + len(stop) - 1]
                if i + 1 >= min_tokens:
                    found.append(((i, j), -len(stop), stop, stream[at][1:]))
    if not found:
        return (
            "".join(text for hid, (text, _) in zip(unseen, pieces, strict=True) if not hid),
            None,
            len(pieces),
            len(pieces),
        )
    (last, _), _, stop, (first, cut) = min(found)
    text = "".join(text for hid, (text, _) in zip(unseen[:first], pieces[:first], strict=True) if not hid)
    cut = 0 if unseen[first] else cut
    text += pieces[first][0][:cut]
    released = last + 1 if include else first + (cut > 0)
    return text + stop if include else text, stop, last + 1, released


texts = st.sampled_from(["a", "b", "ab", "<|", "im", "_end|>", "<|im_end|>"])
sequences = st.lists(st.one_of(texts, st.sampled_from(list(SPELLED))), max_size=12)
fragments = st.sampled_from(["a", "b", "ab", *SPELLED.values(), "<|im", "|>", "end|>a"])
strings = st.lists(fragments, min_size=1, max_size=3).map("".join)


@given(
    data=st.data(),
    sequence=sequences,
    stops=st.lists(strings, max_size=3),
    cuts=st.lists(st.integers(0, 30), max_size=6),
)
@settings(max_examples=drawn(150))
def test_against_the_oracle(smollm, data, sequence, stops, cuts):
    ids = [token for item in sequence for token in ([item] if isinstance(item, int) else plain(smollm, item))]
    pieces = [(smollm.token_text(token), token) for token in ids]
    min_tokens = data.draw(st.integers(0, len(ids) + 1))
    include, skip = data.draw(st.booleans()), data.draw(st.booleans())
    hide_last = bool(ids) and not include and data.draw(st.booleans())
    detokenizer = Detokenizer(smollm, stop=stops, min_tokens=min_tokens, include_stop=include, skip_special_tokens=skip)
    shown = ids[:-1] if hide_last else ids
    text = "".join(detokenizer.push(part) for part in split(shown, cuts))
    text += detokenizer.finish(ids[-1] if hide_last else None)
    assert (text, detokenizer.stopped, detokenizer.consumed, detokenizer.released) == oracle(
        pieces, stops, min_tokens, include, skip, hide_last
    )
    assert len(detokenizer.offsets) == detokenizer.consumed


def plain(smollm, text):
    """The text without special tokens: `<|im_end|>` in pieces."""
    return [token for part in (text[:2], text[2:]) if part for token in smollm.encode(part)]


def reply(*pieces):
    """Tokens of a server whose tokens are bytes, beside the two special ones."""
    return [token for piece in pieces for token in ([piece] if isinstance(piece, int) else piece.encode())]


CASES = {
    "alone": ([*reply("ab", START, "cd")], ["<|im_start|>"], "ab", "<|im_start|>", 3),
    "text before": ([*reply("ab", START, "cd")], ["b<|im_start|>"], "a", "b<|im_start|>", 3),
    "text behind": ([*reply("ab", START, "cd")], ["<|im_start|>c"], "ab", "<|im_start|>c", 4),
    "both sides": ([*reply("ab", START, "cd")], ["b<|im_start|>cd"], "a", "b<|im_start|>cd", 5),
    "two": ([*reply("ab", START, START, "cd")], ["<|im_start|><|im_start|>"], "ab", "<|im_start|><|im_start|>", 4),
    "first": ([*reply(START, "cd")], ["<|im_start|>"], "", "<|im_start|>", 1),
    "a prefix of another": ([*reply("ab", START, "cd")], ["<|im_start|>cd", "<|im_start|>"], "ab", "<|im_start|>", 3),
    "the longer at once": ([*reply("ab", START, "cd")], ["<|im_start|>", "b<|im_start|>"], "a", "b<|im_start|>", 3),
    "text first": ([*reply("ab", START, "cd")], ["b", "<|im_start|>"], "a", "b", 2),
    "spelled in text": ([*reply("ab<|im_start|>cd")], ["<|im_start|>"], "ab", "<|im_start|>", 14),
    "the model's end": ([*reply("ab", END)], ["<|im_end|>"], "ab", "<|im_end|>", 3),
    "before the model's end": ([*reply("ab", END)], ["b<|im_end|>"], "a", "b<|im_end|>", 3),
    "beginning only": ([*reply("ab", END)], ["<|im_end|>x", "b<|im_start|>"], "ab", None, 3),
    "across": ([*reply("ab", START, "cd", END)], ["bc"], "abcd", None, 6),
}


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("include", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_over_http_streamed_or_not(name, include, skip):
    tokens, stop, text, reason, count = CASES[name]
    if name == "across":  # what is not shown does not part the text, and what is shown does
        text, reason, count = ("a", "bc", 4) if skip else ("ab<|im_start|>cd", None, 6)
    if include:
        ended = "<|im_end|>" if tokens[-1] == END and reason is None and not skip else ""
        text += reason or ended

    async def ask():
        server = Server(lambda request: tokens)
        body = {"prompt": "x", "stop": stop, "include_stop_str_in_output": include, "skip_special_tokens": skip}
        body |= {"max_tokens": 50, "stream_options": {"include_usage": True}}
        whole = (await server.post("/v1/completions", {k: v for k, v in body.items() if k != "stream_options"})).json()
        streamed = await server.post("/v1/completions", {**body, "stream": True})
        return whole, streamed.text

    whole, streamed = run(ask)
    choice = whole["choices"][0]
    assert (choice["text"], choice["stop_reason"], choice["finish_reason"]) == (text, reason, FinishReason.STOP)
    assert whole["usage"]["completion_tokens"] == count
    events = [json.loads(line[6:]) for line in streamed.splitlines() if line.startswith("data: {")]
    choices = [event["choices"][0] for event in events if event["choices"]]
    assert "".join(each["text"] for each in choices) == text
    assert choices[-1]["stop_reason"] == reason and choices[-1]["finish_reason"] == "stop"
    assert events[-1]["usage"]["completion_tokens"] == count


def test_tokens_and_logprobs_of_a_special_stop_are_not_part_of_the_answer():
    async def ask():
        server = Server(lambda request: reply("ab", START, "cd"))
        body = {"prompt": "x", "stop": "<|im_start|>", "logprobs": 0, "return_token_ids": True}
        first = await server.post("/v1/completions", body)
        return first, await server.post("/v1/completions", {**body, "include_stop_str_in_output": True})

    without, included = (answer.json()["choices"][0] for answer in run(ask))
    assert without["token_ids"] == [*b"ab"] and without["logprobs"]["text_offset"] == [0, 1]
    assert included["token_ids"] == [*b"ab", START] and included["logprobs"]["text_offset"] == [0, 1, 2]


def test_nothing_is_held_back_for_a_token_that_is_not_shown(smollm):
    """The text before a special token waits no longer than the stop string may still come."""
    detokenizer = Detokenizer(smollm, stop=["b<|im_end|>"])
    a, b = (smollm.encode(char)[0] for char in "ab")
    assert [detokenizer.push([token]) for token in (a, b, OPEN, b, a)] == ["a", "", "", "b", "ba"]
    assert [detokenizer.push([token]) for token in (CLOSE, b, CLOSE)] == ["", "", ""]
    assert detokenizer.stopped == "b<|im_end|>"
