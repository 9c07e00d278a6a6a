"""The answer for people, as sentences and tables, and for programs, as JSON."""

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import ceil

from loadtest.report.rows import Section, count, figure, milliseconds, objective_text, percent
from loadtest.report.trust import UNFITTED
from loadtest.sizing.answer import Headroom, KindVerdict, SizingAnswer, price
from loadtest.sizing.fleet import Fleet
from loadtest.sizing.trial import FleetOutcome, SizingBench

SCHEMA = "headrace.sizing/1"
_FULL = 0.9  # of the seats, or of the KV: what is meant by full
_NEAR_PEAK = 0.5  # of the operations: what is reached in practice is four fifths
_OFTEN = 0.05  # preemptions of a request
_UNDER_WAY = 4  # of the longest prompts, for which a server that hands KV over has room
_HOUR, _MILLION = 3600, 1e6


@dataclass(frozen=True, slots=True)
class AnswerView:
    """An answer with what a reader needs beside it.

    Attributes:
        outcomes: of all trials.
        named: what the command line calls each device.
        arguments: of the command line, without those that a plan alone has: `simulate` takes them.
    """

    answer: SizingAnswer
    bench: SizingBench
    outcomes: Sequence[FleetOutcome]
    named: Mapping[str, str]
    arguments: Sequence[str]

    def simulate(self, fleet: Fleet) -> str:
        """The command that simulates a fleet under the same load."""
        flags = fleet.simulate_flags(self.named[fleet.kind.hardware.name])
        return shlex.join(["headrace", "loadtest", "simulate", *self.arguments, *flags])

    def serve(self, fleet: Fleet) -> str:
        """The command that starts it."""
        flags = [*fleet.serve_flags(), "--max-waiting", str(self.bench.server.max_waiting)]
        model = self.bench.model
        keeper = self.bench.machines(fleet.kind.cost(model)).keeper
        if keeper is not None:
            flags += ["--kv-host-gib", f"{keeper.bytes / 2**30:g}"]
        elif fleet.kind.split:
            room = _UNDER_WAY * model.max_position * fleet.kind.model(model).kv_bytes_per_token
            flags += ["--kv-host-gib", str(ceil(room / 2**30))]
        if len(fleet.roles) > 1:
            flags += ["--routing", self.bench.router]
        paces = [each.tpot for each in self.bench.objectives.values() if each.tpot is not None]
        firsts = [each.ttft for each in self.bench.objectives.values() if each.ttft is not None]
        if fleet.kind.split and paces and firsts and self.bench.router == "prefix-aware":
            flags += ["--decode-slo-ms", f"{1000 * min(paces):g}", "--ttft-slo-ms", f"{1000 * min(firsts):g}"]
            flags += ["--role-switching", "auto"]
        return shlex.join(["headrace", "serve", "MODEL", *flags])


def sentences(view: AnswerView) -> list[str]:
    """The answer, its headroom, what is next cheaper, and other loads: one sentence or two for each."""
    answer, best = view.answer, view.answer.best
    fleet = best.trial.fleet
    said = [f"Interrupted: {answer.open}. What is known by now:"] if answer.open else []
    part = "" if best.trial.whole else "the busiest "
    said += [
        f"{'Enough is' if answer.open else 'Buy'} {fleet}{cost_text(fleet)}: {percent(best.attainment)} of {part}"
        f"{count(best.judged)} requests meet {_objectives(view)} ({percent(view.bench.goal)} is asked for).",
        f"Set each engine to {fleet.settings}.",
    ]
    said += [_headroom(view, answer.headroom)] if answer.headroom else []
    if answer.cheaper is None:
        said += [] if answer.open else ["Nothing of what may be bought is cheaper."]
    else:
        other = answer.cheaper.trial.fleet
        said.append(
            f"Next cheaper is {other}{cost_text(other)}, and it fails: {percent(answer.cheaper.attainment)}. {why(answer.cheaper)}"
        )
    if answer.fewer is not None:
        said.append(f"With an engine less it fails as well: {percent(answer.fewer.attainment)}. {why(answer.fewer)}")
    for each in answer.others:
        outcome = each.outcome
        kept = outcome.attainment >= view.bench.goal
        enough = (
            f"it takes {each.enough}{cost_text(each.enough)}" if each.enough else "no number of these devices is enough"
        )
        said.append(
            f"With {outcome.trial.condition} it attains {percent(outcome.attainment)}: "
            + ("it is enough." if kept else f"{enough}.")
        )
    said += [f"Check it: {view.simulate(fleet)}"]
    said += [f"Check the next cheaper: {view.simulate(answer.cheaper.trial.fleet)}"] if answer.cheaper else []
    said += [f"Check an engine less: {view.simulate(answer.fewer.trial.fleet)}"] if answer.fewer else []
    return [*said, f"Start it: {view.serve(fleet)}"]


def _objectives(view: AnswerView) -> str:
    pairs = view.bench.objectives.items()
    return "; ".join(
        objective_text(each) if name == "default" else f"{name}: {objective_text(each)}" for name, each in pairs
    )


def _headroom(view: AnswerView, room: Headroom) -> str:
    stretch = len(view.bench.stretch)
    part = "" if stretch == len(view.bench.requests) else f" over its busiest {count(stretch)} requests"
    if room.failed is None:
        return f"Headroom: {room.held:.3g} x the load is kept{part}, and no more was tried."
    above = room.failed.trial.condition.load
    return f"Headroom: {room.held:.3g} x the load is kept{part}, {above:.3g} x is not. {why(room.failed)}"


def cost_text(fleet: Fleet) -> str:
    """` for $ 7.58 an hour`; nothing if prices are not known."""
    return f" for $ {price(fleet):,.2f} an hour" if fleet.kind.hardware.price_per_hour else ""


def why(outcome: FleetOutcome) -> str:
    """Why a fleet fails, in a sentence or two: which bound is missed, and what is full."""
    counts = {"get their first token too late": outcome.late_first, "too slow an answer": outcome.late_pace}
    missed = [f"{count(many)} {what}" for what, many in counts.items() if many]
    missed += [f"{count(outcome.failed)} no whole answer"] if outcome.failed else []
    if not missed:
        return "Answers end too late."
    of = f"the first {count(outcome.arrived)}" if outcome.stopped else count(outcome.judged)
    return f"Of {of} requests {', '.join(missed)}. {_full(outcome)}".strip()


def _full(outcome: FleetOutcome) -> str:
    seats = outcome.trial.fleet.tuning.max_running
    full = []
    if outcome.peak_share > _NEAR_PEAK:
        full.append(f"its devices compute at {percent(outcome.peak_share)} of their peak")
    if outcome.mean("kv") > _FULL or outcome.preemptions > _OFTEN * outcome.arrived:
        full.append(
            f"its KV is full ({percent(outcome.mean('kv'))} on average, {count(outcome.preemptions)} preemptions)"
        )
    if outcome.mean("running") > _FULL * seats:
        full.append(f"all {seats} places are taken")
    if outcome.mean("waiting") >= 1:
        full.append(f"{figure(outcome.mean('waiting'))} requests wait at each engine")
    text = ", ".join(full)
    return f"{text[0].upper()}{text[1:]}." if text else ""


def unfitted(view: AnswerView) -> str | None:
    """What a reader must know of the devices whose constants are guesses; None: there are none."""
    names = sorted({each.kind.hardware.name for each in view.answer.kinds if not each.kind.hardware.fitted})
    return UNFITTED.format(f"each of {', '.join(names)}" if len(names) > 1 else names[0]) if names else None


def sections(view: AnswerView) -> list[Section]:
    """All tables."""
    found = [figures(view), other_loads(view), equals(view), kinds(view)]
    return [section for section in found if section.rows]


def figures(view: AnswerView) -> Section:
    """What a planner reads, of the answer and of what is next cheaper."""
    answer = view.answer
    shown = [each for each in (answer.best, answer.cheaper, answer.fewer) if each is not None]
    rows = [(name, *(tell(each) for each in shown)) for name, tell in FIGURES.items()]
    names = [str(each.trial.fleet) for each in shown]
    return Section("The answer, and what fails below it", ("", *names), rows)


def _pair(values: tuple[float, float] | None) -> str:
    return "" if values is None else f"{milliseconds(values[0])}, {milliseconds(values[1])}"


def _of_prices(outcome: FleetOutcome, rate: float) -> str:
    fleet = outcome.trial.fleet
    if not fleet.kind.hardware.price_per_hour or not rate:
        return ""
    return f"{price(fleet) / (rate * _HOUR) * _MILLION:.3f}"


FIGURES: dict[str, Callable[[FleetOutcome], str]] = {
    "attainment": lambda each: percent(each.attainment),
    "dollars an hour": lambda each: (
        f"{price(each.trial.fleet):,.2f}" if each.trial.fleet.kind.hardware.price_per_hour else ""
    ),
    "dollars a million tokens of answers": lambda each: _of_prices(each, each.output_rate),
    "dollars a million tokens, prompts included": lambda each: _of_prices(each, each.token_rate),
    "tokens a step, running": lambda each: (
        f"{each.trial.fleet.tuning.max_step_tokens}, {each.trial.fleet.tuning.max_running}"
    ),
    "TTFT p50, p99 (ms)": lambda each: _pair(each.ttft),
    "TPOT p50, p99 (ms)": lambda each: _pair(each.tpot),
    "answer tokens/s of a user": lambda each: "" if each.user_rate is None else figure(each.user_rate),
    "answer tokens/s of a device": lambda each: figure(each.device_rate),
    "time that engines compute": lambda each: percent(each.utilisation),
    "of the devices' peak operations": lambda each: percent(each.peak_share),
    "batch: mean, most": lambda each: f"{figure(each.mean('running'))}, {figure(each.most('running'))}",
    "waiting: mean, most": lambda each: f"{figure(each.mean('waiting'))}, {figure(each.most('waiting'))}",
    "KV in use: mean, most": lambda each: f"{percent(each.mean('kv'))}, {percent(each.most('kv'))}",
    "preemptions": lambda each: count(each.preemptions),
    "busiest engine over the mean": lambda each: f"{each.balance:.2f}",
    "cached share of the prompts": lambda each: percent(each.cached),
    "longer than the context": lambda each: count(each.unfit),
}


def other_loads(view: AnswerView) -> Section:
    """Sensitivity."""
    rows = [
        (
            str(each.outcome.trial.condition),
            percent(each.outcome.attainment),
            _pair(each.outcome.ttft),
            _pair(each.outcome.tpot),
            "" if each.enough is None else str(each.enough),
            "" if each.enough is None or not each.enough.kind.hardware.price_per_hour else f"{price(each.enough):,.2f}",
        )
        for each in view.answer.others
    ]
    header = ("other loads", "attainment", "TTFT p50, p99", "TPOT p50, p99", "enough is", "dollars an hour")
    return Section("If the load changes", header, rows)


def equals(view: AnswerView) -> Section:
    """Fleets of the same price."""
    rows = [
        (str(fleet), fleet.settings, f"{load:.3g} x")
        for fleet, load in sorted(view.answer.equal, key=lambda each: -each[1])
    ]
    return Section("At the same price", ("set", "settings", "keeps at least"), rows)


def kinds(view: AnswerView) -> Section:
    """How each kind did; those of which no number is cheaper are counted."""
    tried = [each for each in view.answer.kinds if each.price is not None or each.why]
    rows = [
        (
            str(each.kind),
            "" if each.engines is None else count(each.engines),
            "" if each.price is None or not each.kind.hardware.price_per_hour else f"{each.price:,.2f}",
            each.why,
        )
        for each in tried
    ]
    if others := len(view.answer.kinds) - len(tried):
        rows.append((f"{others} others", "", "", "no number of engines is cheaper"))
    return Section(
        "The smallest number of engines, over the busiest part", ("kind", "engines", "dollars an hour", ""), rows
    )


def as_json(view: AnswerView) -> dict[str, object]:
    """The whole answer as JSON values."""
    answer, bench = view.answer, view.bench
    return {
        "schema": SCHEMA,
        "open": answer.open,
        "goal": bench.goal,
        "objectives": {name: asdict(each) for name, each in bench.objectives.items()},
        "model": asdict(bench.model),
        "answer": _outcome(answer.best) | {"simulate": view.simulate(answer.best.trial.fleet)},
        "price_per_hour": answer.price if answer.best.trial.fleet.kind.hardware.price_per_hour else None,
        "serve": view.serve(answer.best.trial.fleet),
        "headroom": None if answer.headroom is None else _room(answer.headroom, len(bench.stretch)),
        "next_cheaper": None
        if answer.cheaper is None
        else _outcome(answer.cheaper)
        | {"why": why(answer.cheaper), "simulate": view.simulate(answer.cheaper.trial.fleet)},
        "an_engine_less": None
        if answer.fewer is None
        else _outcome(answer.fewer) | {"why": why(answer.fewer), "simulate": view.simulate(answer.fewer.trial.fleet)},
        "other_loads": [
            _outcome(each.outcome) | {"enough": None if each.enough is None else _fleet(each.enough)}
            for each in answer.others
        ],
        "same_price": [_fleet(fleet) | {"keeps": load} for fleet, load in answer.equal],
        "kinds": _verdicts(answer.kinds),
        "hardware": {each.kind.hardware.name: asdict(each.kind.hardware) for each in answer.kinds},
        "trials": [_outcome(each) for each in view.outcomes],
    }


def without_answer(verdicts: Sequence[KindVerdict], outcomes: Sequence[FleetOutcome], left: str) -> dict[str, object]:
    """What there is without one as JSON values; `left` says what was not found out, if somebody interrupted."""
    trials = [_outcome(each) for each in outcomes]
    return {"schema": SCHEMA, "open": left, "answer": None, "kinds": _verdicts(verdicts), "trials": trials}


def _verdicts(kinds: Sequence[KindVerdict]) -> list[dict[str, object]]:
    return [
        {"kind": str(each.kind), "engines": each.engines, "price_per_hour": each.price, "why": each.why}
        for each in kinds
    ]


def _room(headroom: Headroom, requests: int) -> dict[str, object]:
    failed = None if headroom.failed is None else headroom.failed.trial.condition.load
    return {"kept": headroom.held, "not_kept": failed, "requests": requests}


def _fleet(fleet: Fleet) -> dict[str, object]:
    return {
        "hardware": fleet.kind.hardware.name,
        "roles": fleet.role_counts,
        "tensor_parallel": fleet.kind.devices,
        "devices": fleet.devices,
        "gpu_kv": fleet.kind.gpu_kv,
        **asdict(fleet.tuning),
    }


_PLAIN = (
    *(
        "arrived",
        "planned",
        "judged",
        "met",
        "attainment",
        "late_first",
        "late_pace",
        "failed",
        "unfit",
        "stopped",
        "seconds",
    ),
    *(
        "utilisation",
        "ttft",
        "tpot",
        "output_rate",
        "token_rate",
        "user_rate",
        "device_rate",
        "cached",
        "preemptions",
        "balance",
    ),
)


def _outcome(outcome: FleetOutcome) -> dict[str, object]:
    plain = {name: getattr(outcome, name) for name in _PLAIN}
    means = {name: {"mean": outcome.mean(name), "most": outcome.most(name)} for name in ("running", "waiting", "kv")}
    trial = outcome.trial
    where = _fleet(trial.fleet) | asdict(trial.condition) | {"whole": trial.whole}
    return where | plain | means
