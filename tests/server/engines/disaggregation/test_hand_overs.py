"""Requests that one engine begins and another goes on with: what clients read is what they would have read from one."""

import asyncio
import math
import time
from collections import defaultdict
from dataclasses import replace

import httpx
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from scheduler.router.deadlines import Outcome
from scheduler.router.round_robin import RoundRobin
from scheduler.router.view import Role
from scheduler.types.messages import AddRequest, EngineStats, FinishReason, Output, RequestTimes, StepOutputs
from scheduler.types.sampling_params import SamplingParams
from server.app import create_app
from server.engines.client import EngineClient
from server.engines.engines import Engines
from server.engines.supervision.incarnations import Incarnations
from server.engines.supervision.restarts import Restarts
from server.telemetry.lifetime import Lifetime
from tests.drawn import drawn
from tests.server.api.scripted import ScriptedProcess, Server, ready_event, run
from tests.server.engines.test_replay import PROMPT, Pool, bodies, drawn_reply, parts


class Apart(Server):
    """A server with an engine for prompts and one for decodes. All requests are split."""

    def __init__(self, reply=drawn_reply, **settings):
        super().__init__(reply, **settings)
        metrics = self.context.metrics
        self.clients = [EngineClient(name, self.settings, metrics) for name in ("first", "second")]
        self.lives = {client.name: Incarnations(client, metrics) for client in self.clients}
        for client, role in zip(self.clients, (Role.PREFILL, Role.DECODE), strict=True):
            client.role = role
            self.up(client)
        self.engines = Engines(self.clients, RoundRobin(), metrics.hand_overs)
        self.engines._split.hand_over_seconds = -math.inf
        restarts = Restarts(self.engines, {}, flush_seconds=0.0)
        self.context = replace(self.context, engines=self.engines, restarts=restarts)
        self.app = create_app(self.context)
        self.client = httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://localhost")

    def up(self, client):
        process = ScriptedProcess(drawn_reply)
        lives = self.lives[client.name]
        process.incarnations, process.prompt_per_step = lives, 7
        lives.attach(process, process, on_broken=pytest.fail)
        lives.handle(ready_event())
        client.process = process

    def sample(self, name, **labels):
        return self.context.metrics.registry.get_sample_value(name, labels)

    def outcomes(self):
        return {
            outcome: int(self.sample("headrace_hand_overs_total", outcome=outcome))
            for outcome in ("loaded", "computed", "stays", "waits")
            if self.sample("headrace_hand_overs_total", outcome=outcome)
        }


@given(asked=bodies())
@hypothesis_settings(max_examples=drawn(20))
def test_a_client_cannot_tell_that_its_request_was_handed_over(asked):
    path, body = asked

    async def ask():
        one, apart = Server(drawn_reply), Apart()
        one.process.prompt_per_step = 7
        return await one.post(path, body), await apart.post(path, body), apart

    together, handed, apart = run(ask)
    assert parts(handed, body) == parts(together, body)
    first, second = (client.process for client in apart.clients)
    decoded = {request.request_id for request in second.requests}
    assert len(first.requests) == body["n"] and all(len(request.generated_ids) == 1 for request in second.requests)
    if body["max_tokens"] == 1:
        assert not decoded and not any(request.hand_over for request in first.requests)
    stopped = set(second.aborted)  # by a stop string, perhaps in the first token
    assert len(decoded - stopped) <= sum(apart.outcomes().values()) <= len(decoded)
    assert all(client.open_count == 0 for client in apart.clients)
    assert apart.sample("headrace_replayed_requests_total", engine="second") == 0


@given(asked=bodies(), which=st.integers(0, 1), steps=st.integers(0, 8))
@hypothesis_settings(max_examples=drawn(20))
def test_nor_that_one_of_the_two_engines_died(asked, which, steps):
    path, body = asked

    async def ask():
        one, apart = Server(drawn_reply), Apart()
        one.process.prompt_per_step = 7
        client = apart.clients[which]
        process, step = client.process, client.process.step

        def stepping():
            if process.steps < steps:
                step()
                return
            process.playing.clear()
            apart.lives[client.name].detach("killed")
            apart.up(client)

        process.step = stepping
        return await one.post(path, body), await apart.post(path, body), apart

    together, handed, apart = run(ask)
    assert parts(handed, body) == parts(together, body)
    assert all(client.open_count == 0 for client in apart.clients)


def test_timings_and_metrics_are_those_of_one_request():
    async def body():
        apart = Apart()
        answer = await apart.post("/v1/completions", {"prompt": PROMPT, "max_tokens": 6, "temperature": 0})
        usage, metrics = answer.json()["usage"], apart.context.metrics.registry
        assert usage["completion_tokens"] == 6 and usage["prompt_tokens_details"]["cached_tokens"] == len(PROMPT) // 2
        assert apart.outcomes() == {"loaded": 1}
        assert metrics.get_sample_value("headrace_hand_over_seconds_count") == 1
        assert apart.sample("headrace_hand_over_tokens_total", how="loaded") == len(PROMPT)
        assert apart.sample("headrace_hand_over_tokens_total", how="computed") == 1
        assert apart.sample("headrace_sequences_finished_total", reason="length") == 1
        assert metrics.get_sample_value("headrace_time_to_first_token_seconds_count") == 1
        assert metrics.get_sample_value("headrace_inter_token_latency_seconds_count") == 5
        second = apart.clients[1].process.requests[0]
        assert 0.5 <= second.kv_wait_seconds <= 2.0 and not second.hand_over

    run(body)


@pytest.mark.parametrize("until", ["first_token", "end"])
@pytest.mark.parametrize(("deadline_ms", "outcome"), [(60_000, "kept"), (0.001, "broken")])
def test_a_promise_is_handed_over_with_its_request_and_counted_once(deadline_ms, outcome, until):
    async def body():
        apart = Apart()
        asked = {"prompt": PROMPT, "max_tokens": 6, "temperature": 0}
        answer = await apart.post("/v1/completions", {**asked, "deadline_ms": deadline_ms, "deadline_for": until})
        assert answer.status_code == 200 and apart.outcomes() == {"loaded": 1}
        counts = {each.value: apart.sample("headrace_deadlines_total", outcome=each.value) for each in Outcome}
        assert {each: count for each, count in counts.items() if count} == {outcome: 1}

    run(body)


# --- the parts, in the client's hands ---


def handing(pool, client, *names):
    """Sequences `job-index` that this engine is to hand over; those of one job have one prompt."""
    prompts = defaultdict(lambda: [1] * 40)
    requests = [
        AddRequest(
            request_id=name,
            prompt_ids=prompts[name.rpartition("-")[0]],
            sampling=SamplingParams(max_tokens=9),
            hand_over=True,
        )
        for name in names
    ]
    return [client.submit(request, Lifetime(received=time.monotonic(), prompt_tokens=40)) for request in requests]


def hand_over(client, stream, token=5):
    times = RequestTimes(queued=0.0, scheduled=0.0, first_token=1.0)
    output = Output(
        request_id=stream.request_id, token_ids=[token], finish_reason=FinishReason.HANDED_OVER, times=times
    )
    client.step_ended(StepOutputs(outputs=[output], stats=EngineStats(running=1)), time.monotonic())


def outcomes(pool):
    metrics = pool.engines._clients[0].hand_overs._metrics
    return {
        sample.labels["outcome"]: int(sample.value)
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name == "headrace_hand_overs_total" and sample.value
    }


def with_roles(*roles):
    pool = Pool(*(f"e{number}" for number in range(len(roles))))
    for client, role in zip(pool.clients, roles, strict=True):
        client.role = Role(role)
    return pool


def test_the_choices_of_a_prompt_go_to_one_engine():
    async def body():
        pool = with_roles("prefill", "decode", "decode")
        streams = handing(pool, pool.clients[0], "x-0", "x-1", "y-0")
        for stream in streams:
            hand_over(pool.clients[0], stream)
        homes = [{name for name, _ in pool.wires[client].added} for client in ("e1", "e2")]
        assert {"x-0", "x-1"} in homes and {"y-0"} in homes
        assert (await anext(streams[0])).finish_reason is None
        for stream in streams:
            stream.close()
        assert [client.open_count for client in pool.clients] == [0, 0, 0]

    run(body)


@pytest.mark.parametrize("change", ["drained", "gone", "another model", "another block size", "its own role"])
def test_where_no_other_engine_can_go_on_it_stays(change, caplog):
    async def body():
        pool = with_roles("prefill", "decode")
        first, second = pool.clients
        (stream,) = handing(pool, first, "x-0")
        if change == "drained":
            second.status.draining = True
        elif change == "gone":
            pool.kill(second)
        elif change == "another model":
            second.status.info = replace(second.status.info, computes="another")
        elif change == "another block size":
            second.status.info = replace(second.status.info, block_size=64)
        else:
            pool.engines.change_role(first, Role.MIXED)
        hand_over(first, stream)
        assert pool.wires["e0"].added == [("x-0", []), ("x-0", [5])]
        assert pool.wires["e0"].sent[-1].kv_wait_seconds == 0 and outcomes(pool) == {"stays": 1}
        stream.close()
        return [record.getMessage() for record in caplog.records if "handed" in record.getMessage()]

    said = run(body)
    if change.startswith("another"):
        (sentence,) = said
        assert sentence.startswith("e1: is handed no requests of e0: it")
    else:
        assert not said


def test_where_no_engine_works_it_waits_and_nobody_is_blamed():
    async def body():
        pool = with_roles("prefill", "decode")
        first, second = pool.clients
        (stream,) = handing(pool, first, "x-0")
        pool.kill(second)
        first.status.liveness.silence = 1e9
        hand_over_late = Output(request_id="x-0", token_ids=[5], finish_reason=FinishReason.HANDED_OVER)
        first._deliver(stream, hand_over_late, 0.0)
        assert outcomes(pool) == {"waits": 1} and first.open_count == 0
        pool.up(second)
        assert pool.wires["e1"].added == [("x-0", [5])] and stream.deaths == 0
        stream.close()
        assert second.open_count == 0

    run(body)


def test_a_client_that_leaves_during_a_hand_over_is_forgotten():
    async def body():
        pool = with_roles("prefill", "decode")
        first, second = pool.clients
        (stream,) = handing(pool, first, "x-0")
        hand_over(first, stream)
        stream.close()
        assert pool.wires["e1"].sent[-1].request_ids == ["x-0"] and second.open_count == 0
        await asyncio.sleep(0)

    run(body)


# --- roles ---


def test_an_operator_changes_roles_and_is_refused_where_nobody_would_be_left():
    async def body():
        apart = Apart(kv_host_gib=1.0)

        async def become(name, role):
            return await apart.client.post(f"/v1/engines/{name}/role", json={"role": role})

        refused = await become("second", "prefill")
        assert refused.status_code == 409
        assert refused.json()["error"]["message"] == (
            "second cannot become a prefill engine: no other one would be meant for decode."
        )
        assert (await become("second", "mixed")).json()["role"] == "mixed"
        assert (await become("first", "decode")).json()["role"] == "decode"
        cards = (await apart.client.get("/v1/engines")).json()["data"]
        assert [card["role"] for card in cards] == ["decode", "mixed"]
        assert apart.sample("headrace_engine_role", engine="first", role="decode") == 1
        assert apart.sample("headrace_engine_role", engine="first", role="prefill") == 0
        wrong = await become("first", "reader")
        assert wrong.status_code == 400 and wrong.json()["error"]["param"] == "role"
        assert (await become("third", "mixed")).status_code == 404
        without = await Apart().client.post("/v1/engines/first/role", json={"role": "prefill"})
        assert without.status_code == 409 and "there is none (kv_host_gib)" in without.text
        answer = await apart.post("/v1/completions", {"prompt": PROMPT, "max_tokens": 3, "temperature": 0})
        assert answer.status_code == 200 and not apart.outcomes()

    run(body)
