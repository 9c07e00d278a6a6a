"""The figures of a run.

Latencies are those of complete answers only, and count from the intended time of sending; a request without a complete answer
counts as an error, and as one that missed its objective. Percentiles are linearly interpolated (numpy's default).
"""

import re
from collections import Counter
from dataclasses import dataclass

import numpy as np

from loadtest.report.columns import Columns, concurrency
from loadtest.report.events import Flags, Floats, Names
from loadtest.report.records import ErrorClass, LoadRun, Objective, RequestRecord

PERCENTILES = (50, 90, 95, 99)
ALL = "all"


@dataclass(frozen=True, slots=True)
class Spread:
    """How a quantity is distributed, in its own unit."""

    count: int
    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float

    @classmethod
    def of(cls, values: Floats, *, reorder: bool = False) -> "Spread | None":
        """The distribution of the values that are not NaN; None if there are none.

        Args:
            reorder: the values may be put in another order, which saves two copies of them.
        """
        unknown = np.isnan(values)
        known = values if reorder and not unknown.any() else values[~unknown]
        if not known.size:
            return None
        mean = float(known.mean())
        p50, p90, p95, p99 = (float(value) for value in np.percentile(known, PERCENTILES, overwrite_input=reorder))
        return cls(known.size, mean, p50, p90, p95, p99, float(known.max()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Goodput:
    """How a class fared against its objective.

    Attributes:
        klass: `all` for all classes together; then `objective` is None.
        requests: how many of the plan's the objective judges.
        met: how many of them met it.
        rate: requests that met it, per second.
        token_rate: their output tokens, per second.
        missed: reason -> requests; a request that misses two bounds counts under both.
    """

    klass: str
    objective: Objective | None
    requests: int
    met: int
    rate: float
    token_rate: float
    missed: dict[str, int]

    @property
    def attainment(self) -> float:
        """The share of the requests that met it, from 0 to 1."""
        return self.met / self.requests


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Everything a report says in numbers. Rates are per second of the run's duration, latencies in seconds.

    Attributes:
        requests: in the plan.
        whole: answered completely.
        unfit, left: longer than the context; of clients that left as planned. Neither failed nor judged.
        offered: the plan's arrivals per second; None with fewer than two distinct times.
        request_rate: complete answers per second.
        prompt_rate, output_rate: tokens of complete answers per second; None if the server reports no prompt tokens.
        peak: the most requests in flight at once.
        latencies: name -> class, or `all` -> distribution. Names: ttft, tpot, itl, e2e, queue, prefill, decode, lateness; only
            those with values.
        errors: error class -> requests.
        details: what the errors said, with numbers left out -> requests.
        violating: requests that broke a rule.
        violations: rule, with numbers left out -> how often it was broken.
        finish_reasons: of complete answers.
        asked_output: share of complete answers exactly as long as asked for.
        asked_prompt: the same for prompts, by `usage`.
        cached_share: cached tokens / prompt tokens, if the server reports both.
        goodput: for each class with an objective, and `all` if there are several.
        scraped: counter -> (before, after), for counters that moved.
    """

    requests: int
    whole: int
    unfit: int
    left: int
    offered: float | None
    request_rate: float
    prompt_rate: float | None
    output_rate: float
    peak: int
    latencies: dict[str, dict[str, Spread]]
    errors: dict[str, int]
    details: dict[str, int]
    violating: int
    violations: dict[str, int]
    finish_reasons: dict[str, int]
    asked_output: float | None
    asked_prompt: float | None
    cached_share: float | None
    goodput: list[Goodput]
    scraped: dict[str, tuple[float, float]]

    @property
    def failed(self) -> int:
        """Requests that were not answered completely though somebody waited for it."""
        return self.requests - self.unfit - self.left - self.whole

    @property
    def total_rate(self) -> float | None:
        """Tokens per second, prompts included; None if prompt tokens are unknown."""
        return None if self.prompt_rate is None else self.prompt_rate + self.output_rate

    @property
    def attainment(self) -> float | None:
        """The share of all judged requests that met their objective; None if none is judged."""
        return self.goodput[-1].attainment if self.goodput else None


@dataclass(frozen=True, slots=True)
class Throughput:
    """What a server did in a second of the time that counts, for requests that it answered completely, whenever they were sent.

    Attributes:
        requests: answers that ended then.
        prompt_tokens: of requests whose first token came then; None if the server reports none.
        output_tokens: that came then.
    """

    requests: float
    prompt_tokens: float | None
    output_tokens: float

    @classmethod
    def of(cls, run: LoadRun, columns: Columns) -> "Throughput":
        """That of a run; without warm-up and cool-down, of all of it."""
        whole, duration, (begin, end) = columns.whole, run.measured.duration, run.window
        prompts = columns.prompt[whole]
        told = bool(np.isfinite(prompts).any())
        if run.measured is run:
            output, read = float(columns.output[whole].sum()), float(np.nansum(prompts))
            answered = int(whole.sum())
        else:
            pieces = columns.events.pieces(whole)
            output = sum(float(each.count[(begin <= each.at) & (each.at < end)].sum()) for each in pieces)
            first = columns.first[whole]
            read = float(np.nansum(prompts[(begin <= first) & (first < end)]))
            answered = int((whole & (begin <= columns.ended) & (columns.ended < end)).sum())
        return cls(
            per_second(answered, duration), per_second(read, duration) if told else None, per_second(output, duration)
        )


def summarize(run: LoadRun, columns: Columns | None = None) -> Summary:
    """Compute all figures, of the requests that count; `columns` may be passed if `Columns.of(run)` is there already."""
    everything = columns or Columns.of(run)
    rates = Throughput.of(run, everything)
    counted = run.measured
    columns = everything if counted is run else Columns.of(counted)
    run, records = counted, counted.records
    answered = [record for record in records if record.ok]
    return Summary(
        requests=len(records),
        whole=len(answered),
        unfit=sum(record.error is ErrorClass.UNFIT for record in records),
        left=sum(record.error is ErrorClass.LEFT for record in records),
        offered=offered_rate(columns.intended),
        request_rate=rates.requests,
        prompt_rate=rates.prompt_tokens,
        output_rate=rates.output_tokens,
        peak=int(concurrency(columns.intended, columns.ended)[1].max(initial=0)),
        latencies=latencies(columns),
        errors=_ranked(Counter(str(error_class(record)) for record in records if record.awaited and not record.ok)),
        details=_ranked(Counter(_pattern(record.detail) for record in records if record.awaited and record.detail)),
        violating=sum(bool(record.violations) for record in records),
        violations=_ranked(Counter(_pattern(text) for record in records for text in record.violations)),
        finish_reasons=_ranked(Counter(str(record.finish_reason) for record in answered)),
        asked_output=_share(
            [record.output_tokens == record.asked_output for record in answered if record.asked_output]
        ),
        asked_prompt=_share(
            [r.prompt_tokens == r.asked_prompt for r in answered if r.asked_prompt and r.prompt_tokens is not None]
        ),
        cached_share=_cached_share(columns),
        goodput=goodput(run, columns),
        scraped=_moved(run.scraped),
    )


def offered_rate(intended: Floats) -> float | None:
    """Arrivals per second between the first and the last; None with fewer than two distinct times."""
    span = float(np.ptp(intended)) if intended.size else 0.0
    return (intended.size - 1) / span if span > 0 else None


def per_second(amount: float, duration: float) -> float:
    """`amount / duration`; 0 if the run has no duration."""
    return amount / duration if duration > 0 else 0.0


def latencies(columns: Columns) -> dict[str, dict[str, Spread]]:
    """Name -> class or `all` -> distribution over complete answers; that of lateness is over everything sent."""
    whole = columns.whole
    per_request = {"ttft": columns.ttft, "tpot": columns.tpot, "e2e": columns.e2e, **columns.timings}
    found = {name: by_class(column[whole], columns.klass[whole]) for name, column in per_request.items()}
    found["itl"] = gap_spreads(columns)
    found["lateness"] = by_class(columns.lateness, columns.klass)
    order = ("ttft", "tpot", "itl", "e2e", *columns.timings, "lateness")
    return {name: found[name] for name in order if found[name]}


def gap_spreads(columns: Columns) -> dict[str, Spread]:
    """What `by_class` would say of the gaps of complete answers; they are read class by class, never all of them twice."""
    owners = columns.whole & (columns.events.lengths > 1)
    names = sorted(set(columns.klass[owners].tolist()))
    chosen = {name: owners & (columns.klass == name) for name in names} if len(names) > 1 else {}
    parts = {
        name: Spread.of(columns.events.gaps(part), reorder=True) for name, part in (chosen | {ALL: owners}).items()
    }
    return {name: spread for name, spread in parts.items() if spread is not None}


def by_class(values: Floats, klass: Names) -> dict[str, Spread]:
    """Class -> distribution, if there are several classes; `all` comes last."""
    names = sorted(set(klass.tolist()))
    parts = {name: Spread.of(values[klass == name]) for name in names} if len(names) > 1 else {}
    parts[ALL] = Spread.of(values)
    return {name: spread for name, spread in parts.items() if spread is not None}


def goodput(run: LoadRun, columns: Columns) -> list[Goodput]:
    """Goodput of each class with an objective; if there are several, `all` comes last."""
    rows = []
    for name in sorted(set(columns.klass[columns.judged].tolist())):
        objective = run.objectives.get(name) or run.objectives.get("default")
        rows.append(_goodput(run, columns, columns.judged & (columns.klass == name), name, objective))
    if len(rows) > 1:
        rows.append(_goodput(run, columns, columns.judged, ALL, None))
    return rows


def _goodput(run: LoadRun, columns: Columns, chosen: Flags, name: str, objective: Objective | None) -> Goodput:
    met = chosen & (columns.needed <= 1)
    missed: Counter[str] = Counter()
    for place in np.flatnonzero(chosen & ~met):
        record = run.records[place]
        missed.update(_reasons(record, run.objective(record)))
    return Goodput(
        klass=name,
        objective=objective,
        requests=int(chosen.sum()),
        met=int(met.sum()),
        rate=per_second(int(met.sum()), run.duration),
        token_rate=per_second(float(columns.output[met].sum()), run.duration),
        missed=_ranked(missed),
    )


def _reasons(record: RequestRecord, objective: Objective | None) -> list[str]:
    if not record.ok:
        return ["failed"]
    if record.violations:
        return ["violation"]
    pairs = {name: (getattr(objective, name), getattr(record, name)) for name in ("ttft", "tpot", "e2e")}
    return [name for name, (bound, value) in pairs.items() if None not in (bound, value) and value > bound]


def attainment_curve(columns: Columns, scales: Floats) -> Floats:
    """The share of judged requests that meet their objectives with all bounds multiplied by each of `scales`: [scales].

    The "SLO scale" of DistServe (Zhong et al., OSDI 2024, section 6).
    """
    ordered = np.sort(columns.needed[columns.judged])
    return np.searchsorted(ordered, scales, side="right") / max(ordered.size, 1)


def error_class(record: RequestRecord) -> ErrorClass:
    """Why it has no complete answer; a record that just stops is a broken stream."""
    return record.error or ErrorClass.STREAM


def _cached_share(columns: Columns) -> float | None:
    told = columns.whole & np.isfinite(columns.cached) & np.isfinite(columns.prompt)
    total = float(columns.prompt[told].sum())
    return float(columns.cached[told].sum()) / total if total else None


def _share(flags: list[bool]) -> float | None:
    return sum(flags) / len(flags) if flags else None


def _pattern(text: str) -> str:
    """The kind of message: without the numbers and the like that differ from request to request."""
    return re.sub(r"\d+(\.\d+)?", "N", text)[:200]


def _ranked(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _moved(scraped: dict[str, dict[str, float]]) -> dict[str, tuple[float, float]]:
    before, after = scraped.get("before", {}), scraped.get("after", {})
    pairs = {name: (before.get(name, 0.0), value) for name, value in after.items()}
    return {name: pair for name, pair in sorted(pairs.items()) if pair[0] != pair[1]}
