"""The options of a replay, which a sweep has too: parsers, and what they ask for."""

import argparse
import json
import os
from typing import Any

from loadtest.client.annotations import Grafana
from loadtest.client.target import Target
from loadtest.replay import ReplayPlan
from loadtest.report.objectives import slo
from loadtest.report.output import add_output_options
from loadtest.workload.arrivals import Closed
from loadtest.workload.numbers import count, not_negative, positive, share, whole
from loadtest.workload.options import add_request_options, shape_of, trace_of


def plan_of(options: argparse.Namespace) -> ReplayPlan:
    """The plan that the options ask for. Raises ArrivalError, TraceError or ValueError."""
    texts: int | None = options.seed if options.same_texts else options.texts
    if options.max_concurrency is not None and isinstance(options.arrivals, Closed):
        raise ValueError(
            "--max-concurrency bounds an open loop; of a closed one as many requests are open as it has users"
        )
    return ReplayPlan(
        trace=trace_of(options),
        shape=shape_of(options),
        objectives=options.slo,
        label=options.label,
        patience=options.patience,
        stall=options.stall,
        max_lateness=options.max_lateness / 1000,
        verify=options.verify,
        breaks=options.breaks,
        cancel=options.cancel,
        cancel_after=options.cancel_after,
        most=options.max_concurrency,
        live=not options.quiet,
        server_pid=_server_pid(options),
        texts=texts,
        grafana=Grafana(options.annotate, os.environ.get("GRAFANA_TOKEN")) if options.annotate else None,
    )


def _server_pid(options: argparse.Namespace) -> int | None:
    """The process to sample, if any. Raises ValueError if there is none."""
    if options.server_pid is None:
        return None
    from psutil import pid_exists

    from loadtest.client.usage import listener

    pid: int | None = listener(options.target) if options.server_pid == "auto" else int(options.server_pid)
    if pid is None or not pid_exists(pid):
        raise ValueError(
            f"--server-pid {options.server_pid}: there is no such process"
            if pid is not None
            else f"--server-pid auto: no process of this machine that may be seen listens for {options.target}; give its number"
        )
    return pid


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


def replay_parser(command: str = "replay") -> argparse.ArgumentParser:
    """The parser of `replay`, or of another command with its options; every option's help has its unit."""
    parser = argparse.ArgumentParser(
        prog=f"headrace loadtest {command}", description="Replay a trace against a server."
    )
    add_output_options(parser)
    parser.add_argument("--label", default="", help="the run's name in reports [the model's name]")
    parser.add_argument(
        "--slo", type=slo, default={}, help="objectives: ttft=500ms,tpot=50ms; by class: chat:ttft=1s;batch:e2e=60s"
    )
    parser.add_argument(
        "--annotate",
        metavar="URL",
        help="mark the run in this Grafana (http://user:password@host:3000, or with a token in GRAFANA_TOKEN)",
    )
    parser.add_argument(
        "--server-pid",
        type=_pid,
        metavar="PID",
        help="sample processors and memory of this process and all below it every second, and GPUs by nvidia-smi; auto: the one "
        "that listens at the target, on this machine",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress")
    add_request_options(parser)
    _add_texts(parser.add_argument_group("texts").add_mutually_exclusive_group())
    _add_target(parser.add_argument_group("target"))
    _add_bounds(parser.add_argument_group("bounds"))
    return parser


def _add_texts(group: Any) -> None:
    group.add_argument(
        "--same-texts",
        action="store_true",
        help="the same texts for the same --seed [others in each run, so that none finds what an earlier one left in a cache]",
    )
    group.add_argument("--texts", type=count, metavar="N", help="those of an earlier run: the `texts` of its plan")


def _add_target(group: Any) -> None:
    group.add_argument("--target", required=True, metavar="URL", help="such as http://127.0.0.1:8000/v1")
    group.add_argument("--model", help="[the first that the target lists]")
    group.add_argument("--api-key", default=os.environ.get("OPENAI_API_KEY"), help="[OPENAI_API_KEY]")
    group.add_argument(
        "--endpoint", choices=("completions", "chat", "embeddings"), default="completions", help="[%(default)s]"
    )
    group.add_argument("--tokenizer", metavar="FILE", help="a tokenizer.json, if the target has no /tokenize")
    group.add_argument(
        "--characters-per-token", type=positive, metavar="C", help="if there is neither; lengths are then estimates"
    )
    group.add_argument(
        "--ignore-eos",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="answers as long as the trace says [if the target accepts it]",
    )
    group.add_argument(
        "--token-ids-up-to",
        type=count,
        default=1024,
        metavar="N",
        help="count streamed tokens by their ids, for prompts of at most N tokens; 0 for never [%(default)s]",
    )
    group.add_argument("--temperature", type=not_negative, default=0.0, help="[%(default)g]")
    group.add_argument("--extra", type=_object, default={}, metavar="JSON", help="further fields of every request")


def _add_bounds(group: Any) -> None:
    group.add_argument(
        "--patience", type=positive, default=600.0, metavar="S", help="seconds per request [%(default)g]"
    )
    group.add_argument(
        "--stall",
        type=positive,
        default=60.0,
        metavar="S",
        help="seconds without a byte that end a stream [%(default)g]",
    )
    group.add_argument(
        "--max-lateness",
        type=positive,
        default=20.0,
        metavar="MS",
        help="the run is invalid if the client's p99 lateness is above it [%(default)g]",
    )
    group.add_argument(
        "--max-failed",
        type=share,
        default=0.1,
        metavar="SHARE",
        help="the exit status is 1 if more of the requests failed [%(default)g]",
    )
    group.add_argument(
        "--max-concurrency",
        type=whole,
        metavar="N",
        help="requests open at once; further ones wait, and their latencies count from when they were due [any number]",
    )
    group.add_argument("--verify", type=count, default=0, metavar="N", help="ask N again unstreamed [%(default)s]")
    group.add_argument(
        "--cancel",
        type=share,
        default=0.0,
        metavar="SHARE",
        help="of the requests whose clients leave early [%(default)g]",
    )
    group.add_argument(
        "--cancel-after", type=positive, metavar="S", help="seconds after sending them [a random place of the answer]"
    )
    group.add_argument(
        "--breaks",
        type=count,
        default=0,
        metavar="N",
        help="break the connection of each stream at up to N random places, and resume it [%(default)s]",
    )


def _pid(text: str) -> str:
    if text != "auto" and not (text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is neither the number of a process nor auto")
    return text


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"not JSON: {error}") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError("not a JSON object")
    return value
