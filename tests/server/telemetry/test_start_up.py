"""What is told at start-up, the listening socket, and the stamps of a lifetime."""

import io
import json
import os
import shlex
import socket
import time
from dataclasses import replace

import pytest

from scheduler.types.messages import FinishReason, MemoryPlan, RequestTimes, StartPhase
from scheduler.types.output_kind import OutputKind
from server.listen import ListenError, listen
from server.telemetry.console import Console, first_curl, phase_lines, plan_lines, size
from server.telemetry.lifetime import Lifetime
from tests.server.engines.scripted_engine import PLAN, READY

pytestmark = pytest.mark.processes


def console(out, started=0.0, engines=("engine",), page=True, **place):
    return Console(
        out,
        engines=engines,
        **{"url": "http://127.0.0.1:8000", **place},
        model="m",
        has_template=True,
        keyed=False,
        page=page,
        started=started,
    )


def test_the_plan_is_printed_before_anything_is_loaded_and_all_of_it_once():
    out = io.StringIO()
    told = console(out, time.monotonic())
    told.on_event("engine", PLAN)
    assert "64 blocks of 32 tokens, 1.0 KiB a token" in out.getvalue()
    assert "2048 tokens (as much as the pool holds); 1.0 requests" in out.getvalue()
    told.on_event("engine", StartPhase(name="load weights", seconds=0.25))
    assert "load weights" not in out.getvalue()
    told.on_event("engine", READY)
    first = out.getvalue()
    assert "End tokens  2 </s> (config.json)\n" in first
    assert "load weights" in first and "total" in first and "http://127.0.0.1:8000" in first and "curl" in first
    for event in (PLAN, StartPhase(name="again", seconds=1.0), READY):  # a restarted engine
        told.on_event("engine", event)
    assert out.getvalue() == first


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no disk that is always full")
def test_what_cannot_be_printed_is_no_reason_not_to_serve(caplog):
    with open("/dev/full", "w", encoding="utf-8") as full:
        told = console(full)
        for event in (PLAN, READY):
            told.on_event("engine", event)
    assert caplog.text.count("cannot be printed: [Errno 28] No space left on device") == 1


def test_with_several_engines_each_part_bears_a_name_and_the_address_is_told_once():
    out = io.StringIO()
    told = console(out, engines=("a", "b"))
    for name in ("a", "b"):
        for event in (PLAN, StartPhase(name=f"load {name}", seconds=0.25), READY):
            told.on_event(name, event)
    text = out.getvalue()
    assert text.index("Engine a\nArithmetic") < text.index("Engine a\nStart-up") < text.index("Engine b\nArithmetic")
    assert text.index("Engine b\nStart-up") < text.index("load b")
    assert text.count("headrace listens on") == 1
    assert text.count("load a") == text.count("load b") == 1


def test_the_plan_adds_up():
    plan = MemoryPlan(
        weights=100 * 2**20, kv_per_token=2**10, block_size=32, blocks=32, activations=2**20, available=2**30,
        max_model_len=512, context=512, concurrent=2.0, arithmetic="exact: why",
        available_by="memory.high of /a", cores="2 (cpu.max of /b)",
    )  # fmt: skip
    lines = plan_lines(plan)
    assert any(
        "together" in line and "102.0 MiB" in line and "of 1.0 GiB available (memory.high of /a)" in line
        for line in lines
    )
    assert "Cores       2 (cpu.max of /b)" in lines
    assert "512 tokens (max_model_len); 2.0 requests" in lines[-1]


def test_a_draft_model_is_a_line_of_the_plan():
    plan = MemoryPlan(
        weights=100 * 2**20, kv_per_token=2**10, block_size=32, blocks=32, activations=2**20, available=2**30,
        max_model_len=512, context=512, concurrent=2.0, arithmetic="exact: why", draft=2**20, draft_kv_per_token=2**9,
    )  # fmt: skip
    lines = plan_lines(plan)
    (line,) = [line for line in lines if "draft model" in line]
    assert "1.5 MiB" in line and "512.0 KiB of it for its own KV" in line
    assert any("together" in line and "103.5 MiB" in line for line in lines)


def test_the_phases_add_up_to_the_total():
    lines = phase_lines([StartPhase(name="import", seconds=1.25), StartPhase(name="load", seconds=0.5)], 2.0)
    seconds = [float(line.split()[-2]) for line in lines[1:]]
    assert seconds == [1.25, 0.5, 0.25, 2.0]


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (3 * 2**50, "3072.0 TiB")]
)
def test_sizes(count, text):
    assert size(count) == text


@pytest.mark.parametrize("has_template", [True, False])
def test_the_curl_is_one_that_a_shell_understands(has_template):
    words = shlex.split(first_curl("http://h:1", 'it"s $a', has_template=has_template, keyed=True))
    assert words[0] == "curl"
    assert words[1] == f"http://h:1/v1/{'chat/completions' if has_template else 'completions'}"
    assert "Authorization: Bearer $API_KEY" in words
    body = json.loads(words[-1])
    assert body["model"] == 'it"s $a'
    assert ("messages" in body) is has_template


def test_a_unix_socket_is_named_and_in_the_curl():
    out = io.StringIO()
    told = console(out, url="http://localhost", uds="/a b")
    told.on_event("engine", READY)
    assert "headrace listens on the Unix socket /a b (" in out.getvalue()
    assert "curl --unix-socket '/a b' http://localhost/v1/chat/completions" in out.getvalue()
    assert "browser" not in out.getvalue()


@pytest.mark.parametrize("page", [True, False])
def test_a_page_is_told_of_where_there_is_one(page):
    out = io.StringIO()
    console(out, page=page).on_event("engine", READY)
    assert ("Open it in a browser, or try:\n" in out.getvalue()) == page


def test_listen_picks_a_port_and_says_where():
    with listen("127.0.0.1", 0) as listeners:
        port = listeners.port
        assert listeners.authority == f"127.0.0.1:{port}"
        with socket.create_connection(("127.0.0.1", port)):
            pass
        with pytest.raises(ListenError, match=rf"127\.0\.0\.1:{port}: Address already in use\. .*--port"):
            listen("127.0.0.1", port)


def test_a_wildcard_is_reached_at_localhost():
    with listen("0.0.0.0", 0) as listeners:
        assert listeners.authority.startswith("localhost:")


def test_an_address_of_another_machine_is_refused():
    with pytest.raises(ListenError, match=r"--host 192\.0\.2\.1 is no address of this machine"):
        listen("192.0.2.1", 0)
    with pytest.raises(ListenError, match="unknown"):
        listen("no such host", 0)


def test_timings_are_in_milliseconds_and_add_up():
    lifetime = Lifetime(received=1.0, prompt_tokens=30)
    lifetime.absorb(RequestTimes(queued=1.1, scheduled=1.5, cached_tokens=10))
    assert lifetime.token_arrived(2.5) is None
    assert lifetime.token_arrived(4.5) == 2.0
    lifetime.completion_tokens = 5
    lifetime.end(FinishReason.STOP, 4.5)
    assert lifetime.timings() == {
        "queue_ms": 500.0, "prefill_ms": 1000.0, "decode_ms": 2000.0, "total_ms": 3500.0,
        "prefill_tokens_per_second": 20.0, "decode_tokens_per_second": 2.0,
    }  # fmt: skip


def test_the_parts_of_the_queue_time_for_the_access_log():
    lifetime = Lifetime(received=1.0, validated=1.05)
    assert lifetime.waits() == {"validation_ms": 50.0, "waiting_ms": 0.0}
    lifetime.absorb(RequestTimes(queued=1.1, scheduled=1.5))
    assert lifetime.waits() == {"validation_ms": 50.0, "waiting_ms": 400.0}


def test_guesses_are_those_of_all_engines_that_had_the_sequence():
    lifetime = Lifetime(received=1.0)
    for accepted in (2, 5):  # each is all so far of one engine
        lifetime.absorb(RequestTimes(queued=1.1, scheduled=1.5, drafts_accepted=accepted, drafts_rejected=1))
    assert (lifetime.drafts_accepted, lifetime.drafts_rejected) == (5, 1)
    lifetime.replayed()
    lifetime.absorb(RequestTimes(queued=2.1, scheduled=2.5, drafts_accepted=4, drafts_rejected=3))
    assert (lifetime.drafts_accepted, lifetime.drafts_rejected) == (9, 4)


def test_timings_of_an_early_end_are_zero_not_wrong():
    lifetime = Lifetime(received=1.0, prompt_tokens=30)
    assert lifetime.timings() == {"queue_ms": 0.0, "prefill_ms": 0.0, "decode_ms": 0.0, "total_ms": 0.0}


def test_the_first_end_stays():
    lifetime = Lifetime(received=1.0)
    lifetime.end(FinishReason.LENGTH, 2.0)
    lifetime.end(FinishReason.ABORT, 3.0)
    assert (lifetime.reason, lifetime.finished) == (FinishReason.LENGTH, 2.0)


@pytest.mark.parametrize(
    ("kind", "path", "field"), [(OutputKind.VECTOR, "embeddings", "input"), (OutputKind.SCORES, "rerank", "query")]
)
def test_the_curl_asks_for_what_the_model_is_served_for(kind, path, field):
    words = shlex.split(first_curl("http://h:1", "m", has_template=False, keyed=False, produces=[kind]))
    body = json.loads(words[-1])
    assert words[1] == f"http://h:1/v1/{path}" and field in body and "max_tokens" not in body


def test_an_encoder_has_no_kv_and_no_end_tokens():
    out = io.StringIO()
    told = console(out, engines=("a",))
    for event in (replace(PLAN, kv_per_token=0), replace(READY, produces=[OutputKind.VECTOR])):
        told.on_event("a", event)
    assert "no KV" in out.getvalue() and "End tokens" not in out.getvalue() and "/v1/embeddings" in out.getvalue()
