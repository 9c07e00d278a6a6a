"""The options that say which part of a trace is used and how it arrives: the same for every command that has a trace."""

import argparse

from loadtest.workload.arrivals import ArrivalError, Arrivals, parse_arrivals
from loadtest.workload.numbers import positive, whole
from loadtest.workload.plan import LoadShape
from loadtest.workload.traces import Trace
from loadtest.workload.traces.columns import EXAMPLE
from loadtest.workload.traces.problems import TraceError
from loadtest.workload.traces.read import FORMATS, by_columns, read_trace
from loadtest.workload.traces.synthetic import MANY, synthetic

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def add_request_options(parser: argparse.ArgumentParser) -> None:
    """The trace, and the fields of `LoadShape`."""
    parser.add_argument("trace", nargs="?", help="what is sent, and when: a file in any known format, gzipped or not")
    group = parser.add_argument_group("requests")
    group.add_argument(
        "--synthetic",
        metavar="prompt=256±64,output=128",
        help="lengths without a trace: N, MEAN±DEVIATION or LEAST-MOST; prefix=N: all prompts begin with the same N tokens",
    )
    group.add_argument("--format", choices=list(FORMATS), help="of the trace [recognised by its first line]")
    group.add_argument(
        "--columns",
        metavar="WHAT=NAME,..",
        help=f"of a CSV or JSON lines file in a format of its own: {EXAMPLE}. Names may be nested (a.b), times numbers (s, ms, us, "
        "ns), ISO 8601 or times of day, blocks nested lists (flattened depth first)",
    )
    group.add_argument("--strict", action="store_true", help="stop at the first broken row of the trace")
    group.add_argument("--window", type=window, metavar="A:B", help="part of the trace: in seconds, or as 9h:18h")
    group.add_argument("--limit", type=whole, metavar="N", help="at most N requests")
    group.add_argument("--speed", type=positive, default=1.0, help="times faster than the trace [%(default)g]")
    group.add_argument("--duration", type=positive, metavar="S", help="stretch the arrivals over S seconds")
    group.add_argument(
        "--rate", type=positive, metavar="R", help="stretch the arrivals to R requests per second on average"
    )
    group.add_argument("--spread", action="store_true", help="spread arrivals inside the tick of the trace's stamps")
    group.add_argument(
        "--arrivals",
        type=arrivals,
        metavar="KIND",
        help="trace, poisson:rate=5, constant:rate=5, gamma:rate=5,cv=3, onoff:high=20,low=1,on=10,off=30, "
        "ramp:start=1,end=20,over=60, step:rates=1/2/4,each=30, closed:users=8,think=1 [the trace's own]",
    )
    group.add_argument("--scale", type=positive, default=1.0, help="factor on all lengths [%(default)g]")
    group.add_argument("--max-prompt", type=whole, metavar="N", help="cut prompts to N tokens")
    group.add_argument("--max-output", type=whole, metavar="N", help="cut answers to N tokens")
    group.add_argument(
        "--warm-up", type=seconds, default=0.0, metavar="S", help="requests of the first S seconds do not count: 30, 2m"
    )
    group.add_argument("--cool-down", type=seconds, default=0.0, metavar="S", help="nor those of the last S seconds")
    group.add_argument("--seed", type=int, default=0, help="of the arrivals and whatever else is drawn [%(default)s]")


def trace_of(options: argparse.Namespace) -> Trace:
    """The trace that the options name, or describe. Raises TraceError."""
    if (options.trace is None) == (options.synthetic is None):
        raise TraceError("give either a trace or --synthetic prompt=256±64,output=128")
    if options.synthetic is not None:
        return synthetic(options.synthetic, options.limit or MANY, options.seed)
    if options.columns is not None and options.format is not None:
        raise TraceError("--columns describes a format, and --format names another: give one of them")
    return read_trace(
        options.trace, by_columns(options.columns) if options.columns else options.format, strict=options.strict
    )


def shape_of(options: argparse.Namespace) -> LoadShape:
    """Which part of the trace is used and how it arrives. Raises ArrivalError."""
    return LoadShape(
        window=options.window,
        limit=options.limit,
        speed=options.speed,
        duration=options.duration,
        rate=options.rate,
        spread=options.spread,
        arrivals=options.arrivals,
        scale=options.scale,
        max_prompt=options.max_prompt,
        max_output=options.max_output,
        warm_up=options.warm_up,
        cool_down=options.cool_down,
        seed=options.seed,
    )


def window(text: str) -> tuple[float, float]:
    """`A:B` in seconds, or with units s, m, h, d; either may be empty. Raises ArgumentTypeError."""
    begin, colon, end = text.partition(":")
    if not colon:
        raise argparse.ArgumentTypeError(f"{text!r} is not a window; write 0:3600 or 9h:18h")
    found = (_seconds(begin) if begin else 0.0, _seconds(end) if end else float("inf"))
    if not 0 <= found[0] < found[1]:
        raise argparse.ArgumentTypeError(f"the window {text!r} is empty")
    return found


def seconds(text: str) -> float:
    """A time of at least 0: seconds, or with a unit s, m, h, d. Raises ArgumentTypeError."""
    found = _seconds(text)
    if not 0 <= found < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a time of at least 0")
    return found


def arrivals(text: str) -> Arrivals | None:
    """`trace` (None), or a kind with its fields. Raises ArgumentTypeError."""
    try:
        return parse_arrivals(text)
    except ArrivalError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _seconds(text: str) -> float:
    unit = _UNITS.get(text[-1:])
    try:
        return float(text[:-1] if unit else text) * (unit or 1)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time") from None
