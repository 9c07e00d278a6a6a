"""No error that a client reads holds an address, a folder, a module or a traceback; what it should say it still says."""

import re
import traceback
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.types.messages import Failed, FinishReason, Output
from server.api.engines import keeper_answer
from server.errors import for_clients
from server.stream.submission import raise_failure
from tests.server.api.scripted import Server, run

INTERNAL = re.compile(
    r"0x[0-9a-f]{3,}|Traceback|File \"|site-packages|/(?:home|usr|tmp|models|root|proc)/|\btorch\.\w+\.\w+", re.I
)
USER = {"role": "user", "content": "a"}


def raised() -> str:
    try:
        raise KeyError("blk.0")
    except KeyError:
        return traceback.format_exc()


HARMFUL = {
    "address": "unsupported operand for <function f at 0x7f3c2a91b880>",
    "path": "cannot read /home/op/models/secret-7b/model.gguf: No such file or directory.",
    "quoted path": "the file '/usr/lib/python3/site-packages/torch/x.so' is missing",
    "address of a file": "open file:///root/.cache/hub/x.safetensors failed",
    "traceback": raised(),
    "module": "the step failed: torch.cuda.OutOfMemoryError: CUDA out of memory at engine.gpu.worker.step",
    "several lines": "first\n  second in /tmp/headrace-abc/commands\n\nthird at 0xdeadbeef",
    "long": "x" * 100_000,
}


@pytest.mark.parametrize("name", HARMFUL)
def test_what_others_said_is_told_without_internals(name):
    told = for_clients(HARMFUL[name])
    assert not INTERNAL.search(told), told
    assert "\n" not in told and 0 < len(told) < 500


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("cannot read /models/a/model.gguf: no such file", "cannot read model.gguf: no such file"),
        ("roles must alternate user/assistant/user", "roles must alternate user/assistant/user"),
        ("there is no route /v1", "there is no route /v1"),
        ("1/2 of 3 blocks, 0x1 and 10x20", "1/2 of 3 blocks, 0x1 and 10x20"),
        ("see https://example.org/a/b for more", "see https://example.org/a/b for more"),
        ("KeyError: 'a'", "KeyError: 'a'"),
        (raised(), "KeyError: 'blk.0'"),
        ("", ""),
    ],
)
def test_what_is_harmless_stays(text, told):
    assert for_clients(text) == told


@given(st.text(max_size=200))
def test_any_text_is_made_harmless_and_twice_is_the_same(text):
    told = for_clients(text)
    assert len(told) <= 403
    assert for_clients(told) == told or len(told) > 300


@pytest.mark.parametrize("name", HARMFUL)
@pytest.mark.parametrize("reason", [FinishReason.ERROR, FinishReason.ABORT])
@pytest.mark.parametrize("stream", [False, True])
def test_what_an_engine_says_of_a_failure(name, reason, stream):
    async def ask(after):
        server = Server("abcdef")
        server.process.fail[after] = Output(request_id="", finish_reason=reason, error=HARMFUL[name])
        return await server.post("/v1/completions", {"prompt": "a", "stream": stream})

    for after in (0, 2):
        response = run(lambda: ask(after))  # noqa: B023
        assert '"error"' in response.text and not INTERNAL.search(response.text)


@pytest.mark.parametrize("name", HARMFUL)
def test_what_is_said_while_no_engine_starts(name):
    async def ask():
        server = Server(ready=False)
        server.incarnations.handle(Failed(error=HARMFUL[name]))
        server.incarnations.detach(HARMFUL[name])
        answers = [await server.client.get(path) for path in ("/ready", "/health", "/live")]
        answers.append(await server.post("/v1/completions", {"prompt": "a"}))
        server.incarnations.give_up()
        answers += [await server.client.get(path) for path in ("/ready", "/health")]
        return [*answers, await server.post("/v1/chat/completions", {"messages": [USER]})]

    for response in run(ask):
        assert response.status_code in (200, 503)
        assert not INTERNAL.search(response.text), response.text


@pytest.mark.parametrize("name", HARMFUL)
def test_what_is_said_of_a_keeper(name):
    told = keeper_answer(SimpleNamespace(state="dead", trouble=HARMFUL[name], restarts={"died": 4, "hung": 1}))
    assert told.restarts == 5 and told.trouble and not INTERNAL.search(told.trouble)


@pytest.mark.parametrize("name", HARMFUL)
def test_what_a_template_says(name):
    async def ask():
        server = Server(template="{{ raise_exception(said) }}")
        body = {"messages": [USER], "chat_template_kwargs": {"said": HARMFUL[name]}}
        return [await server.post(path, body) for path in ("/v1/chat/completions", "/tokenize")]

    for response in run(ask):
        assert response.status_code == 400 and not INTERNAL.search(response.text)


@pytest.mark.parametrize(
    "template", ["{{ range | length }}", "{{ namespace + 1 }}", "{{ cycler(1) | tojson }}", "{{ messages() }}"]
)
def test_what_python_says_of_a_template(template):
    response = run(lambda: Server(template=template).post("/v1/chat/completions", {"messages": [USER]}))
    assert response.status_code == 400 and not INTERNAL.search(response.text), response.text


@pytest.mark.parametrize("stream", [False, True])
def test_a_defect_of_ours_is_a_500_that_says_nothing_of_it(stream, monkeypatch, caplog):
    """Wherever it happens: the text goes to the log alone."""

    def broken(*_, **__):
        raise RuntimeError(f"secret of {HARMFUL['path']} {HARMFUL['address']}")

    async def ask():
        server = Server("ab")
        monkeypatch.setattr(server.context.tokenizer, "encode", broken)
        monkeypatch.setattr(server.context.chat, "encode", broken)
        return [
            await server.post("/v1/completions", {"prompt": "a", "stream": stream}),
            await server.post("/v1/chat/completions", {"messages": [USER], "stream": stream}),
            await server.post("/tokenize", {"prompt": "a"}),
        ]

    for response in run(ask):
        assert response.status_code == 500
        assert response.json()["error"]["message"] == "The server failed; see its log."
    assert "secret of" in caplog.text


def test_the_cause_itself_is_kept():
    output = Output(request_id="r", finish_reason=FinishReason.ERROR, error="out of luck in /srv/models/x.gguf")
    with pytest.raises(Exception, match=r"out of luck in x\.gguf"):
        raise_failure(output)
