"""Recording rules and alerts, as data; `server/monitoring/files.py` writes them down.

An alert is one or more measures, each with a bound, all of which must be crossed. So a measure can be asked for by itself: of
a healthy server it is a number, where the alert's own expression has no value until it fires.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from server.errors import ApiError
from server.monitoring.catalog import TARGET, Catalog
from server.monitoring.promql import check

TTFT_BOUND = 2.5  # seconds; a bound of the histogram's buckets
TTFT_GOAL = 0.95  # share of sequences whose first token comes within it
_BY_ENGINE = "instance, job, engine"
_WINDOWS = ("5m", "30m", "1h", "6h")


@dataclass(frozen=True, slots=True)
class Recording:
    """An expression under a name of its own, so that alerts need not compute it each time."""

    name: str
    expression: str


@dataclass(frozen=True, slots=True)
class Measure:
    """An expression and its bound, such as `> 0.95`."""

    expression: str
    bound: str

    @property
    def crossed(self) -> str:
        """The expression that has a value while the bound is crossed."""
        return f"{self.expression} {self.bound}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """All measures crossed for `wait`. `severity`: `critical` wakes somebody, `warning` can wait for the morning."""

    name: str
    measures: Sequence[Measure]
    wait: str
    severity: str
    summary: str
    what_to_do: str
    matching: str = "and"

    @property
    def expression(self) -> str:
        """What Prometheus evaluates."""
        return f" {self.matching} ".join(measure.crossed for measure in self.measures)

    def rule(self) -> dict[str, Any]:
        """As Prometheus reads it."""
        return {
            "alert": self.name,
            "expr": self.expression,
            "for": self.wait,
            "labels": {"severity": self.severity},
            "annotations": {"summary": self.summary, "description": self.what_to_do},
        }


def _ttft_missed(window: str) -> str:
    """Share of sequences whose first token came too late."""
    late = f'rate(headrace_time_to_first_token_seconds_bucket{{le="{TTFT_BOUND}"}}[{window}])'
    return (
        f"1 - sum by (instance, job) ({late})"
        f" / (sum by (instance, job) (rate(headrace_time_to_first_token_seconds_count[{window}])) > 0)"
    )


def _rate(series: str, by: str = "instance, job", over: str = "5m") -> str:
    return f"sum by ({by}) (rate({series}[{over}]))"


def _errors_of_ours() -> str:
    """A matcher of the codes whose HTTP status says that the server is to blame."""
    codes = sorted({error.code for error in _every_error(ApiError) if error.status >= 500})
    return f'code=~"{"|".join(codes)}"'


def _every_error(base: type[ApiError]) -> list[type[ApiError]]:
    return [base, *(error for child in base.__subclasses__() for error in _every_error(child))]


_FAILED = _rate(f"headrace_request_errors_total{{{_errors_of_ours()}}}")
RECORDINGS = (
    *(Recording(f"instance:headrace_ttft_missed:ratio_rate{window}", _ttft_missed(window)) for window in _WINDOWS),
    Recording("instance:headrace_sequences_waiting:sum", "sum by (instance, job) (headrace_sequences_waiting)"),
    Recording("instance:headrace_sequences_running:sum", "sum by (instance, job) (headrace_sequences_running)"),
    Recording("instance:headrace_generation_tokens:rate5m", _rate("headrace_generation_tokens_total")),
    Recording(
        "instance:headrace_prefix_hits:ratio_rate5m",
        f"{_rate('headrace_prefix_hit_tokens_total')} / ({_rate('headrace_prefix_query_tokens_total')} > 0)",
    ),
    Recording(
        "engine:headrace_kv_used:ratio",
        f'sum by ({_BY_ENGINE}) (headrace_kv_blocks{{state="used"}}) / (sum by ({_BY_ENGINE}) (headrace_kv_pool_blocks) > 0)',
    ),
    Recording(
        "instance:headrace_failed:ratio_rate5m",
        f"{_FAILED} / ({_FAILED} + {_rate('headrace_sequences_finished_total')} > 0)",
    ),
)


def _burn(name: str, factor: float, long: str, short: str, *, wait: str, severity: str) -> Alert:
    """The budget of late first tokens is spent `factor` times too fast, over both windows: the long one says that it matters, the
    short one that it goes on (Google's SRE workbook, chapter 5)."""
    bound = f"> {round(factor * (1 - TTFT_GOAL), 4):g}"
    return Alert(
        name=name,
        measures=[Measure(f"instance:headrace_ttft_missed:ratio_rate{window}", bound) for window in (long, short)],
        wait=wait,
        severity=severity,
        summary=f"First tokens are late on {{{{ $labels.instance }}}}: {{{{ $value | humanizePercentage }}}} over {long}",
        what_to_do=f"More than {1 - TTFT_GOAL:.0%} of first tokens come later than {TTFT_BOUND:g} s, {factor:g} times what the "
        "objective allows. Look at the queue and at prompt lengths (Overview): more engines, a lower max_waiting, shorter prompts.",
    )


ALERTS = (
    Alert(
        name="HeadraceServerDown",
        measures=[Measure('up{job="headrace"}', "== 0")],
        wait="1m",
        severity="critical",
        summary="{{ $labels.instance }} does not answer",
        what_to_do="Prometheus gets no metrics: the HTTP process is gone, or the network or the key is wrong. Look at its log, "
        "then at `headrace doctor`.",
    ),
    Alert(
        name="HeadraceEngineDown",
        measures=[Measure("headrace_engine_up", "== 0")],
        wait="2m",
        severity="critical",
        summary="An engine of {{ $labels.instance }} does not work: {{ $labels.engine }}",
        what_to_do="It starts, hangs, or was given up. GET /health says which, the log says why it ended.",
    ),
    Alert(
        name="HeadraceRestartLoop",
        measures=[Measure(f"sum by ({_BY_ENGINE}) (increase(headrace_engine_restarts_total[30m]))", ">= 3")],
        wait="0m",
        severity="critical",
        summary="An engine of {{ $labels.instance }} was started again {{ $value | humanize }} times within 30 minutes",
        what_to_do="A request that kills engines ends with the error poison_request: look for it in Errors by code. Else memory: "
        "look at the kernel's log for the OOM killer.",
    ),
    Alert(
        name="HeadraceKeeperRestartLoop",
        measures=[Measure("sum by (instance, job, node) (increase(headrace_keeper_restarts_total[30m]))", ">= 3")],
        wait="0m",
        severity="warning",
        summary="The keeper of {{ $labels.instance }} was started again {{ $value | humanize }} times within 30 minutes",
        what_to_do="Each time engines serve without KV tiers until it is back. The log says how it ended: if it was killed, look "
        "at the kernel's log for the OOM killer, and give the tier less memory (kv_host_gib); if it hung, look at the disk.",
    ),
    Alert(
        name="HeadraceKeysFile",
        measures=[Measure("headrace_api_keys_file_up", "== 0")],
        wait="1m",
        severity="warning",
        summary="The file of API keys of {{ $labels.instance }} cannot be used",
        what_to_do="What it said before holds: new keys are refused, revoked ones let in. The log says what is wrong and in which "
        "line; so does `headrace keys check`.",
    ),
    Alert(
        name="HeadraceNoTokens",
        measures=[
            Measure(f"sum by ({_BY_ENGINE}) (headrace_sequences_running)", "> 0"),
            Measure(_rate("headrace_generation_tokens_total", _BY_ENGINE), "== 0"),
        ],
        wait="5m",
        severity="critical",
        summary="An engine of {{ $labels.instance }} runs sequences and makes no tokens",
        what_to_do="Either all that runs are prompts that take longer than 10 minutes, or steps do not end: see "
        "Engines, Duration of a step.",
    ),
    Alert(
        name="HeadraceKvNearlyFull",
        measures=[Measure("engine:headrace_kv_used:ratio", "> 0.95")],
        wait="10m",
        severity="warning",
        summary="The KV pool of {{ $labels.instance }} {{ $labels.engine }} is full: {{ $value | humanizePercentage }}",
        what_to_do="Newcomers wait, and running sequences are preempted. Give it more kv_blocks, lower max_running, or add "
        "a tier (kv_host_gib) or an engine.",
    ),
    Alert(
        name="HeadraceQueueGrowing",
        measures=[
            Measure("deriv(instance:headrace_sequences_waiting:sum[10m])", "> 0"),
            Measure("instance:headrace_sequences_waiting:sum", "> 32"),
        ],
        wait="10m",
        severity="warning",
        summary="The queue of {{ $labels.instance }} has grown for 10 minutes",
        what_to_do="More arrives than is served. At max_waiting requests are refused with 429.",
    ),
    _burn("HeadraceTtftBudgetFast", 14.4, "1h", "5m", wait="2m", severity="critical"),
    _burn("HeadraceTtftBudgetSlow", 6.0, "6h", "30m", wait="15m", severity="warning"),
    Alert(
        name="HeadraceErrors",
        measures=[Measure("instance:headrace_failed:ratio_rate5m", "> 0.05")],
        wait="5m",
        severity="critical",
        summary="{{ $value | humanizePercentage }} of the requests to {{ $labels.instance }} fail, and not by their own fault",
        what_to_do="See Errors by code (Overview), and docs/api.md for what each code means.",
    ),
    Alert(
        name="HeadracePreemptionStorm",
        measures=[
            Measure(
                f"{_rate('headrace_preemptions_total')} / ({_rate('headrace_sequences_finished_total')} > 0)",
                "> 0.5",
            )
        ],
        wait="10m",
        severity="warning",
        summary="{{ $value | humanize }} preemptions for each sequence that ends on {{ $labels.instance }}",
        what_to_do="Work is thrown away and done again. Lower max_running or raise kv_blocks; a tier makes preemption cheaper.",
    ),
    Alert(
        name="HeadraceTierLost",
        measures=[Measure("headrace_kv_tier_up", "== 0"), Measure("headrace_engine_up", "== 1")],
        matching="and on (instance, job, engine)",
        wait="2m",
        severity="warning",
        summary="{{ $labels.instance }} {{ $labels.engine }} serves without its tier: {{ $labels.tier }}",
        what_to_do="The tier failed (a full or broken disk, say) and is left alone until the engine is started again. Nothing is "
        "wrong but the speed. The log says what failed.",
    ),
    Alert(
        name="HeadraceCanary",
        measures=[
            Measure(
                'sum by (instance, job) (increase(headrace_canary_checks_total{outcome=~"differs|failed"}[1h]))', "> 0"
            )
        ],
        wait="0m",
        severity="critical",
        summary="The canary of {{ $labels.instance }} no longer sings what it sang at the start",
        what_to_do="Answers may be wrong: memory, a disk or a kernel gives back what it was not given. The log names the engine "
        "and where its KV came from. Drain that engine, restart it, and look at its hardware if it comes back.",
    ),
    Alert(
        name="HeadraceIntegrity",
        measures=[Measure("sum by (instance, job) (increase(headrace_integrity_failures_total[15m]))", "> 0")],
        wait="0m",
        severity="critical",
        summary="The block pool of {{ $labels.instance }} contradicts itself",
        what_to_do="A bug of headrace. Restart the engine (POST /v1/engines/NAME/restart), keep the log, and report it.",
    ),
)


def recorded(catalog: Catalog) -> Mapping[str, frozenset[str]]:
    """The series that recording rules make, with their labels.

    Raises:
        UnknownSeriesError: a rule names what does not exist.
    """
    return {rule.name: check(rule.expression, catalog) | TARGET for rule in RECORDINGS}


def check_alerts(catalog: Catalog) -> None:
    """Hold each measure against the series there are, and each label of the words against those of the measures.

    Raises:
        UnknownSeriesError: one does not exist.
    """
    for alert in ALERTS:
        for measure in alert.measures:
            check(measure.expression, catalog)
