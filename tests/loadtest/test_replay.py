"""Whole runs against the stub, a process with real sockets: what is right is found right, and every fault is caught."""

import asyncio
import signal
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from loadtest.client.target import Target, TargetError
from loadtest.replay import ReplayPlan, replay, run_replay
from loadtest.report.metrics import summarize
from loadtest.report.records import ErrorClass, Objective
from loadtest.report.run_file import read_run, write_run
from loadtest.report.trust import cached_share, cautions
from loadtest.workload.arrivals import Closed, Poisson
from loadtest.workload.plan import LoadShape
from loadtest.workload.prompts import Prompts
from loadtest.workload.traces import Trace, TraceRequest
from loadtest.workload.traces.read import read_trace
from loadtest.workload.vocabulary import PromptTokenizerError

pytestmark = pytest.mark.processes

DATA = Path(__file__).parent / "data"
STUB = Path(__file__).parent / "stub_server.py"
NEVER_LATE = 60.0  # a busy machine makes the client late, which is not what most of these tests are about


@contextmanager
def stub(*arguments):
    """The base URL of a stub."""
    process = subprocess.Popen([sys.executable, STUB, *arguments], stdout=subprocess.PIPE, text=True)
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}/v1"
    finally:
        process.terminate()
        process.communicate(timeout=10)


def plan(**more):
    shape = LoadShape(limit=12, arrivals=Poisson(200), max_prompt=60, max_output=10)
    trace = read_trace(DATA / "burstgpt_1.csv")
    return replace(ReplayPlan(trace=trace, shape=shape, patience=20, stall=20, max_lateness=NEVER_LATE), **more)


def run(stub_arguments, target=None, **more):
    with stub(*stub_arguments) as url:
        return replay(plan(**more), Target(base_url=url, **(target or {})))


def violations(found):
    return [violation for record in found.records for violation in record.violations]


@pytest.mark.parametrize("dialect", ["headrace", "vllm"])
@pytest.mark.parametrize("endpoint", ["completions", "chat"])
@pytest.mark.parametrize("ids", [1024, 0])
def test_a_server_without_fault_has_none(dialect, endpoint, ids):
    target = {"endpoint": endpoint, "token_ids_up_to": ids}
    found = run(["--dialect", dialect, "--gap", "0.001"], target, verify=3)
    assert [record.index for record in found.records] == list(range(12))
    assert all(record.ok and not record.violations for record in found.records), violations(found)
    for record in found.records:
        assert record.prompt_tokens == record.asked_prompt
        assert record.output_tokens == record.asked_output == sum(count for _, count in record.tokens)
        assert record.finish_reason == "length"
        assert record.intended <= record.sent <= record.headers <= record.tokens[0][0] <= record.finished
        assert record.cached_tokens == record.prompt_tokens // 2
    assert not found.invalid
    assert found.scraped["before"] == {'stub_requests_total{kind="generated"}': 0}
    assert found.scraped["after"] == {'stub_requests_total{kind="generated"}': 12}
    assert (found.plan["owner"], found.plan["ignore_eos"]) == (dialect, True)


def test_the_servers_own_times_are_kept():
    assert run([]).records[0].timings == {"queue_ms": 1.5, "prefill_ms": 2.0, "decode_ms": 3.0}


FAULTS = [
    ("drop", ErrorClass.STREAM, "closed inside the answer"),
    ("cut", ErrorClass.STREAM, "without [DONE]"),
    ("stall", ErrorClass.STALL, "stalled: no byte"),
    ("double", None, "usage counts 10 output tokens; the stream had 11"),
    ("miscount", None, "usage counts 11 output tokens; the stream had 10"),
    ("miscount-prompt", None, "usage counts 61 prompt tokens; the prompt has 60"),
    ("sum", None, "total_tokens is the sum"),
    ("finish", None, "finish reason 'stop'"),
    ("no-finish", None, "after every choice has finished"),
    ("no-usage", None, "usage chunk before [DONE]"),
    ("after-done", None, "nothing follows the terminal event"),
    ("lost", None, "usage counts 10 output tokens; the stream had 9"),
]
LOOSE = {
    "sum": "does not add up",
    "no-finish": "no finish reason",
    "no-usage": "no usage",
    "after-done": "after [DONE]",
}


@pytest.mark.parametrize("dialect", ["headrace", "vllm"])
@pytest.mark.parametrize(("fault", "error", "said"), FAULTS, ids=[fault for fault, _, _ in FAULTS])
def test_every_fault_is_caught_and_counted_once(fault, error, said, dialect):
    only = plan().shape
    shape = replace(only, limit=6)
    found = run(["--fault", fault, "--every", "3", "--dialect", dialect], shape=shape, stall=0.3)
    said = LOOSE.get(fault, said) if dialect == "vllm" else said
    bad = [record for record in found.records if record.violations or record.error]
    assert len(bad) == 2, violations(found)
    for record in bad:
        assert record.error == error
        told = record.violations or [record.detail]
        assert any(said in one for one in told), told
        assert error is None or not record.violations
    assert all(record.ok for record in found.records if record not in bad)


def test_a_client_out_of_patience_blames_nobody_for_the_missing_end():
    found = run(["--fault", "stall", "--every", "3"], patience=0.5)
    late = [record for record in found.records if record.error is ErrorClass.TIMEOUT]
    assert late and all("not answered within 0.5 s" in record.detail for record in late)
    assert not violations(found)


@pytest.mark.parametrize(
    ("fault", "error", "detail"),
    [
        ("refuse", ErrorClass.STATUS, "not now"),
        ("error", ErrorClass.STREAM, "the engine died"),
        ("silent", ErrorClass.STREAM, "without an answer"),
        ("garbage", ErrorClass.STREAM, "not HTTP"),
    ],
)
def test_failures_have_a_class_and_a_reason(fault, error, detail):
    found = run(["--fault", fault, "--every", "4"])
    failed = [record for record in found.records if record.error is not None]
    assert len(failed) == 3
    assert {record.error for record in failed} == {error}
    assert all(detail in record.detail for record in failed)
    assert not [record for record in found.records if record.error is None and record.violations]


def test_double_sends_are_caught_where_the_server_gives_no_ids():
    found = run(["--fault", "double"], {"token_ids_up_to": 0})
    assert set(violations(found)) == {"usage counts 10 output tokens; the stream had 11 events with text"}


def test_an_event_that_is_lost_without_ids_is_caught_by_asking_again():
    found = run(["--fault", "lost"], {"token_ids_up_to": 0}, verify=4)
    assert sum("verify: another text from character" in violation for violation in violations(found)) == 4


def test_verify_finds_another_text_without_streaming():
    found = run(["--fault", "other-text", "--every", "1000"], verify=5)
    assert len(violations(found)) == 5
    assert all("verify: another text" in violation for violation in violations(found))


def test_tenants_and_priorities_are_sent_as_the_server_knows_them():
    requests = [
        TraceRequest(line=1, arrival=0.0, prompt_tokens=9, output_tokens=2, tenant="ada", priority=-2),
        TraceRequest(line=2, arrival=0.0, prompt_tokens=9, output_tokens=2),
    ]
    trace = Trace(name="t", format="f", requests=requests)
    for fields, refused in ((["user"], 1), (["priority"], 1), ([], 0)):
        found = run(["--refuse-fields", *fields], trace=trace, shape=LoadShape())
        assert sum("unknown field" in (record.detail or "") for record in found.records) == refused
        assert found.records[1].ok


def test_a_server_that_refuses_extensions_is_asked_without_them():
    fields = ["ignore_eos", "return_token_ids", "max_tokens"]
    found = run(["--dialect", "other", "--answer", "4", "--refuse-fields", *fields], {"endpoint": "chat"})
    assert not violations(found)
    assert {(record.finish_reason, record.output_tokens) for record in found.records} == {("stop", 4)}
    assert found.plan["ignore_eos"] is False
    with pytest.raises(TargetError, match="ignore_eos"):
        run(["--refuse-fields", "ignore_eos"], {"ignore_eos": True})


def test_without_a_tokenizer_lengths_are_estimated_only_if_told_so():
    with pytest.raises(PromptTokenizerError, match="gives no token ids"):
        run(["--no-tokenizer"])
    found = run(["--no-tokenizer"], {"characters_per_token": 4.0})
    assert not found.plan["exact_prompts"]
    assert not violations(found)


def test_texts_of_the_trace_are_counted_and_sent():
    trace = read_trace(DATA / "mt_bench.jsonl")
    found = run([], trace=trace, shape=LoadShape(arrivals=Poisson(100), max_output=3))
    assert not violations(found)
    assert [record.prompt_tokens for record in found.records] == [len(each.prompt.split()) for each in trace.requests]


def test_a_closed_loop_has_no_more_open_than_users():
    shape = LoadShape(limit=20, arrivals=Closed(3, 0.001), max_prompt=30, max_output=4)
    found = run(["--gap", "0.002"], shape=shape)
    assert len(found.records) == 20 and not violations(found)
    assert found.client["most_running"] <= 3
    assert found.client["connections"] <= 3
    ends = sorted([(record.sent, 1) for record in found.records] + [(record.finished, -1) for record in found.records])
    running = 0
    for _, change in ends:
        running += change
        assert running <= 3


def test_nobody_sends_before_he_means_to_so_that_no_time_is_too_short():
    shape = LoadShape(limit=20, arrivals=Closed(5, 0.01), max_prompt=30, max_output=2)
    found = run(["--ttft", "0.15"], shape=shape)
    assert all(record.sent >= record.intended for record in found.records)
    assert min(record.ttft for record in found.records) > 0.149, "a first request was sent 0.1 s before its time"
    assert found.client["lateness_max"] > 0, "users of a closed loop are late, too"


def shared(first, second):
    """Cached share, that which the requests share, and what is said of it, of the second of two runs on one server."""
    with stub("--prefix-cache") as url:
        runs = [replay(plan(**each), Target(base_url=url)) for each in (first, second)]
    return cached_share(runs[1]), runs[1].plan["shareable"], cautions(runs[1]), [run.plan["texts"] for run in runs]


def test_a_run_finds_nothing_of_an_earlier_one_in_the_cache():
    cached, shareable, said, (one, other) = shared({}, {})
    assert cached <= shareable < 0.05 and not said and one != other


def test_a_run_that_found_what_an_earlier_one_left_says_so():
    cached, shareable, said, (one, other) = shared({"texts": 5}, {"texts": 5})
    assert cached > 0.9 and shareable < 0.05 and one == other == 5
    assert said and "texts of an earlier run" in said[0]


def test_what_a_run_shares_with_itself_is_no_reason_to_doubt_it():
    trace = read_trace(DATA / "burstgpt_3.csv")
    shape = LoadShape(limit=40, arrivals=Poisson(200), max_prompt=60, max_output=2)
    cached, shareable, said, _ = shared({}, {"trace": trace, "shape": shape})
    assert 0.1 < cached <= shareable and not said


@pytest.mark.parametrize("after", [None, 0.05])
def test_clients_that_leave_are_no_failures_and_the_server_sees_them_go(after):
    shape = LoadShape(limit=40, arrivals=Poisson(400), max_prompt=20, max_output=10)
    objectives = {"default": Objective(e2e=60.0)}
    found = run(["--gap", "0.02"], shape=shape, cancel=0.5, cancel_after=after, objectives=objectives)
    left = [record for record in found.records if record.error is ErrorClass.LEFT]
    assert 10 < len(left) < 30 and all(not record.ok and not record.violations for record in left)
    received = [sum(count for _, count in record.tokens) for record in left]
    assert all(count < 10 for count in received) and sum(received) > 0
    assert all(record.ok for record in found.records if record not in left)
    summary = summarize(found)
    assert (summary.left, summary.failed, summary.errors, summary.attainment) == (len(left), 0, {}, 1.0)
    again = run(["--gap", "0.02"], shape=shape, cancel=0.5, cancel_after=after)
    assert [record.index for record in again.records if record.error is ErrorClass.LEFT] == [
        each.index for each in left
    ]


def test_an_open_loop_does_not_wait_for_the_server():
    trace = Trace(
        name="t",
        format="f",
        requests=[TraceRequest(line=n, arrival=n * 0.01, prompt_tokens=20, output_tokens=2) for n in range(30)],
    )
    found = run(["--ttft", "1"], trace=trace, shape=LoadShape())
    assert found.client["most_running"] == 30  # all sent before the first was answered
    assert min(record.ttft for record in found.records) > 0.9  # a loop's timer may be a tick early


def test_a_bound_on_what_is_open_makes_others_wait_and_their_latencies_count_it():
    requests = [TraceRequest(line=n, arrival=n * 0.001, prompt_tokens=20, output_tokens=2) for n in range(12)]
    found = run(["--ttft", "0.1"], trace=Trace(name="t", format="f", requests=requests), shape=LoadShape(), most=3)
    assert found.client["most_running"] == 3 and found.plan["max_concurrency"] == 3
    assert all(record.ok for record in found.records) and not found.invalid
    waited = sorted(record.sent - record.intended for record in found.records)
    # Four rounds of three, of which the last waits for three; less than their spacing is lost to a timer's tick.
    assert waited[-1] > 0.25 and max(record.ttft for record in found.records) > 0.35
    assert found.client["lateness_max"] < waited[-1], "to wait for a place is not the client's fault"


def test_a_client_that_cannot_keep_up_says_that_the_run_is_invalid():
    shape = LoadShape(limit=3000, arrivals=Poisson(1e6), max_prompt=30, max_output=1)
    found = run([], shape=shape, max_lateness=0.02)
    assert len(found.records) == 3000
    assert any("it sent requests more than 20 ms late" in reason for reason in found.invalid)
    assert found.client["lateness_p99"] > 0.02


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_is_reported_as_far_as_it_went(number):
    async def interrupted(url):
        task = asyncio.create_task(
            run_replay(plan(shape=LoadShape(arrivals=Poisson(20), duration=60)), Target(base_url=url))
        )
        async with httpx.AsyncClient() as client:
            sent = 0
            while sent < 10:
                await asyncio.sleep(0.05)
                answer = await client.get(url.replace("/v1", "/metrics"))
                sent = int(answer.text.split()[-1])
        signal.raise_signal(number)
        return await task

    with stub("--gap", "0.01") as url:
        found = asyncio.run(interrupted(url))
    assert found.invalid and "interrupted after" in found.invalid[0]
    assert 0 < len(found.records) < 1200
    assert {record.error for record in found.records} <= {None, ErrorClass.CLIENT}


def test_a_signal_after_the_load_loses_nothing():
    kept = []

    def keep(found):
        signal.raise_signal(signal.SIGTERM)
        kept.append(found)

    before = signal.getsignal(signal.SIGTERM)
    found = run([], keep=keep)
    assert kept == [found] and not found.invalid and all(record.ok for record in found.records)
    assert signal.getsignal(signal.SIGTERM) is before


def test_no_server_and_no_such_model_are_said_before_the_run():
    with pytest.raises(TargetError, match="cannot be reached"):
        replay(plan(), Target(base_url="http://127.0.0.1:9/v1"))
    with pytest.raises(TargetError, match="no model 'x' there; it has stub"):
        run([], {"model": "x"})


def test_what_is_longer_than_the_context_is_told_apart_and_not_sent(monkeypatch):
    requests = [
        TraceRequest(line=n, arrival=0.0, prompt_tokens=999_999_999 if n % 2 else 20, output_tokens=2) for n in range(6)
    ]
    trace = Trace(name="t", format="f", requests=requests)
    made, prompt = [], Prompts.prompt
    monkeypatch.setattr(Prompts, "prompt", lambda self, each: made.append(each.prompt_tokens) or prompt(self, each))
    found = run(["--context", "65"], trace=trace, shape=LoadShape())
    assert made == [20] * 3, "a text of a billion tokens takes 9 GB"
    assert [record.fits for record in found.records] == [True, False] * 3
    assert all(record.ok == record.fits and (record.sent is None) != record.fits for record in found.records)
    assert found.plan["context"] == 65 and found.scraped["after"] == {'stub_requests_total{kind="generated"}': 3}
    summary = summarize(found)
    assert (summary.whole, summary.unfit, summary.failed) == (3, 3, 0) and not summary.errors


def test_a_trace_of_which_nothing_fits_is_refused():
    shape = replace(plan().shape, max_prompt=None)
    with pytest.raises(TargetError, match=r"tokens are more than the context of 20.*--max-prompt"):
        run(["--context", "20"], shape=shape)


def test_a_run_comes_back_from_its_file(tmp_path):
    found = run([])
    write_run(found, tmp_path / "run.json")
    again = read_run(tmp_path / "run.json")
    events = [(at, count) for record in found.records for at, count in record.tokens]
    kept = [(pytest.approx(at, abs=1e-6), count) for record in again.records for at, count in record.tokens]
    assert events == kept
    assert (again.plan, again.client, again.problems) == (found.plan, found.client, found.problems)


def test_the_same_seed_asks_the_same():
    first, second = run([]), run([])
    assert [(each.intended, each.asked_prompt, each.asked_output) for each in first.records] == [
        (each.intended, each.asked_prompt, each.asked_output) for each in second.records
    ]


VECTORS = {"endpoint": "embeddings"}


def test_embeddings_have_an_end_and_no_tokens_in_time():
    found = run([], VECTORS, objectives={"default": Objective(e2e=60.0)})
    assert len(found.records) == 12 and all(record.ok and not record.violations for record in found.records)
    assert all(record.prompt_tokens == record.asked_prompt and record.asked_output == 0 for record in found.records)
    summary = summarize(found)
    assert set(summary.latencies) == {"e2e", "lateness"} and summary.attainment == 1.0 and summary.prompt_rate > 0


@pytest.mark.parametrize(
    ("fault", "said"),
    [("lost", "no vector"), ("garbage", "no vector"), ("miscount-prompt", "prompt tokens; the prompt has")],
)
def test_a_vector_that_is_none_is_caught(fault, said):
    found = run(["--fault", fault, "--every", "4"], VECTORS)
    bad = [record for record in found.records if record.error or record.violations]
    assert len(bad) == 3 and all(said in (record.violations or [record.detail])[0] for record in bad)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"objectives": {"default": Objective(ttft=1.0)}}, "e2e=100ms"),
        ({"verify": 1}, "--verify"),
        ({"breaks": 1}, "--breaks"),
    ],
)
def test_what_a_vector_cannot_have_is_refused(more, said):
    with pytest.raises(TargetError, match=said):
        replay(plan(**more), Target(base_url="http://127.0.0.1:9/v1", endpoint="embeddings"))
