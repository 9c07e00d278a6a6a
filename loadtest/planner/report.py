"""A plan for people, as a table and flags, and for programs, as JSON."""

from collections.abc import Sequence
from dataclasses import asdict
from math import ceil

from loadtest.planner.tournament import Standing
from loadtest.planner.trial import TrialOutcome, Workbench
from loadtest.report.rows import Section, figure, percent

_UNDER_WAY = 4
_HEADER = ("roles", "GPUs", "goodput", "holds", "fails", "TTFT", "TPOT", "unfit", "short of")


def table(standings: Sequence[Standing], goal: float) -> Section:
    """A row for each layout, with rates in requests per second.

    `holds` and `fails`: the highest rate that it sustains and the lowest that it does not, as far as was looked. `TTFT`, `TPOT`:
    the shares of the requests that keep these bounds where it fails. `unfit`: the share that is longer than the context.
    """
    return Section(f"Layouts, at {percent(goal)} attainment", _HEADER, [_row(each) for each in standings])


def _row(standing: Standing) -> tuple[str, ...]:
    sustained, failed = standing.sustained, standing.failed
    there = (
        (figure(failed.rate), percent(failed.ttft), percent(failed.tpot), percent(failed.unfit), failed.bottleneck)
        if failed
        else ("",) * 5
    )
    rate = figure(sustained.rate) if sustained else ""
    return (str(standing.layout), str(standing.layout.devices), figure(standing.goodput), rate, *there)


def serve_flags(winner: Standing, bench: Workbench) -> list[str]:
    """Of `headrace serve`, to start what was simulated."""
    server = bench.server
    flags = [*winner.layout.flags(), "--max-step-tokens", str(server.max_step_tokens)]
    flags += ["--max-running", str(server.max_running), "--max-waiting", str(server.max_waiting)]
    if winner.layout.split:  # the way of KV from engine to engine: some of the longest prompts under way at a time
        flags += [
            "--kv-host-gib",
            str(ceil(_UNDER_WAY * bench.model.max_position * bench.model.kv_bytes_per_token / 2**30)),
        ]
    if len(winner.layout.roles) > 1:
        flags += ["--routing", bench.router]
    paces = [each.tpot for each in bench.objectives.values() if each.tpot is not None]
    firsts = [each.ttft for each in bench.objectives.values() if each.ttft is not None]
    if paces and bench.router == "prefix-aware" and len(winner.layout.roles) > 1:
        flags += ["--decode-slo-ms", f"{1000 * min(paces):g}"]
        if firsts and winner.layout.split:  # roles follow when the mix is no longer the trace's
            flags += ["--ttft-slo-ms", f"{1000 * min(firsts):g}", "--role-switching", "auto"]
    return flags


def as_json(winner: Standing | None, standings: Sequence[Standing], bench: Workbench, goal: float) -> dict[str, object]:
    """The whole plan as JSON values."""
    return {
        "schema": "headrace.plan/1",
        "goal": goal,
        "hardware": bench.hardware.name,
        "fitted": bench.hardware.fitted,
        "model": bench.model.name,
        "objectives": {name: asdict(each) for name, each in bench.objectives.items()},
        "load": bench.load.described(),
        "server": asdict(bench.server),
        "winner": None if winner is None else _layout(winner) | {"serve": serve_flags(winner, bench)},
        "layouts": [_layout(each) | {"trials": [_trial(trial) for trial in each.trials]} for each in standings],
    }


def _layout(standing: Standing) -> dict[str, object]:
    return {
        "roles": str(standing.layout),
        "devices": standing.layout.devices,
        "goodput": standing.goodput,
        "sustained": standing.sustained and standing.sustained.rate,
        "not_sustained": standing.failed and standing.failed.rate,
        "bottleneck": standing.failed and standing.failed.bottleneck,
    }


def _trial(trial: TrialOutcome) -> dict[str, object]:
    return asdict(trial) | {"goodput": trial.goodput, "bottleneck": trial.bottleneck}
