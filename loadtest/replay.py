"""A run from beginning to end: ask the target, plan, load it, read the answers, verify some of them."""

import asyncio
import json
import secrets
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from urllib.parse import urlsplit

from loadtest.client.annotations import Grafana, marked
from loadtest.client.breaks import Breaks
from loadtest.client.http1 import ConnectionPool
from loadtest.client.judge import Expected, judge
from loadtest.client.leaving import Leaving
from loadtest.client.progress import shown
from loadtest.client.scrape import scrape
from loadtest.client.sender import Build, BuiltRequest, Driver
from loadtest.client.streams import StreamedAnswer
from loadtest.client.target import Known, Target, TargetError, meet, request_body
from loadtest.client.usage import usage_of
from loadtest.client.vectors import judge_vector
from loadtest.client.verify import sampled, verify
from loadtest.report.records import MEASURED, LoadRun, Objective, RequestRecord, interrupted, measured_window, unfit
from loadtest.report.trust import SHAREABLE
from loadtest.stops import heeded
from loadtest.workload.plan import LoadShape, Plan, Planned, make_plan
from loadtest.workload.prompts import Prompts
from loadtest.workload.sharing import Shared
from loadtest.workload.traces import Trace
from loadtest.workload.vocabulary import PromptTokenizerError

_MOST_TOKENS = (
    1 << 24
)  # of a request, where the target does not tell its context: beyond any, and its text would fill the memory


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayPlan:
    """A run, except for the server it goes to.

    Attributes:
        objectives: by class; `default` for the others.
        patience: seconds that a request may take.
        stall: seconds without a byte after which a stream is given up.
        max_lateness: seconds that the client may be late (p99) before the run is invalid.
        verify: how many answers to ask for again.
        breaks: how often each stream's connection is broken, to be resumed.
        cancel: share of the requests whose clients leave before the answer is complete.
        cancel_after: seconds after which they leave; None: at a random place of the answer.
        most: requests that may be open at once; further ones wait, and their latencies count from when they were due.
        live: whether to show progress on stderr.
        grafana: where the run is marked, if anywhere.
        texts: seed of the prompts' texts; None: drawn, so that a run finds nothing of an earlier one in the server's cache.
        server_pid: process whose use of the machine is sampled, with all below it; None: none.
        keep: called with the finished run, which a signal does not lose from then on.
    """

    trace: Trace
    shape: LoadShape = field(default_factory=LoadShape)
    objectives: dict[str, Objective] = field(default_factory=dict)
    label: str = ""
    patience: float = 600.0
    stall: float = 60.0
    max_lateness: float = 0.02
    verify: int = 0
    breaks: int = 0
    cancel: float = 0.0
    cancel_after: float | None = None
    most: int | None = None
    live: bool = False
    grafana: Grafana | None = None
    texts: int | None = None
    server_pid: int | None = None
    keep: Callable[[LoadRun], None] = lambda _: None


def replay(plan: ReplayPlan, target: Target) -> LoadRun:
    """`run_replay` for callers without an event loop; raises the same errors."""
    try:
        import uvloop
    except ImportError:  # not on every platform
        return asyncio.run(run_replay(plan, target))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(run_replay(plan, target))


async def run_replay(plan: ReplayPlan, target: Target) -> LoadRun:
    """Load `target` as `plan` says and return the run. Ctrl-C and SIGTERM end the load early and mark the run invalid.

    Raises:
        ArrivalError: the plan has nothing to send.
        TargetError: the target cannot be reached or refuses the plainest request.
        PromptTokenizerError: the target does not tell the lengths of prompts.
    """
    work = make_plan(plan.trace, plan.shape)
    if target.endpoint == "embeddings":
        work = _vectors(plan, work)
    async with target.client() as client:
        known = await meet(target, client)
        work = await _counted(work, known, target)
        sent, unfit = _fitting(work, known.context)
        texts = secrets.randbits(31) if plan.texts is None else plan.texts
        prompts = Prompts(known.vocabulary, texts)
        pool = ConnectionPool(target.base_url)
        await pool.resolve()
        driver = Driver(
            pool,
            sent,
            _builder(target, known, prompts, resumable=plan.breaks > 0),
            patience=plan.patience,
            stall=plan.stall,
            breaks=_breaks(plan, target, known, pool),
            leaving=Leaving(plan.cancel, plan.cancel_after, plan.shape.seed) if plan.cancel else None,
            most=plan.most,
        )
        with _stoppable(driver):
            before, started = await scrape(client, target.root), time.time()
            async with marked(plan.grafana, _title(plan, known, work, target)) as mark:
                with shown(driver, plan.live), usage_of(plan.server_pid) as usage:
                    await driver.run()
                mark.outcome = f"{driver.live.done} ended, {driver.live.failed} of them failed"
            await pool.close()
            scraped = {"before": before, "after": await scrape(client, target.root)}
            records, answers = _judged(driver, work, known, target)
            run = _run(
                plan,
                target,
                known,
                work=replace(work, described=work.described | {"texts": texts}),
                driver=driver,
                records=sorted([*records, *unfit], key=lambda record: record.index),
                started=started,
                scraped=scraped,
                usage=usage,
            )
            plan.keep(run)
        if plan.verify and not driver.interrupted:
            chosen = sampled(records, plan.verify, plan.shape.seed)
            again = {
                each.index: (each, prompts.prompt(work.requests[each.index]).text, answers[each.index])
                for each in chosen
                if each.index in answers
            }
            await verify(client, target, known, again, patience=plan.patience)
            plan.keep(run)
    return run


def _vectors(plan: ReplayPlan, work: Plan) -> Plan:
    """The plan without answers of tokens. Raises TargetError for what only they can have."""
    if any(bound is not None for each in plan.objectives.values() for bound in (each.ttft, each.tpot)):
        raise TargetError("a vector has no first token and no time between tokens: give --slo e2e=100ms")
    if plan.verify or plan.breaks:
        raise TargetError("--verify and --breaks are for streams of text, and an embedding is none")
    return replace(work, requests=[replace(each, output_tokens=0) for each in work.requests])


def _fitting(work: Plan, context: int | None) -> tuple[Plan, list[RequestRecord]]:
    """What can be sent, and records of what is longer than the context. Raises TargetError if nothing fits."""
    fitting: list[Planned] = []
    unfit_records: list[RequestRecord] = []
    for each in work.requests:
        record = RequestRecord(
            index=each.index,
            intended=each.intended,
            asked_prompt=each.prompt_tokens,
            asked_output=each.output_tokens,
            klass=each.klass,
            session=each.session,
        )
        if unfit(record, _MOST_TOKENS if context is None else context):
            unfit_records.append(record)
        else:
            fitting.append(each)
    if not fitting:
        raise TargetError(
            f"{unfit_records[0].detail}: no request fits; --scale, --max-prompt and --max-output shorten them"
        )
    return replace(work, requests=fitting), unfit_records


def _title(plan: ReplayPlan, known: Known, work: Plan, target: Target) -> str:
    """What a mark of the run says while it is under way."""
    return f"{plan.label or known.model}: {len(work.requests)} requests to {target.base_url}"


async def _counted(work: Plan, known: Known, target: Target) -> Plan:
    """The plan with the trace's own texts counted by the tokenizer, if the model gets nothing but the text."""
    texts = {each.prompt for each in work.requests if each.prompt is not None}
    if not texts or known.tokenizer is None or target.endpoint == "chat":
        return work
    counts: dict[str | None, int] = {}
    for text in texts:
        with suppress(PromptTokenizerError):  # too long for the server to count: it will refuse the request as well
            counts[text] = len(await known.tokenizer.ids(text))
    requests = [
        replace(each, prompt_tokens=counts.get(each.prompt, 0)) if each.prompt is not None else each
        for each in work.requests
    ]
    return replace(work, requests=requests)


def _breaks(plan: ReplayPlan, target: Target, known: Known, pool: ConnectionPool) -> Breaks | None:
    """What breaks connections. Raises TargetError: the target's streams cannot be resumed."""
    if not plan.breaks:
        return None
    if plan.cancel:
        raise TargetError("--breaks resumes streams that --cancel leaves: give one of them")
    if not known.own_grammar:
        raise TargetError(f"breaks need headrace's resumable streams, and the target says it is {known.owner}")
    path, headers = urlsplit(target.api).path, _headers(target)

    def request(stream: str, number: int) -> bytes:
        return f"GET {path}/streams/{stream} HTTP/1.1\r\n{headers}Last-Event-ID: {number}\r\n\r\n".encode()

    return Breaks(pool, request, plan.breaks, plan.shape.seed)


def _headers(target: Target) -> str:
    """Those of every request for a stream."""
    headers = f"Host: {urlsplit(target.url).netloc}\r\nAccept: text/event-stream\r\nUser-Agent: headrace-loadtest\r\n"
    return headers + (f"Authorization: Bearer {target.api_key}\r\n" if target.api_key else "")


def _builder(target: Target, known: Known, prompts: Prompts, *, resumable: bool) -> Build:
    path = urlsplit(target.url).path
    head = f"POST {path} HTTP/1.1\r\n{_headers(target)}Content-Type: application/json\r\n"
    asked: dict[str, object] = {"resumable": True} if resumable else {}

    def build(planned: Planned) -> BuiltRequest:
        prompt = prompts.prompt(planned)
        ids = known.token_ids and prompt.tokens <= target.token_ids_up_to
        whose = {"user": planned.tenant} if planned.tenant is not None else {}
        first = {"priority": planned.priority} if planned.priority else {}
        fields = request_body(target, known, prompt.text, planned.output_tokens, ids=ids)
        body = json.dumps(fields | asked | whose | first).encode()
        return BuiltRequest(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body, prompt.tokens)

    return build


def _judged(
    driver: Driver, work: Plan, known: Known, target: Target
) -> tuple[list[RequestRecord], dict[int, StreamedAnswer]]:
    """The completed records, and what the complete answers said, by index."""
    records: list[RequestRecord] = []
    answers: dict[int, StreamedAnswer] = {}
    for record, raw in driver.answers():
        counted = record.asked_prompt if known.vocabulary.exact and record.asked_prompt else None
        given = work.requests[record.index].prompt is not None
        expected = Expected(
            kind="chat" if target.endpoint == "chat" else "completion",
            own_grammar=known.own_grammar,
            prompt_tokens=None if given and target.endpoint == "chat" else counted,
            output_tokens=record.asked_output,
            only_length=known.ends_only_by_length,
        )
        records.append(record)
        if target.endpoint == "embeddings":
            judge_vector(record, raw, expected)
            continue
        answer = judge(record, raw, expected)
        if answer is not None and record.ok:
            answers[record.index] = answer
    return records, answers


@contextmanager
def _stoppable(driver: Driver) -> Iterator[None]:
    """While the block runs, Ctrl-C, SIGTERM or a closed terminal end the load; what has come is kept."""
    loop = asyncio.get_running_loop()
    before = {each: signal.getsignal(each) for each in heeded()}
    try:
        for each in before:
            loop.add_signal_handler(each, driver.stop)
    except (NotImplementedError, RuntimeError, ValueError):  # no signals here: another platform, or not the main thread
        yield
        return
    try:
        yield
    finally:
        for each, handler in before.items():
            loop.remove_signal_handler(each)
            signal.signal(each, handler)


def _run(
    plan: ReplayPlan,
    target: Target,
    known: Known,
    *,
    work: Plan,
    driver: Driver,
    records: list[RequestRecord],
    started: float,
    scraped: dict[str, dict[str, float]],
    usage: dict[str, float],
) -> LoadRun:
    invalid = driver.health.doubts(plan.max_lateness)
    if driver.interrupted:
        invalid.append(interrupted(len(records), len(work.requests)))
    begin = min((record.intended for record in records), default=0.0)
    described = work.described | {
        "endpoint": target.endpoint,
        "model": known.model,
        "owner": known.owner,
        "ignore_eos": known.ignore_eos,
        "exact_prompts": known.vocabulary.exact,
        "patience": plan.patience,
        "stall": plan.stall,
        "verify": plan.verify,
        "breaks": plan.breaks,
        "cancel": plan.cancel,
        "cancel_after": plan.cancel_after,
        "max_concurrency": plan.most,
        "context": known.context,
        SHAREABLE: _shareable(work, known, records),
        MEASURED: measured_window(plan.shape.warm_up, plan.shape.cool_down, records),
    }
    return LoadRun(
        label=plan.label or known.model,
        target=target.base_url,
        started=started,
        duration=max((record.finished or 0.0 for record in records), default=0.0) - begin,
        plan=described,
        records=records,
        objectives=dict(plan.objectives),
        invalid=invalid,
        problems=work.problems,
        scraped=scraped if any(scraped.values()) else {},
        client=driver.health.summary(),
        server=usage,
    )


def _shareable(work: Plan, known: Known, records: list[RequestRecord]) -> float | None:
    """The share of the answered prompts' tokens that earlier requests of the run begin with; None if their lengths are unknown."""
    shared, answered = Shared(known.vocabulary.base), {record.index: record for record in records if record.ok}
    found = total = 0
    for each in work.requests:
        record = answered.get(each.index)
        length = each.prompt_tokens if record is None else record.prompt_tokens or each.prompt_tokens
        tokens = shared.tokens(each, length)
        if record is not None:
            found, total = found + tokens, total + length
    return found / total if total else None
