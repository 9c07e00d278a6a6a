"""Traces, as a real receiver of OTLP decodes them."""

import os
import queue
import re
import subprocess
import sys
import threading
from importlib.util import find_spec

import pytest

from configs.settings import Settings
from scheduler.types.messages import RequestTimes
from scheduler.types.trail import KvLoad, PromptChunk, TakenBack, Trail, Wait, WaitCause
from server.telemetry.lifetime import Exchange, Lifetime
from server.telemetry.traces import extra
from server.telemetry.traces.spans import SpanPlan, parts_of
from tests.otlp import Receiver, attributes_of
from tests.server.api.scripted import Server, run

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
NOT_SAMPLED = PARENT[:-1] + "0"
CHAT = {"messages": [{"role": "user", "content": "A secret"}], "max_tokens": 3, "temperature": 0.5, "seed": 7}


@pytest.fixture
def receiver():
    receiver = Receiver()
    yield receiver
    receiver.close()


def traced(receiver, asks, reply="Hello", **settings):
    """The answers to these requests, once their spans have arrived."""

    async def test():
        server = Server(reply, otlp_endpoint=receiver.url, **settings)
        try:
            return [await server.client.post(path, json=body, headers=headers) for path, body, headers in asks]
        finally:
            server.context.tracing.close()

    return run(test)


@pytest.mark.processes
def test_what_was_thought_is_counted_apart(receiver):
    body = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 40}
    thinks = {"reply": "<think>hm</think>yes", "reasoning_format": "think"}
    (answer,) = traced(receiver, [("/v1/chat/completions", body, {})], **thinks)
    (root,) = receiver.wait_for(1)
    thought = answer.json()["usage"]["completion_tokens_details"]["reasoning_tokens"]
    assert attributes_of(root)["gen_ai.usage.reasoning.output_tokens"] == thought > 0


@pytest.mark.processes
def test_a_request_is_one_tree_with_the_names_of_the_conventions(receiver):
    (answer,) = traced(receiver, [("/v1/chat/completions", CHAT, {"x-session-id": "talk-1"})])
    (root,) = receiver.wait_for(1)
    assert (root.name, root.kind) == ("chat small", root.SPAN_KIND_SERVER)
    told = attributes_of(root)
    assert told["gen_ai.operation.name"] == "chat" and told["gen_ai.request.model"] == "small"
    assert (told["gen_ai.response.id"], told["gen_ai.conversation.id"]) == (answer.json()["id"], "talk-1")
    assert told["gen_ai.request.temperature"] == 0.5 and told["gen_ai.request.seed"] == 7
    assert told["gen_ai.response.finish_reasons"] == ["length"]
    usage = answer.json()["usage"]
    assert told["gen_ai.usage.input_tokens"] == usage["prompt_tokens"]
    assert told["gen_ai.usage.output_tokens"] == usage["completion_tokens"] == 3
    assert told["gen_ai.usage.cache_read.input_tokens"] == usage["prompt_tokens_details"]["cached_tokens"]
    assert told["gen_ai.usage.reasoning.output_tokens"] == 0
    names = [span.name for span in receiver.children(root)]
    assert names == ["receive", "validate", "queue", "prefill", "decode", "stream"]
    assert all(span.trace_id == root.trace_id for span in receiver.spans)
    inside = [(span.start_time_unix_nano, span.end_time_unix_nano) for span in receiver.spans]
    assert all(root.start_time_unix_nano <= a <= b <= root.end_time_unix_nano for a, b in inside)
    assert set(receiver.paths) == {"/v1/traces"} and receiver.resource["service.name"] == "headrace"
    assert "secret" not in str(receiver.spans)
    assert len(list(receiver.tree(root))) == len(receiver.spans)


@pytest.mark.processes
def test_the_clients_trace_is_joined_its_decision_kept_and_the_span_named_to_it(receiver):
    asks = [
        ("/v1/completions", {"prompt": "a", "max_tokens": 2}, {"traceparent": each}) for each in (NOT_SAMPLED, PARENT)
    ]
    not_sampled, sampled = traced(receiver, asks, trace_ratio=0.0)
    (root,) = receiver.wait_for(1)
    assert root.trace_id.hex() == PARENT.split("-")[1] and root.parent_span_id.hex() == PARENT.split("-")[2]
    assert sampled.headers["traceresponse"] == f"00-{root.trace_id.hex()}-{root.span_id.hex()}-01"
    assert re.fullmatch(r"00-0af7651916cd43dd8448eb211c80319c-[0-9a-f]{16}-00", not_sampled.headers["traceresponse"])


@pytest.mark.processes
def test_a_refusal_is_an_error_and_texts_are_sent_only_if_the_operator_asks(receiver):
    asks = [("/v1/completions", {"prompt": "a", "max_tokens": -1}, {}), ("/v1/chat/completions", CHAT, {})]
    traced(receiver, asks, log_content=True)
    refused, answered = receiver.wait_for(2)
    assert (refused.name, attributes_of(refused)["error.type"]) == ("text_completion", "invalid_value")
    assert refused.status.code == refused.status.STATUS_CODE_ERROR
    assert "A secret" in attributes_of(answered)["gen_ai.input.messages"]
    assert "Hel" in attributes_of(answered)["gen_ai.output.messages"]


@pytest.mark.processes
def test_a_collector_that_does_not_answer_does_not_hold_up_the_end(receiver, monkeypatch):
    ended, outlived = threading.Event(), queue.Queue()
    monkeypatch.setattr(receiver, "take", lambda *_: outlived.put(ended.wait(5)))

    async def test():
        server = Server("Hello", otlp_endpoint=receiver.url)
        await server.client.post("/v1/completions", json={"prompt": "a", "max_tokens": 1})
        server.context.tracing.close(0.2)
        ended.set()

    run(test)
    assert outlived.get(timeout=20)


@pytest.mark.processes
def test_headers_of_anybody_are_not_quoted_in_the_log(receiver, caplog):
    wrong = [{"traceparent": PARENT, "tracestate": "a=b" * 100}, {"traceparent": "0" * 600}]
    traced(receiver, [("/v1/completions", {"prompt": "a"}, each) for each in wrong])
    assert not caplog.records


def test_what_engines_wrote_down_hangs_below_its_phase():
    lifetime = Lifetime(received=0.0, validated=2.0, scheduled=5.0, first_token=8.0, last_token=12.0, finished=12.0)
    trail = Trail(
        waits=[Wait(cause=WaitCause.BLOCKS, since=3.0, until=5.0, behind="x-0")],
        chunks=[PromptChunk(step=3, start=0, tokens=64, planned=5.5, ended=7.0, step_seconds=1.0)],
        loads=[KvLoad(since=5.0, until=5.5, blocks=2, tiers=["host"])],
        preemptions=[TakenBack(at=10.0, by="y-0", lost=1, saved=True, resumed=11.0)],
    )
    first = RequestTimes(queued=2.5, scheduled=5.0, first_token=8.0, finished=8.0)
    lifetime.absorb(first, trail, "engine-0")
    lifetime.handed_over()
    lifetime.absorb(RequestTimes(queued=8.5, scheduled=8.6, first_token=9.0, finished=12.0), Trail(), "engine-1")
    exchange = Exchange(request_id="r", received=0.0, read=1.0, validated=2.0, answered=8.0, lifetimes=[lifetime])

    def shape(plan: SpanPlan) -> object:
        return (plan.name, plan.start, plan.end, [shape(child) for child in plan.children])

    assert [shape(part) for part in parts_of(exchange, 13.0)] == [
        ("receive", 0.0, 1.0, []),
        ("validate", 1.0, 2.0, []),
        ("queue", 2.0, 5.0, [("wait for blocks", 3.0, 5.0, [])]),
        ("prefill", 5.0, 8.0, [("load", 5.0, 5.5, []), ("chunk", 6.0, 7.0, [])]),
        ("hand over", 8.0, 9.0, []),
        ("decode", 8.0, 12.0, [("preempted", 10.0, 11.0, [])]),
        ("stream", 8.0, 13.0, []),
    ]
    exchange.lifetimes.append(lifetime)
    assert [part.name for part in parts_of(exchange, 13.0)][2:4] == ["choice 0", "choice 1"]
    exchange.lifetimes *= 500
    assert [part.name for part in parts_of(exchange, 13.0)][-2:] == ["choice 31", "stream"]


def test_without_the_extra_a_server_that_should_trace_says_what_to_install(monkeypatch):
    monkeypatch.setattr(extra, "find_spec", lambda name: None if "otlp" in name else find_spec(name))
    assert extra.missing(Settings()) is None
    said = extra.missing(Settings(otlp_endpoint="http://127.0.0.1:1"))
    assert said.startswith("otlp_endpoint is set") and "pip install 'headrace[tracing]'" in said


def test_the_standards_variables_switch_traces_on_and_off():
    asked = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}
    plain, told = Settings(), Settings(otlp_endpoint="http://x")
    assert plain.traced_by({}) is None and plain.traced_by(dict.fromkeys(asked, "")) is None
    assert plain.traced_by(asked) == "OTEL_EXPORTER_OTLP_ENDPOINT"
    assert told.traced_by(asked) == "otlp_endpoint"
    assert told.traced_by({"OTEL_SDK_DISABLED": "true"}) is None


def test_plain_serving_imports_no_opentelemetry_sdk():
    code = "import sys, server.serving; sys.exit(any(name.startswith('opentelemetry.sdk') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], env={**os.environ}, check=False).returncode == 0
