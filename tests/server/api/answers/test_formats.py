"""Answers over HTTP: every stream keeps the grammar, and the answer without `stream` is the stream added up."""

import itertools
import json
import re
import threading

import httpx
import pytest

from loadtest.client.sse_grammar import EventSplitter, validate_body
from scheduler.types.step import TokenLogprobs
from server.api import completions
from server.schema.answers import ChatAnswer, CompletionAnswer, DetokenizeAnswer, ModelList, TokenizeAnswer
from tests.server.api import scripted
from tests.server.api.scripted import CONTEXT, END, START, Server, ready_event, run

USER = {"role": "user", "content": "hi"}
ROUTES = {"/v1/completions": {"prompt": "abc"}, "/v1/chat/completions": {"messages": [USER]}}
KIND = {"/v1/completions": "completion", "/v1/chat/completions": "chat"}
ANSWER = {"/v1/completions": CompletionAnswer, "/v1/chat/completions": ChatAnswer}
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


def exchange(path, reply="Hello, wörld! 😀", tokens_per_step=1, bos=False, **fields):
    """The same request streamed and not: (chunks, summary, answer)."""

    async def both():
        server = Server(reply, bos=bos)
        server.process.per_step = tokens_per_step
        body = {**ROUTES[path], "max_tokens": 64, "seed": 1, **fields}
        streamed = await server.post(path, {**body, "stream": True})
        body.pop("stream_options", None)
        whole = await server.post(path, body)
        assert streamed.status_code == whole.status_code == 200, (streamed.text, whole.text)
        assert server.engine.open_count == 0
        return streamed, whole

    streamed, whole = run(both)
    assert streamed.headers["content-type"].startswith("text/event-stream")
    options = fields.get("stream_options", {})
    prompts = body_prompts(fields.get("prompt", "abc")) if path == COMPLETIONS else 1
    summary = validate_body(
        streamed.content,
        kind=KIND[path],
        choices=prompts * fields.get("n", 1),
        include_usage=options.get("include_usage", False),
        continuous_usage=options.get("continuous_usage_stats", False),
    )
    ANSWER[path].model_validate_json(whole.content)
    return chunks_of(streamed.content), summary, whole.json()


def body_prompts(prompt):
    return 1 if isinstance(prompt, str) or isinstance(prompt[0], int) else len(prompt)


def chunks_of(content):
    events = EventSplitter().push(content)
    return [json.loads(e.removeprefix(b"data: ")) for e in events if e.startswith(b"data: {")]


def text_of(choice):
    return choice["message"]["content"] if "message" in choice else choice["text"]


def added_up(chunks, path):
    """The choices of a stream as the answer without `stream` has them."""
    choices = {}
    for chunk in chunks:
        for choice in chunk["choices"]:
            whole = choices.setdefault(choice["index"], {"index": choice["index"], "logprobs": None, "text": ""})
            whole["text"] += choice["delta"].get("content", "") if path == CHAT else choice["text"]
            for key in ("finish_reason", "stop_reason"):
                whole[key] = choice.get(key)
            for key in ("prompt_token_ids", "prompt_logprobs"):
                if key in choice:
                    whole[key] = choice[key]
            if "token_ids" in choice:
                whole["token_ids"] = whole.get("token_ids", []) + choice["token_ids"]
            for key, values in (choice.get("logprobs") or {}).items():
                if whole["logprobs"] is None:
                    whole["logprobs"] = {}
                whole["logprobs"][key] = None if values is None else whole["logprobs"].get(key, []) + values
    return [choices[index] for index in sorted(choices)]


def as_added_up(choice):
    """A choice of an answer; lists without a token are what a stream does not send."""
    choice = {key: value for key, value in choice.items() if (key, value) != ("token_ids", [])}
    if not any((choice["logprobs"] or {}).values()):
        choice["logprobs"] = None
    message = choice.pop("message", None)
    return choice | ({} if message is None else {"text": message["content"]})


OPTIONS = [
    {},
    {"n": 3},
    {"stop": ["wör"]},
    {"stop": ["zzz", "d! 😀x"]},
    {"stop": ["wör"], "include_stop_str_in_output": True},
    {"stop": "o, w", "min_tokens": 12},
    {"max_tokens": 9},  # within the ö
    {"max_tokens": 1},
    {"max_tokens": 0},
    {"return_token_ids": True},
    {"return_token_ids": True, "n": 2, "stop": ["wör"]},
    {"prompt_logprobs": 2},
    {"prompt_logprobs": 0, "stop": "H", "return_token_ids": True},
    {"prompt_logprobs": 1, "max_tokens": 0},
    {"stop_token_ids": [ord("l")]},
    {"stop_token_ids": [ord("l")], "include_stop_str_in_output": True},
    {"ignore_eos": True, "skip_special_tokens": False},
    {"stream_options": {"include_usage": True}},
    {"stream_options": {"include_usage": True, "continuous_usage_stats": True}, "n": 2},
    {"stream_options": {"include_obfuscation": False}},
]
LOGPROBS = {
    CHAT: [{"logprobs": True}, {"logprobs": True, "top_logprobs": 3}],
    COMPLETIONS: [{"logprobs": 0}, {"logprobs": 3}],
}
MORE = [
    {"echo": True},
    {"echo": True, "max_tokens": 0},
    {"echo": True, "logprobs": 2},
    {"echo": True, "logprobs": 2, "max_tokens": 0},
    {"echo": True, "logprobs": 1, "prompt_logprobs": 3, "return_token_ids": True},
    {"echo": True, "logprobs": 1, "prompt": ["ab", "cdé"], "n": 2},
    {"echo": True, "prompt": [START, 97, END]},
    {"prompt": [[97], [98, 99]]},
]
CASES = [
    *itertools.product(ROUTES, OPTIONS),
    *(
        (path, {**with_logprobs, **options})
        for path in ROUTES
        for with_logprobs in LOGPROBS[path]
        for options in OPTIONS
    ),
    *((COMPLETIONS, options) for options in MORE),
]


def stepwise():
    """Each case with one token a step and with three, of which `make test` runs one, each in turn."""
    for number, (path, options) in enumerate(CASES):
        usual = (1, 3)[(number + number // len(OPTIONS)) % 2]
        for tokens in (1, 3):
            marks = () if tokens == usual else pytest.mark.long
            yield pytest.param(path, options, tokens, marks=marks, id=f"{number}-{tokens}")


@pytest.mark.parametrize(("path", "options", "tokens_per_step"), [*stepwise()])
def test_the_answer_is_the_stream_added_up(path, options, tokens_per_step):
    chunks, summary, answer = exchange(path, tokens_per_step=tokens_per_step, **options)
    assert [as_added_up(choice) for choice in answer["choices"]] == added_up(chunks, path)
    if summary.usage is not None:
        assert summary.usage == answer["usage"]
    for choice in answer["choices"]:
        check_choice(choice, options)


def check_choice(choice, options):
    if "token_ids" in choice and options.get("stop") is None:
        assert len(choice["token_ids"]) == len(tokens_of(choice, options) or choice["token_ids"])
    if isinstance(choice["logprobs"], dict) and "text_offset" in choice["logprobs"]:
        lists = choice["logprobs"]
        assert len({len(entries) for entries in lists.values()}) == 1


def tokens_of(choice, options):
    logprobs = choice["logprobs"]
    if logprobs is None or options.get("echo"):
        return None
    return logprobs["tokens"] if "tokens" in logprobs else logprobs["content"]


@pytest.mark.parametrize("path", ROUTES)
def test_what_an_answer_says(path):
    chunks, summary, answer = exchange(path, stream_options={"include_usage": True}, model="org/small")
    assert text_of(answer["choices"][0]) == summary.text == "Hello, wörld! 😀"
    tokens = len("Hello, wörld! 😀".encode()) + 1
    prompt = answer["usage"]["prompt_tokens"]
    assert answer["usage"] == {
        "prompt_tokens": prompt,
        "completion_tokens": tokens,
        "total_tokens": prompt + tokens,
        "prompt_tokens_details": {"cached_tokens": prompt // 2},
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }
    assert answer["model"] == summary.model == "org/small"
    assert answer["system_fingerprint"] == chunks[0]["system_fingerprint"]
    assert answer["id"].startswith("chatcmpl-" if path == CHAT else "cmpl-")
    assert {"queue_ms", "prefill_ms", "decode_ms", "total_ms"} <= answer["timings"].keys()


def finishes(**fields):
    _, _, answer = exchange(COMPLETIONS, **fields)
    choice = answer["choices"][0]
    return choice["text"], choice["finish_reason"], choice["stop_reason"], answer["usage"]["completion_tokens"]


def test_ends():
    assert finishes(reply="abc") == ("abc", "stop", None, 4)
    assert finishes(reply="abc", max_tokens=2) == ("ab", "length", None, 2)
    assert finishes(reply="abc", max_tokens=0) == ("", "length", None, 0)
    assert finishes(reply="abcdef", stop=["d", "cd"]) == ("ab", "stop", "cd", 4)
    assert finishes(reply="abcdef", stop="cd", include_stop_str_in_output=True) == ("abcd", "stop", "cd", 4)
    assert finishes(reply="abcdef", stop_token_ids=[99]) == ("ab", "stop", 99, 3)
    assert finishes(reply="abcdef", stop_token_ids=[99], include_stop_str_in_output=True) == ("abc", "stop", 99, 3)
    assert finishes(reply="abcdef", stop="cd", tokens_per_step=6) == ("ab", "stop", "cd", 4)
    assert finishes(reply="ab", ignore_eos=True, skip_special_tokens=False) == ("ab<|im_end|>", "length", None, 3)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("n", [1, 2])
def test_a_stop_string_within_the_last_token_is_a_stop_in_answer_and_metric(stream, n):
    async def stop():
        server = Server("abcdef")
        body = {"prompt": "x", "stop": "cd", "max_tokens": 4, "n": n, "stream": stream}
        answer = await server.post(COMPLETIONS, body)
        return answer, (await server.client.get("/metrics")).text

    answer, metrics = run(stop)
    choices = validate_body(answer.content, choices=n).choices.values() if stream else None
    reasons = [c.finish_reason for c in choices] if choices else [c["finish_reason"] for c in answer.json()["choices"]]
    assert reasons == ["stop"] * n
    assert f'headrace_sequences_finished_total{{reason="stop"}} {n}.0' in metrics
    assert 'headrace_sequences_finished_total{reason="length"} 0.0' in metrics


@pytest.mark.parametrize("value", [float("-inf"), float("nan"), -1e30])
@pytest.mark.parametrize("path", ROUTES)
def test_log_probabilities_are_always_numbers(path, value, monkeypatch):
    def impossible(token, most):
        return TokenLogprobs(token_id=token, logprob=value, rank=2, top=[(120, -0.5), (token, value)][:most])

    monkeypatch.setattr(scripted, "entry", impossible)
    fields = {"logprobs": True, "top_logprobs": 2} if path == CHAT else {"logprobs": 2, "echo": True}
    _, _, answer = exchange(path, reply="a", prompt_logprobs=2, **fields)
    choice = answer["choices"][0]
    if path == CHAT:
        assert choice["logprobs"]["content"][0]["logprob"] == -9999.0
        assert [top["logprob"] for top in choice["logprobs"]["content"][0]["top_logprobs"]] == [-0.5, -9999.0]
    else:
        assert choice["logprobs"]["token_logprobs"][1:] == [-9999.0] * 4
        assert sorted(choice["logprobs"]["top_logprobs"][1].values()) == [-9999.0, -0.5]
    assert -9999.0 in [entry["logprob"] for entry in choice["prompt_logprobs"][1].values()]


@pytest.mark.parametrize("stream", [False, True])
def test_a_long_answer_with_log_probabilities_is_written_beside_the_event_loop(stream, monkeypatch):
    loop_thread, writers = threading.get_ident(), set()
    monkeypatch.setattr(completions, "completion_lists", recorded(completions.completion_lists, writers))

    async def ask(length):
        writers.clear()
        body = {"prompt": "a" * length, "max_tokens": 1, "echo": True, "logprobs": 1, "stream": stream}
        assert (await Server("b").post(COMPLETIONS, body)).status_code == 200
        return set(writers)

    assert run(lambda: ask(200)) - {loop_thread}
    assert run(lambda: ask(20)) == {loop_thread}


def recorded(function, threads):
    def call(*arguments):
        threads.add(threading.get_ident())
        return function(*arguments)

    return call


def test_a_stop_string_aborts_the_sequence_in_the_engine():
    async def stop():
        server = Server("abcdef")
        await server.post(COMPLETIONS, {"prompt": "x", "stop": "b", "n": 2})
        return server.process

    process = run(stop)
    assert sorted(process.aborted) == sorted(request.request_id for request in process.requests)
    assert process.steps == 2


def test_nothing_held_back_is_lost_and_no_character_is_split():
    chunks, _, answer = exchange(COMPLETIONS, reply="aé😀b", stop=["bx"])
    texts = [chunk["choices"][0]["text"] for chunk in chunks]
    assert [text for text in texts if text] == ["a", "é", "😀", "b"]
    assert answer["choices"][0]["text"] == "aé😀b"


def test_a_character_that_never_ends_is_replaced():
    assert finishes(reply=lambda request: [97, 0xC3, END])[0] == "a\ufffd"


def test_chat_logprobs():
    _, _, answer = exchange(CHAT, reply="é", logprobs=True, top_logprobs=1)
    first, second, end = answer["choices"][0]["logprobs"]["content"]
    assert first == {
        "token": "bytes:\\xc3",
        "logprob": -0.5,
        "bytes": [0xC3],
        "top_logprobs": [{"token": "bytes:\\xc4", "logprob": -0.25, "bytes": [0xC4]}],
    }
    assert second["token"] == "bytes:\\xa9" and end["token"] == "<|im_end|>"


def test_prompt_logprobs_and_token_ids():
    _, _, answer = exchange(COMPLETIONS, reply="x", prompt="ab", prompt_logprobs=1, return_token_ids=True)
    choice = answer["choices"][0]
    assert choice["prompt_logprobs"] == [
        None,
        {
            "99": {"logprob": -0.25, "rank": 1, "decoded_token": "c"},
            "98": {"logprob": -0.5, "rank": 2, "decoded_token": "b"},
        },
    ]
    assert (choice["prompt_token_ids"], choice["token_ids"]) == ([97, 98], [120, END])


def test_a_prompt_counts_once_however_many_choices():
    _, _, answer = exchange(COMPLETIONS, reply="x", prompt=["abcd", "ef"], n=3)
    assert answer["usage"]["prompt_tokens"] == 6
    assert answer["usage"]["completion_tokens"] == 12
    assert [choice["index"] for choice in answer["choices"]] == list(range(6))


def test_choices_of_a_step_share_one_write():
    async def sizes():
        server = Server("abc")
        call = server.call(COMPLETIONS, {"prompt": "x", "n": 4, "stream": True})
        await call.task
        return [message["body"].count(b"data: ") for message in call.sent if message.get("body")]

    # three steps of text, one of four ends, then [DONE]
    assert run(sizes) == [4, 4, 4, 4, 1]


def test_unknown_fields_may_be_ignored_with_a_warning_on_every_route():
    async def warnings():
        server = Server(unknown_fields="ignore")
        bodies = {**ROUTES, "/tokenize": {"prompt": "a"}, "/detokenize": {"tokens": [97]}}
        answers = [await server.post(path, {**body, "colour": 1}) for path, body in bodies.items()]
        answers.append(await server.post(COMPLETIONS, {"prompt": "a", "colour": 1, "stream": True}))
        return [(answer.status_code, answer.headers.get("warning", "")) for answer in answers]

    for status, warning in run(warnings):
        assert status == 200 and "colour" in warning


async def get(server, path) -> httpx.Response:
    return await server.client.get(path)


def test_models():
    async def models():
        server = Server()
        return [
            await get(server, path)
            for path in ("/v1/models", "/v1/models/small", "/v1/models/org/small", "/v1/models/x")
        ]

    listed, one, slashed, missing = run(models)
    assert [model.id for model in ModelList.model_validate_json(listed.content).data] == ["small", "org/small"]
    assert one.json()["max_model_len"] == CONTEXT
    assert slashed.json()["id"] == "org/small"
    assert missing.status_code == 404
    assert missing.json()["error"]["code"] == "model_not_found"
    assert set(missing.json()["error"]) == {"message", "type", "param", "code"}


def test_tokenize_and_detokenize():
    async def answers(bos, path, **body):
        return (await Server(bos=bos).post(path, body)).json()

    def ask(path, bos=True, **body):
        return run(lambda: answers(bos, path, **body))

    tokenized = ask("/tokenize", prompt="aé", return_token_strs=True)
    assert tokenized == {
        "tokens": [START, 97, 0xC3, 0xA9],
        "count": 4,
        "max_model_len": CONTEXT,
        "token_strs": ["<|im_start|>", "a", "bytes:\\xc3", "bytes:\\xa9"],
    }
    TokenizeAnswer.model_validate(tokenized)
    assert ask("/tokenize", prompt="a", add_special_tokens=False)["tokens"] == [97]
    assert ask("/tokenize", prompt="", bos=False)["tokens"] == []
    messages = ask("/tokenize", messages=[USER])["tokens"]
    assert messages == ask("/tokenize", bos=False, messages=[USER], add_generation_prompt=True)["tokens"]
    assert messages[0] == START and messages[-len("assistant\n") :] == list(b"assistant\n")
    assert ask("/tokenize", messages=[USER], add_special_tokens=True)["tokens"] == [START, *messages]
    assert ask("/detokenize", tokens=[START, 97, 0xC3, 0xA9]) == {"prompt": "<|im_start|>aé"}
    assert ask("/detokenize", tokens=[START, 97], skip_special_tokens=True) == {"prompt": "a"}
    DetokenizeAnswer.model_validate(ask("/detokenize", tokens=[1]))
    assert ask("/detokenize", tokens=[258])["error"]["param"] == "tokens[0]"
    assert ask("/tokenize", prompt="a", model="x")["error"]["code"] == "model_not_found"


def test_large_bodies_are_prepared_off_the_event_loop_with_the_same_refusals():
    async def large():
        server = Server()
        long_prompt = await server.post(COMPLETIONS, {"prompt": "a" * 50_000})
        broken = await server.post(COMPLETIONS, b"[" * 30_000)
        fine = await server.post(COMPLETIONS, {"prompt": "a", "metadata": {"x": "y" * 50_000}})
        return long_prompt, broken, fine

    long_prompt, broken, fine = run(large)
    assert long_prompt.json()["error"]["code"] == "context_length_exceeded"
    assert "nested" in broken.json()["error"]["message"]
    assert fine.status_code == 200


def test_the_fingerprint_is_that_of_what_the_engine_says_computes():
    async def body():
        server = Server()
        ready = ready_event()
        seen = []
        for computes in (ready.computes, "another model or device", ready.computes):  # the last: a restart
            ready.computes = computes
            server.incarnations.handle(ready)
            seen.append((await server.post("/v1/completions", {"prompt": "a"})).json()["system_fingerprint"])
        assert seen[0] == seen[2] != seen[1]
        assert all(re.fullmatch("fp_[0-9a-f]{12}", name) for name in seen)

    run(body)
