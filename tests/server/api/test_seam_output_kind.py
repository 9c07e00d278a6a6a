"""A request may produce something else than text: an endpoint of vectors, through the real client, stream and answer path.

The engine is scripted; neither a detokenizer nor a template is there to be used.
"""

import asyncio
import time

import msgspec
import pytest

from scheduler.types.messages import (
    EVENTS,
    AddRequest,
    EngineStats,
    FinishReason,
    Output,
    RequestTimes,
    StepOutputs,
)
from scheduler.types.output_kind import OutputKind, Pooled
from scheduler.types.sampling_params import SamplingParams
from server.api.answers.answer import ERRORS, pooled_answer
from server.api.endpoint import PostEndpoint
from server.api.endpoints import ENDPOINTS
from server.api.requests.validate import check_ids
from server.schema.answers import AnswerBody
from server.schema.base import Body
from server.schema.fields import TokenIds
from server.stream import generation
from server.stream.job import Job, SequenceRequest, TokenizedPrompt
from server.stream.sse import CLIENT_GONE
from tests.server.api.scripted import ScriptedProcess, Server, run

PATH = "/v1/vectors"


class VectorRequest(Body):
    inputs: list[TokenIds]


class VectorAnswer(AnswerBody):
    id: str
    vectors: list[list[float]]


def vector_job(body, context, tenant):
    sequences = []
    for i, ids in enumerate(body.inputs):
        check_ids(ids, context, f"inputs[{i}]")
        request = AddRequest(
            request_id=f"vec-{i}", prompt_ids=ids, sampling=SamplingParams(max_tokens=0), produces=OutputKind.VECTOR
        )
        sequences.append(SequenceRequest(i, TokenizedPrompt(ids, None, f"inputs[{i}]"), request))
    return Job(id="vec", created=0, model=context.model_name(None, tenant), sequences=sequences)


def spelled(job, results):
    return VectorAnswer(id=job.id, vectors=[result.values for result in results])


VECTORS = PostEndpoint(
    path=PATH,
    tag="toys",
    summary="Token ids to vectors",
    body=VectorRequest,
    validate=vector_job,
    answer=pooled_answer(spelled),
    answers=VectorAnswer,
    errors=ERRORS,
)


class PoolingProcess(ScriptedProcess):
    """An engine that answers a vector of the sum and the count of the ids."""

    result = staticmethod(
        lambda request: Pooled(
            kind=request.produces, values=[float(sum(request.prompt_ids)), float(len(request.prompt_ids))]
        )
    )

    def advance(self, playing):
        if playing.request.produces is OutputKind.TOKENS or playing.done in self.fail:
            return super().advance(playing)
        now = time.monotonic()
        return Output(
            request_id=playing.request.request_id,
            pooled=self.result(playing.request),
            finish_reason=FinishReason.STOP,
            times=RequestTimes(queued=now, scheduled=now, cached_tokens=1),
        )


def server(result=None, **settings):
    made = Server(endpoints=[*ENDPOINTS, VECTORS], template=None, **settings)
    process = PoolingProcess(made.process.reply)
    if result is not None:
        process.result = result
    made.replace(process)
    return made


@pytest.fixture(autouse=True)
def no_text(monkeypatch):
    def forbidden(*args, **kwargs):
        raise AssertionError("a detokenizer for a vector")

    monkeypatch.setattr(generation, "Detokenizer", forbidden)


def test_vectors_come_in_the_order_of_the_request():
    async def ask():
        made = server()
        response = await made.post(PATH, {"inputs": [[1, 2, 3], [250], [7, 8]]})
        return made, response, (await made.client.get("/metrics")).text

    made, response, metrics = run(ask)
    assert response.json() == {"id": "vec", "vectors": [[6.0, 3.0], [250.0, 1.0], [15.0, 2.0]]}
    assert {request.produces for request in made.process.requests} == {OutputKind.VECTOR}
    assert made.engine.open_count == 0
    assert 'headrace_sequences_finished_total{reason="stop"} 3.0' in metrics


def test_text_is_a_kind_beside_it(monkeypatch):
    monkeypatch.undo()

    async def both():
        made = server()
        return await asyncio.gather(
            made.post(PATH, {"inputs": [[1]]}), made.post("/v1/completions", {"prompt": "a", "max_tokens": 3})
        )

    vectors, text = run(both)
    assert vectors.json()["vectors"] == [[1.0, 1.0]]
    assert text.json()["choices"][0]["text"] == "Hel"


def test_refusals_are_those_of_any_endpoint():
    response = run(lambda: server().post(PATH, {"inputs": [[1], [258]]}))
    error = response.json()["error"]
    assert response.status_code == 400 and error["param"] == "inputs[1][0]" and "257" in error["message"]


@pytest.mark.parametrize(
    ("result", "got"),
    [
        (lambda request: None, "nothing"),
        (lambda request: Pooled(kind=OutputKind.SCORES, values=[0.5]), "scores"),
    ],
)
def test_an_engine_that_produces_another_kind_has_failed_the_request(result, got):
    response = run(lambda: server(result).post(PATH, {"inputs": [[1]]}))
    error = response.json()["error"]
    assert response.status_code == 500 and error["code"] == "generation_failed"
    assert "asked for vector" in error["message"] and got in error["message"]


@pytest.mark.parametrize(
    ("reason", "status", "code"),
    [(FinishReason.ERROR, 500, "generation_failed"), (FinishReason.ABORT, 503, "unavailable")],
)
def test_a_sequence_that_fails_ends_the_request(reason, status, code):
    async def ask():
        made = server()
        made.process.fail[0] = Output(request_id="", finish_reason=reason, error="out of luck")
        return made, await made.post(PATH, {"inputs": [[1], [2]]})

    made, response = run(ask)
    assert response.status_code == status and response.json()["error"]["code"] == code
    assert "out of luck" in response.json()["error"]["message"]
    assert made.engine.open_count == 0


def test_a_client_that_leaves_is_not_computed_for():
    async def leave():
        made = server()
        made.process.gate.clear()
        call = made.call(PATH, {"inputs": [[1], [2]]})
        while len(made.process.requests) < 2:
            await asyncio.sleep(0)
        call.leave.set()
        await asyncio.wait_for(call.task, 5)
        made.process.task.cancel()
        return made, call

    made, call = run(leave)
    assert sorted(made.process.aborted) == ["vec-0", "vec-1"] and made.engine.open_count == 0
    assert call.sent[0]["status"] == CLIENT_GONE


def test_the_queue_has_the_same_bound():
    async def fill():
        made = server(max_waiting=2)
        made.process.gate.clear()
        call = made.call(PATH, {"inputs": [[1], [2]]})
        while len(made.process.requests) < 2:
            await asyncio.sleep(0)
        refused = await made.post(PATH, {"inputs": [[3]]})
        made.process.gate.set()
        await call.task
        return refused

    refused = run(fill)
    assert refused.status_code == 429 and refused.json()["error"]["code"] == "queue_full"


@pytest.mark.parametrize("kind", OutputKind)
def test_every_kind_survives_the_wire(kind):
    request = AddRequest(request_id="r", prompt_ids=[1], sampling=SamplingParams(max_tokens=0), produces=kind)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(request), type=AddRequest) == request
    pooled = None if kind is OutputKind.TOKENS else Pooled(kind=kind, values=[0.25, -1.5])
    outputs = StepOutputs(outputs=[Output(request_id="r", pooled=pooled)], stats=EngineStats())
    assert StepOutputs in EVENTS
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(outputs), type=StepOutputs) == outputs
