"""Grammars compiled by the process that does it, for a real tokenizer."""

import asyncio
import json
import os
import signal
import time
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from engine.ipc.vocabulary import TokenSpellings, matcher_of
from server.errors import InvalidRequest, Unavailable
from server.structured.compile_process import CompileOutcome, Task, TaskQueue
from server.structured.compiler import GrammarCompiler
from server.structured.grammar import Grammar
from server.structured.json_schema import json_grammar
from server.structured.size import MAX_SOURCE_BYTES
from tests.server.api.scripted import byte_tokenizer
from tests.server.structured.hostile import HOSTILE

pytestmark = pytest.mark.processes
ENGINE = SimpleNamespace(vocab_size=258, eos_token_ids=[257])

QUICK = ["itself", "a cycle"]  # what is refused at once
SLOW = [
    "an intersection",
    "a number's remainders",
    "many properties",
]  # what llguidance finds no end of, or only after seconds


def hostile(name):
    ((kind, source),) = HOSTILE[name].items()
    return json_grammar(source, "p") if kind == "json" else Grammar({"grammar": "lark"}.get(kind, kind), source, "p")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    byte_tokenizer()._backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"}))
    return folder


@asynccontextmanager
async def compiler_of(model):
    compiler = GrammarCompiler(model, cpu_seconds=0)
    try:
        yield compiler
    finally:
        await compiler.close()


async def refusal(compiler, grammar):
    with pytest.raises(InvalidRequest) as refused:
        await compiler.compile(grammar, ENGINE)
    assert refused.value.param == grammar.param
    return refused.value.message


def test_grammars_of_every_kind_are_compiled_for_the_models_tokens(model):
    grammars = [
        (Grammar("regex", "ab+", "p"), b"abb", b"b"),
        (Grammar("choice", '["one", "tw\\"o\\n\x7f"]', "p"), b'tw"o\n\x7f', b"x"),
        (Grammar("json_object", "", "p"), b'{"a": [1, null]}', b"["),
        (json_grammar({"const": {"a": None}}, "p"), b'{"a": null}', b"n"),
        (Grammar("lark", 'start: "x" /[0-9]/+', "p"), b"x12", b"1"),
        (Grammar("lark", 'root ::= "yes" | "no"', "p"), b"yes", b"x"),
        (Grammar("lark", 'start: "a" <|im_start|> "b"', "p"), [ord("a"), 256, ord("b")], b"<"),
    ]

    async def main():
        async with compiler_of(model) as compiler:
            found = await asyncio.gather(*(compiler.compile(grammar, ENGINE) for grammar, _, _ in grammars))
            tokenizer = TokenSpellings.read(Path(found[0].vocabulary)).tokenizer(258, [257])
            for compiled, (grammar, fits, not_first) in zip(found, grammars, strict=True):
                matcher = matcher_of(tokenizer, compiled.grammar)
                assert matcher.consume_tokens(list(fits)) and matcher.is_accepting(), grammar
                assert not matcher_of(tokenizer, compiled.grammar).consume_tokens(list(not_first)), grammar
            folder = Path(found[0].vocabulary).parent
        assert not folder.exists()

    asyncio.run(main())


def test_each_content_is_compiled_once(model):
    async def main():
        async with compiler_of(model) as compiler:
            await asyncio.gather(*(compiler.compile(Grammar("regex", "ab+", str(i)), ENGINE) for i in range(5)))
            await refusal(compiler, Grammar("regex", "(", "a"))
            child = compiler._child.result()
            asked = child.asked
            await compiler.compile(Grammar("regex", "ab+", "p"), ENGINE)
            await refusal(compiler, Grammar("regex", "(", "b"))
            assert child.asked == asked == 2

    asyncio.run(main())


def test_what_is_no_grammar_is_refused_with_the_reason(model):
    async def main():
        async with compiler_of(model) as compiler:
            assert "unclosed group" in await refusal(compiler, Grammar("regex", "(ab", "guided_regex"))
            assert "look-around" in await refusal(compiler, Grammar("regex", "(?=a)b", "guided_regex"))
            assert "ends with a backslash" in await refusal(compiler, Grammar("regex", "a\\\\\\", "guided_regex"))
            assert await compiler.compile(Grammar("regex", "a\\\\", "guided_regex"), ENGINE)
            with pytest.raises(InvalidRequest, match="look-around") as refused:
                await compiler.compile(json_grammar({"items": {"type": "string", "pattern": "(?=a)"}}, "a.b"), ENGINE)
            assert refused.value.param == "a.b.items.pattern"
            assert "Expected token" in await refusal(compiler, Grammar("lark", "nothing", "guided_grammar"))
            large = Grammar("regex", "a" * (MAX_SOURCE_BYTES + 1), "guided_regex")
            assert f"at most {MAX_SOURCE_BYTES} bytes" in await refusal(compiler, large)
            for grammar in (large, Grammar("lark", "nothing", "tools")):
                assert await compiler.compile(replace(grammar, spared=True), ENGINE) is None

    asyncio.run(main())


@pytest.mark.parametrize("names", [QUICK, *(pytest.param([name], marks=pytest.mark.long) for name in SLOW)], ids=str)
def test_a_grammar_without_end_costs_its_own_request_and_nobody_else(model, names):
    async def main():
        async with compiler_of(model) as compiler:
            await compiler.compile(Grammar("regex", "a", "p"), ENGINE)
            child = compiler._child.result()
            refused = [asyncio.create_task(refusal(compiler, hostile(name))) for name in names]
            others = [compiler.compile(Grammar("regex", f"a{i}", "p"), ENGINE) for i in range(3)]
            await asyncio.gather(*others)
            assert all(await asyncio.gather(*refused))
            assert compiler._child.result() is child and child.alive

    asyncio.run(main())


def test_a_process_that_was_killed_is_started_again(model):
    async def main():
        async with compiler_of(model) as compiler:
            await compiler.compile(Grammar("regex", "a", "p"), ENGINE)
            child = compiler._child.result()
            fork = asyncio.create_task(compiler.compile(hostile("many properties"), ENGINE))  # holds on to its stdout
            await compiler.compile(Grammar("regex", "b", "p"), ENGINE)
            os.kill(child.pid, signal.SIGKILL)
            while child.alive:
                await asyncio.sleep(0.01)
            assert (await compiler.compile(Grammar("regex", "c", "p"), ENGINE)).grammar
            with pytest.raises(Unavailable, match="has ended"):
                await fork
            child = compiler._child.result()
            assert (await child.ask("regex", "d", "", time.monotonic() - 0.001)).late
            assert (await child.ask("regex", "d", "", time.monotonic() + 30)).grammar

    asyncio.run(main())


def test_owners_take_turns_and_what_is_late_goes():
    queue = TaskQueue()
    for number, (owner, until) in enumerate([("a", 1), ("a", 2), ("a", 3), ("b", 1), ("b", 3), ("c", 9)]):
        queue.add(Task(number=number, kind="regex", source="", owner=owner, until=until))
    assert [queue.take().number for _ in range(3)] == [0, 3, 5]
    assert [task.number for task in queue.take_late(2)] == [1] and queue
    assert [queue.take().number for _ in range(2)] == [2, 4] and not queue


def test_one_owner_leaves_room_for_others(monkeypatch):
    monkeypatch.setattr("server.structured.compiler.MAX_WAITING", 8)
    answer = asyncio.Event()

    async def asked(self, *_):
        await answer.wait()
        return CompileOutcome(number=1, grammar="g")

    monkeypatch.setattr(GrammarCompiler, "_ask", asked)

    async def main():
        compiler, asked, held = GrammarCompiler(Path("none")), [], []
        for owner in "aaaaaabbbbc":
            source = f"{owner}{len(asked)}"
            asked.append(asyncio.create_task(compiler.compile(Grammar("regex", source, "p"), ENGINE, owner)))
            await asyncio.sleep(0)
            held.append(owner if len(compiler._under_way) > len(held) - held.count("") else "")
        assert "".join(held) == "aaaabbc"
        again = asyncio.create_task(compiler.compile(Grammar("regex", "a0", "p"), ENGINE, "d"))  # the same content
        answer.set()
        found = await asyncio.gather(*asked, again, return_exceptions=True)
        refused = [error.message for error in found if isinstance(error, Unavailable)]
        assert len(refused) == 4 and "4 of yours are being compiled" in refused[0]
        assert (await compiler.compile(Grammar("regex", "late", "p"), ENGINE, "a")).grammar == "g"
        await compiler.close()

    asyncio.run(main())
