"""The options of a replay, which a sweep has too: parsers, and what they ask for."""

import argparse
import json
import os
from pathlib import Path
from typing import Any

from loadtest.client.annotations import Grafana
from loadtest.client.target import Target
from loadtest.replay import ReplayPlan
from loadtest.report.objectives import parse_objectives
from loadtest.workload.arrivals import parse_arrivals
from loadtest.workload.plan import LoadShape
from loadtest.workload.traces.read import FORMATS, read_trace

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def plan_of(options: argparse.Namespace) -> ReplayPlan:
    """The plan that the options ask for. Raises ArrivalError, TraceError or ValueError."""
    shape = LoadShape(
        window=options.window,
        limit=options.limit,
        speed=options.speed,
        duration=options.duration,
        rate=options.rate,
        spread=options.spread,
        arrivals=parse_arrivals(options.arrivals),
        scale=options.scale,
        max_prompt=options.max_prompt,
        max_output=options.max_output,
        seed=options.seed,
    )
    return ReplayPlan(
        trace=read_trace(options.trace, options.format, strict=options.strict),
        shape=shape,
        objectives=parse_objectives(options.slo) if options.slo else {},
        label=options.label,
        patience=options.patience,
        stall=options.stall,
        max_lateness=options.max_lateness / 1000,
        verify=options.verify,
        breaks=options.breaks,
        live=not options.quiet,
        grafana=Grafana(options.annotate, os.environ.get("GRAFANA_TOKEN")) if options.annotate else None,
    )


def target_of(options: argparse.Namespace) -> Target:
    """The target that the options name."""
    return Target(
        base_url=options.target,
        model=options.model,
        api_key=options.api_key,
        endpoint=options.endpoint,
        tokenizer=options.tokenizer,
        characters_per_token=options.characters_per_token,
        ignore_eos=options.ignore_eos,
        token_ids_up_to=options.token_ids_up_to,
        temperature=options.temperature,
        extra=options.extra,
    )


def replay_parser() -> argparse.ArgumentParser:
    """The parser of `replay`; every option's help has its unit."""
    parser = argparse.ArgumentParser(prog="headrace loadtest replay", description="Replay a trace against a server.")
    parser.add_argument("trace", type=Path, help="what is sent, and when")
    parser.add_argument("--output", type=Path, metavar="DIR", help="write run.json, report.html and pictures there")
    parser.add_argument("--label", default="", help="the run's name in reports [the model's name]")
    parser.add_argument("--slo", help="objectives: ttft=500ms,tpot=50ms; by class: chat:ttft=1s;batch:e2e=60s")
    parser.add_argument(
        "--annotate",
        metavar="URL",
        help="mark the run in this Grafana (http://user:password@host:3000, or with a token in GRAFANA_TOKEN)",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress")
    _add_requests(parser.add_argument_group("requests"))
    _add_target(parser.add_argument_group("target"))
    _add_bounds(parser.add_argument_group("bounds"))
    return parser


def _add_requests(group: Any) -> None:
    group.add_argument("--format", choices=list(FORMATS), help="of the trace [recognised by its first line]")
    group.add_argument("--strict", action="store_true", help="stop at the first broken row of the trace")
    group.add_argument("--window", type=window, metavar="A:B", help="part of the trace: in seconds, or as 9h:18h")
    group.add_argument("--limit", type=int, metavar="N", help="at most N requests")
    group.add_argument("--speed", type=float, default=1.0, help="times faster than the trace [%(default)g]")
    group.add_argument("--duration", type=float, metavar="S", help="stretch the arrivals over S seconds")
    group.add_argument(
        "--rate", type=float, metavar="R", help="stretch the arrivals to R requests per second on average"
    )
    group.add_argument("--spread", action="store_true", help="spread arrivals inside the tick of the trace's stamps")
    group.add_argument(
        "--arrivals",
        default="trace",
        metavar="KIND",
        help="trace, poisson:rate=5, gamma:rate=5,cv=3, onoff:high=20,low=1,on=10,off=30, ramp:start=1,end=20,over=60, "
        "step:rates=1/2/4,each=30, closed:users=8,think=1 [%(default)s]",
    )
    group.add_argument("--scale", type=float, default=1.0, help="factor on all lengths [%(default)g]")
    group.add_argument("--max-prompt", type=int, metavar="N", help="cut prompts to N tokens")
    group.add_argument("--max-output", type=int, metavar="N", help="cut answers to N tokens")
    group.add_argument("--seed", type=int, default=0, help="of everything drawn at random [%(default)s]")


def _add_target(group: Any) -> None:
    group.add_argument("--target", required=True, metavar="URL", help="such as http://127.0.0.1:8000/v1")
    group.add_argument("--model", help="[the first that the target lists]")
    group.add_argument("--api-key", default=os.environ.get("OPENAI_API_KEY"), help="[OPENAI_API_KEY]")
    group.add_argument("--endpoint", choices=("completions", "chat"), default="completions", help="[%(default)s]")
    group.add_argument("--tokenizer", metavar="FILE", help="a tokenizer.json, if the target has no /tokenize")
    group.add_argument(
        "--characters-per-token", type=float, metavar="C", help="if there is neither; lengths are then estimates"
    )
    group.add_argument(
        "--ignore-eos",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="answers as long as the trace says [if the target accepts it]",
    )
    group.add_argument(
        "--token-ids-up-to",
        type=int,
        default=1024,
        metavar="N",
        help="count streamed tokens by their ids, for prompts of at most N tokens; 0 for never [%(default)s]",
    )
    group.add_argument("--temperature", type=float, default=0.0, help="[%(default)g]")
    group.add_argument("--extra", type=_object, default={}, metavar="JSON", help="further fields of every request")


def _add_bounds(group: Any) -> None:
    group.add_argument("--patience", type=float, default=600.0, metavar="S", help="seconds per request [%(default)g]")
    group.add_argument(
        "--stall", type=float, default=60.0, metavar="S", help="seconds without a byte that end a stream [%(default)g]"
    )
    group.add_argument(
        "--max-lateness",
        type=float,
        default=20.0,
        metavar="MS",
        help="the run is invalid if the client's p99 lateness is above it [%(default)g]",
    )
    group.add_argument("--verify", type=int, default=0, metavar="N", help="ask N again unstreamed [%(default)s]")
    group.add_argument(
        "--breaks",
        type=int,
        default=0,
        metavar="N",
        help="break the connection of each stream at up to N random places, and resume it [%(default)s]",
    )


def window(text: str) -> tuple[float, float]:
    """`A:B` in seconds, or with units s, m, h, d; either may be empty."""
    begin, colon, end = text.partition(":")
    if not colon:
        raise argparse.ArgumentTypeError(f"{text!r} is not a window; write 0:3600 or 9h:18h")
    found = (_seconds(begin) if begin else 0.0, _seconds(end) if end else float("inf"))
    if found[0] >= found[1]:
        raise argparse.ArgumentTypeError(f"the window {text!r} is empty")
    return found


def _seconds(text: str) -> float:
    unit = _UNITS.get(text[-1:])
    try:
        return float(text[:-1] if unit else text) * (unit or 1)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time") from None


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"not JSON: {error}") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError("not a JSON object")
    return value
