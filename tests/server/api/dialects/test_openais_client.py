"""openai-python against `/v1/responses`: it reads streams, goes on with responses, and has them run in the background."""

import asyncio

import openai
import pytest
from pydantic import BaseModel

from scheduler.types.messages import FinishReason, Output
from server.structured.compiler import Compiled, GrammarCompiler
from tests.server.api.scripted import Server, run
from tests.server.batches.served import client_of

TEXT = "Hello, wörld!"


def asking(ask, reply=TEXT, **settings):
    async def body():
        server = Server(reply, **settings)
        async with client_of(server) as client:
            return await ask(client.responses, server)

    return run(body)


def test_a_stream_is_read_to_its_end():
    async def ask(responses, server):
        events = [event async for event in await responses.create(model="small", input="Hi", stream=True)]
        async with responses.stream(model="small", input="Hi") as stream:
            text = "".join([event.delta async for event in stream if event.type == "response.output_text.delta"])
            final = await stream.get_final_response()
        return events, text, final

    events, text, final = asking(ask)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[-1].type == "response.completed" and events[-1].response.output_text == TEXT
    assert final.output_text == text == TEXT and final.usage.output_tokens == 15


def test_a_broken_stream_says_so():
    async def ask(responses, server):
        server.process.fail[3] = Output(request_id="", finish_reason=FinishReason.ERROR, error="scripted")
        return [event async for event in await responses.create(model="small", input="Hi", stream=True)]

    *events, last = asking(ask)
    assert sum(event.type == "response.output_text.delta" for event in events) == 3
    assert last.type == "response.failed" and last.response.status == "failed"
    assert "scripted" in last.response.error.message


def test_a_conversation_of_several_turns():
    async def ask(responses, server):
        first = await responses.create(model="small", input="one")
        second = await responses.create(model="small", input="two", previous_response_id=first.id)
        listed = await responses.input_items.list(second.id)
        count = await responses.input_tokens.count(model="small", input="three", previous_response_id=second.id)
        known = {"type": "item_reference", "id": first.output[0].id}
        third = await responses.create(model="small", input=[known, {"role": "user", "content": "four"}])
        again = await responses.retrieve(second.id)
        await responses.delete(second.id)
        with pytest.raises(openai.NotFoundError):
            await responses.retrieve(second.id)
        return [item.content[0].text for item in listed.data], count.input_tokens, again, second, third.output_text

    texts, count, again, second, text = asking(ask)
    assert texts == ["two"] and count > 60 and again == second and text == TEXT


def test_the_background():
    async def ask(responses, server):
        server.process.gate.clear()
        queued = await responses.create(model="small", input="Hi", background=True)
        server.process.gate.set()
        while (done := await responses.retrieve(queued.id)).status in ("queued", "in_progress"):
            await asyncio.sleep(0)
        stream = await responses.create(model="small", input="Hi", background=True, stream=True)
        events = [event async for event in stream]
        rest = await responses.retrieve(events[0].response.id, stream=True, starting_after=4)
        server.process.gate.clear()
        other = await responses.create(model="small", input="Hi", background=True)
        cancelled = await responses.cancel(other.id)
        return queued.status, done, events, [event async for event in rest], cancelled.status

    status, done, events, rest, cancelled = asking(ask)
    assert (status, done.status, done.output_text, cancelled) == ("queued", "completed", TEXT, "cancelled")
    assert rest == events[5:] and [event.type for event in events[:2]] == ["response.created", "response.queued"]


class City(BaseModel):
    """What an answer is parsed as."""

    name: str


def test_parsed_output(monkeypatch):
    async def compiled(self, grammar, engine, owner):
        return Compiled("a grammar", "vocabulary")

    monkeypatch.setattr(GrammarCompiler, "compile", compiled)

    async def ask(responses, server):
        return await responses.parse(model="small", input="Hi", text_format=City)

    assert asking(ask, '{"name": "Paris"}').output_parsed == City(name="Paris")
