"""Every metric of the server, each declared once. Names carry their unit and never change silently.

`python -m server.telemetry.metrics > docs/metrics.md` writes the page; a test compares the two. What is reported about a
sequence comes from its `Lifetime`, what is reported about an engine from its messages.
"""

import functools
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from types import SimpleNamespace
from typing import Literal, cast, get_args

from prometheus_client import Info
from prometheus_client.core import Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from configs.roles import ROLES
from scheduler.router.deadlines import Outcome
from scheduler.types.messages import EngineStats, FinishReason, Ready, StartPhase, StepOutputs, TierStats
from server.errors import ApiError, DeadlineRefused
from server.telemetry.batches.metrics import BatchMetrics
from server.telemetry.canary import CanaryMetrics
from server.telemetry.declared import FROM_1_MS, Declared
from server.telemetry.engine_stats import EngineCollector
from server.telemetry.exposition import accepted
from server.telemetry.gen_ai import GenAiMetrics
from server.telemetry.hand_overs import HandOverMetrics
from server.telemetry.lifetime import Exchange, Lifetime
from server.telemetry.processes import HttpProcessCollector, HttpProcessFigures, KeeperCollector, KeeperFigures
from server.telemetry.tenants import ANYBODYS, KeyMetrics, TenantMetrics

StreamEnd = Literal["delivered", "expired", "overrun", "deleted", "stopped"]  # why a resumable stream is kept no longer

_WHOLE_REQUEST = (*FROM_1_MS, 600.0, 1800.0)  # an answer may take longer than any of its parts
_TOKENS = tuple(float(2**power) for power in range(0, 18))


@functools.cache  # it stands in a file, which there may be no descriptor for later
def server_version() -> str:
    """The installed distribution's version, or "unknown" if it is not installed."""
    try:
        return version("headrace")
    except PackageNotFoundError:
        return "unknown"


def error_codes(base: type[ApiError]) -> set[str]:
    """The codes of this error and of all errors derived from it."""
    return {base.code}.union(*(error_codes(child) for child in base.__subclasses__()))


class EngineMetrics(Declared):
    """The metrics of one engine, and the events that feed them. Its registry knows nothing of the server's other engines."""

    def __init__(self) -> None:
        super().__init__()
        self._stats = EngineCollector()
        self._pid: int | None = None
        self.registry.register(self._stats)
        self._step_seconds = self._frequent_histogram("step_seconds", "Duration of one engine step.")
        self._step_tokens = self._frequent_histogram("step_tokens", "Tokens computed by one engine step.", _TOKENS)
        self._restarts = self._counter("engine_restarts", "Times it was started again, after a death or as asked.")
        self._replayed = self._counter(
            "replayed_requests", "Sequences that this engine took over, or back, because the one that had them ended."
        )
        self._up = self._gauge("engine_up", "1 while the engine works, drained or not: it is ready and nothing hangs.")
        self._role = self._gauge("engine_role", "1 for the role that the engine has, 0 for the others.", "role")
        self.follow_role(lambda: "mixed")
        self._role_switches = self._counter(
            "role_switches",
            "Times the server changed its role: to which, and the phase that was behind.",
            "role",
            "behind",
        )
        for phase in ("prefill", "decode"):
            self._role_switches.labels(phase, phase)
        self._start = self._gauge("engine_start_seconds", "From the start of the engine's process until it was ready.")
        self._phases = self._gauge(
            "startup_phase_seconds", "Duration of each phase of the engine's last start.", "phase"
        )
        self._build = Info("headrace_build", "What runs: version, Python, device.", registry=self.registry)
        self._built("")
        ProcessCollector("headrace_engine", pid=lambda: self._pid or "none", registry=self.registry)

    def _built(self, device: str) -> None:
        self._build.info({"version": server_version(), "python": platform.python_version(), "device": device})

    def step_ended(self, event: StepOutputs) -> None:
        """One engine step, or a report between steps (which has no tokens)."""
        self._stats.stats = event.stats
        if event.step_tokens:
            self._step_seconds.observe(event.step_seconds)
            self._step_tokens.observe(event.step_tokens)

    def phase_ended(self, phase: StartPhase) -> None:
        """One start-up phase."""
        self._phases.labels(phase.name).set(phase.seconds)

    def attached(self, pid: int) -> None:
        """The engine's process was started."""
        self._pid = pid
        self._phases.clear()

    def ready(self, ready: Ready, seconds: float) -> None:
        """It takes requests, `seconds` after its start."""
        self._up.set(1)
        self._start.set(seconds)
        self._built(ready.device)

    def answers(self, answers: bool) -> None:
        """It begins to hang, or no longer does."""
        self._up.set(answers)

    def follow_role(self, role: Callable[[], str]) -> None:
        """What it is meant for is what this says."""
        for each in ROLES:
            self._role.labels(each).set_function(functools.partial(lambda name: float(role() == name), each))

    def role_switched(self, role: str, behind: str) -> None:
        """The server has changed its role, as this phase was behind."""
        self._role_switches.labels(role, behind).inc()

    def detached(self) -> None:
        """It ended."""
        self._up.set(0)
        self._pid = None
        self._stats.engine_ended()

    def restarted(self) -> None:
        """It is about to be started again."""
        self._restarts.inc()

    def replayed(self) -> None:
        """It goes on with a sequence of an engine that ended."""
        self._replayed.inc()


class EnginesCollector(Collector):
    """The metrics of all engines. Where there are several, their series have a label `engine`; a single engine's have none."""

    def __init__(self) -> None:
        self.by_name: dict[str, EngineMetrics] = {}

    def collect(self) -> Iterable[Metric]:
        """The families, each once, with the samples of all engines."""
        if len(self.by_name) == 1:
            yield from next(iter(self.by_name.values())).registry.collect()
            return
        families: dict[str, Metric] = {}
        for name, engine in self.by_name.items():
            for family in engine.registry.collect():
                merged = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                labelled = (sample._replace(labels={"engine": name, **sample.labels}) for sample in family.samples)
                merged.samples.extend(labelled)
        yield from families.values()


class Metrics(Declared):
    """The registry of one server and the events that feed it.

    Attributes:
        hand_overs: those of requests from engine to engine.
        canary, gen_ai, batches: what the canary found; those that have the names of OpenTelemetry's conventions; files and batches.
        tenants, keys: what each tenant, and each key of a file of keys, uses.
        on_end: told of each sequence that has ended, whoever wants to know.

    Args:
        tenants: weights by name of those with a key; none where no keys are required.
    """

    def __init__(self, tenants: Mapping[str, float] | None = None) -> None:
        super().__init__()
        self.on_end: Callable[[Lifetime], None] = lambda _: None
        self._engines = EnginesCollector()
        self.registry.register(self._engines)
        self._declare_requests()
        self.tenants = TenantMetrics(self.registry, tenants or {})
        self.keys = KeyMetrics(self.registry)
        self._declare_streams()
        self.hand_overs = HandOverMetrics(self.registry)
        self.canary = CanaryMetrics(self.registry)
        self.gen_ai = GenAiMetrics(self.registry)
        self.batches = BatchMetrics(self.registry)
        ProcessCollector("headrace_server", registry=self.registry)

    def engine(self, name: str) -> EngineMetrics:
        """The metrics of the engine of this name, made when they are first asked for."""
        return self._engines.by_name.setdefault(name, EngineMetrics())

    def _declare_requests(self) -> None:
        self._finished = self._counter("sequences_finished", "Sequences that ended, by reason.", "reason")
        self._errors = self._counter("request_errors", "HTTP requests answered with an error, by error code.", "code")
        self._deadlines = self._counter(
            "deadlines",
            "Sequences with a deadline, by what became of it; those refused at once count once a request.",
            "outcome",
        )
        self._queue = self._histogram("queue_time_seconds", "From received to first scheduled.")
        self._ttft = self._histogram("time_to_first_token_seconds", "From received to the first token.")
        self._gap = self._frequent_histogram(
            "inter_token_latency_seconds", "Between two tokens of one sequence, as they arrive."
        )
        self._tpot = self._histogram(
            "time_per_output_token_seconds", "Mean over one sequence, without the first token."
        )
        self._whole = self._histogram("request_seconds", "From received to the end of the sequence.", _WHOLE_REQUEST)
        self._prompt = self._histogram("request_prompt_tokens", "Prompt tokens of one sequence.", _TOKENS)
        self._completion = self._histogram("request_generation_tokens", "Tokens generated for one sequence.", _TOKENS)
        for reason in FinishReason:  # a series that exists from the start has a rate from the start
            if reason is not FinishReason.HANDED_OVER:
                self._finished.labels(reason.value)
        for outcome in Outcome:
            self._deadlines.labels(outcome.value)
        for code in error_codes(ApiError):
            self._errors.labels(code)

    def _declare_streams(self) -> None:
        self._streams = self._gauge(
            "resumable_streams", "Resumable streams that are kept: open ones, and those that have ended of late."
        )
        self._stream_bytes = self._gauge("resumable_stream_bytes", "Memory that their events take.")
        self._resumed = self._counter("streams_resumed", "Connections that went on with a resumable stream.")
        self._streams_ended = self._counter(
            "resumable_streams_ended",
            "Resumable streams that are kept no longer: `delivered`, read to the end; `expired`, as nobody came back; `overrun`, "
            "as too much waited for the client; `deleted` by the client; `stopped` with the server.",
            "end",
        )
        for end in get_args(StreamEnd):
            self._streams_ended.labels(end)

    # --- events ---

    def watch_streams(self, kept: Callable[[], int], held: Callable[[], int]) -> None:
        """Show how many resumable streams are kept, and how many bytes they hold."""
        self._streams.set_function(kept)
        self._stream_bytes.set_function(held)

    def watch_keepers(self, figures: Callable[[], Mapping[str, KeeperFigures]]) -> None:
        """Show whether keepers of KV tiers work, how often each was started again by why, and the process of this machine's.

        `figures`: of each, by the address of its node; that of this machine has none.
        """
        KeeperCollector(figures, self.registry)

    def watch_http_processes(self, figures: Callable[[], Sequence[HttpProcessFigures]]) -> None:
        """Show how each of several HTTP processes is doing."""
        self.registry.register(HttpProcessCollector(figures))

    def stream_resumed(self) -> None:
        """A connection goes on with a resumable stream."""
        self._resumed.inc()

    def stream_ended(self, end: StreamEnd) -> None:
        """A resumable stream is kept no longer."""
        self._streams_ended.labels(end).inc()

    def sequence_begun(self, tenant: str) -> None:
        """A sequence of this tenant was given to an engine."""
        self.tenants.sequence_begun(tenant)

    def sequence_ended(self, lifetime: Lifetime, tenant: str = ANYBODYS) -> None:
        """Absorb a whole lifetime, once, at its end."""
        self.on_end(lifetime)
        self.tenants.sequence_ended(tenant, lifetime)
        self._finished.labels((lifetime.reason or FinishReason.ERROR).value).inc()
        if (outcome := lifetime.promise_kept()) is not None:
            self._deadlines.labels(outcome.value).inc()
        self._prompt.observe(lifetime.prompt_tokens)
        self._completion.observe(lifetime.completion_tokens)
        if not lifetime.timed:
            return
        if lifetime.finished is not None:
            self._whole.observe(lifetime.finished - lifetime.received)
        if lifetime.scheduled is not None:
            self._queue.observe(max(0.0, lifetime.scheduled - lifetime.received))
        if lifetime.first_token is None or lifetime.last_token is None:
            return
        self._ttft.observe(lifetime.first_token - lifetime.received)
        if lifetime.completion_tokens > 1:
            self._tpot.observe((lifetime.last_token - lifetime.first_token) / (lifetime.completion_tokens - 1))

    def tokens_arrived(self, gap: float | None, sequences: int = 1) -> None:
        """The next token of so many sequences arrived, `gap` seconds after the one before; None: it is their first."""
        if gap is not None and sequences:
            self._gap.observe(gap, sequences)

    def request_failed(self, code: str, tenant: str | None = None) -> None:
        """A client got an error, in the answer or within a stream. `tenant`: None if it is not known who it was."""
        self._errors.labels(code).inc()
        if code == DeadlineRefused.code:
            self._deadlines.labels(Outcome.REFUSED.value).inc()
        if tenant is not None:
            self.tenants.request_failed(tenant)

    def render(self, accept: str) -> tuple[bytes, str]:
        """Body and content type of `/metrics`: OpenMetrics where `accept` asks for it, else the Prometheus text format."""
        form = accepted(accept)
        return form.encode(self.registry), form.content_type


# --- docs/metrics.md ---

_HEAD = """# Metrics

Generated from the registry by `python -m server.telemetry.metrics > docs/metrics.md`; a test compares the two.
`GET /metrics` answers in the Prometheus text format, or in OpenMetrics if the client accepts it. Times are in seconds.
The counters of an engine continue across its restarts. If a server has several engines, their metrics have one more label,
`engine`: the engine's name. If its engines are on several machines, those of keepers have a label `node`: the machine's address.
Values of labels come from the code, from settings (names of engines and of API keys) and from the cluster, never from a request, so
no client can make series. Process metrics exist on Linux only.
Dashboards and alerts: [operations.md](operations.md#watching-it).

| name | type | labels | what |
|---|---|---|---|"""


def every_family(engines: Sequence[str]) -> list[Metric]:
    """The families of a server with these engines, each with a sample of every series that it may have."""
    metrics = Metrics()
    # Any process: the families are the same.
    keeper = SimpleNamespace(up=True, restarts={"died": 0, "hung": 0}, pid=1)
    nodes = [""] if len(engines) == 1 else ["", "10.0.0.1"]
    metrics.watch_keepers(lambda: dict.fromkeys(nodes, cast(KeeperFigures, keeper)))
    http = HttpProcessFigures(name="http-0", up=True, restarts=0, connections=0, cpu_seconds=0.0)
    metrics.watch_http_processes(lambda: [http])
    for name in engines:
        engine = metrics.engine(name)
        engine.attached(pid=1)
        engine.phase_ended(StartPhase(name="load", seconds=1.0))
        engine.step_ended(StepOutputs(outputs=[], stats=EngineStats(tiers={"host": TierStats()})))
    lifetime = Lifetime(received=0.0, first_token=1.0, last_token=2.0, completion_tokens=2)
    exchange = Exchange(request_id="", received=0.0, operation="chat", model="model", lifetimes=[lifetime])
    metrics.gen_ai.request_ended(exchange, now=2.0)
    metrics.keys.known("name")
    metrics.keys.request_limited("name", "tokens_per_minute")
    metrics.keys.file_reread()
    return list(metrics.registry.collect())


def page() -> str:
    """The text of docs/metrics.md."""
    rows = [_row(family) for family in every_family(["engine"])]
    buckets = ", ".join(f"{bound:g}" for bound in FROM_1_MS)
    further = " and ".join(f"{bound:g}" for bound in _WHOLE_REQUEST[len(FROM_1_MS) :])
    last = f"Buckets of latencies: {buckets}; `headrace_request_seconds` has {further} as well."
    return "\n".join([_HEAD, *sorted(rows), "", last])


def _row(family: Metric) -> str:
    name = family.name + {"counter": "_total", "info": "_info"}.get(family.type, "")
    labels = sorted({label for sample in family.samples for label in sample.labels} - {"le"})
    shown = ", ".join(f"`{label}`" for label in labels) or "–"
    return f"| `{name}` | {family.type} | {shown} | {family.documentation} |"


if __name__ == "__main__":
    print(page())
