"""How fast our server is beside servers of others with one model, on this machine:

    make peers FILE=~/models/qwen2.5-coder-1.5b-instruct-q4_k_m.gguf

or, once `make peers` has installed them, and with any other server that has OpenAI's `/v1/completions`:

    python -m loadtest.bench.peers MODEL --against openvino llama.cpp 'other=other-server --model {model} --port {port}' --rounds 4

One server runs at a time, as threads of one that waits take cores from the other; they take turns, in the opposite order in
every second round, because what a machine gives drifts from minute to minute. In a round all get the same prompts. Each is started
anew for its turn, from the page cache if there is room, is asked once, and then left alone before anything is timed, all of them
for as long: one may go on preparing after its first answer, as ours gets huge pages for its weights. `--settle 0` measures what the
first requests after a start get.
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import httpx

from configs.model.source import resolve_model
from loadtest.bench.peers.servers import OURS, Server, Turn, named, ours, turn
from loadtest.bench.peers.table import table
from loadtest.bench.peers.workloads import WORKLOADS, measure
from loadtest.grid.server import ServerFailed
from loadtest.workload.numbers import not_negative, whole

_FEW = "Q1,Q2,Q5"
_SETTLE = 30.0  # ours takes some 20 for the pages of a gigabyte


def arguments_of(words: Sequence[str] | None) -> argparse.Namespace:
    """What the command line says; `workloads` and `servers` in place of names."""
    each = "\n".join(f"  {name}  {workload}" for name, workload in WORKLOADS.items())
    parser = argparse.ArgumentParser(
        prog="python -m loadtest.bench.peers",
        description=f"{(__doc__ or '')}\nWorkloads:\n{each}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", nargs="?", help="a GGUF file, or what else all of them take [the embedded model]")
    parser.add_argument(
        "--against", nargs="+", required=True, metavar="NAME", help="openvino, llama.cpp, or NAME=COMMAND"
    )
    parser.add_argument("--only", default=_FEW, help="workloads, separated by commas [%(default)s]")
    parser.add_argument("--rounds", type=whole, default=4, help="turns of each server [%(default)s]")
    parser.add_argument(
        "--settle", type=not_negative, default=_SETTLE, help="seconds of idling after the first answer [%(default)g]"
    )
    parser.add_argument("--flags", default="", help=f"of {OURS} serve, such as '--speculation off' [none]")
    parser.add_argument("--port", type=int, default=8177, help="where each listens in its turn [%(default)s]")
    parser.add_argument("--seed", type=int, default=0, help="of the prompts [%(default)s]")
    parser.add_argument("--peers", type=Path, default=Path(".peers"), help="where they are installed [%(default)s]")
    parser.add_argument("--output", type=Path, help="a JSON file for all figures, not only the medians")
    options = parser.parse_args(words)
    options.workloads = options.only.split(",")
    if unknown := sorted(set(options.workloads) - set(WORKLOADS)):
        parser.error(f"--only: {', '.join(unknown)} is none of {', '.join(WORKLOADS)}")
    options.model = Path(options.model) if options.model else resolve_model(None).path
    if not options.model.exists():
        parser.error(f"there is no {options.model}")
    try:
        options.servers = [ours(options.flags), *(named(word, options.peers) for word in options.against)]
    except ValueError as error:
        parser.error(f"--against: {error}")
    if len({server.name for server in options.servers}) < len(options.servers):
        parser.error("--against: two servers of one name")
    return options


def processor() -> str:
    """The machine's, as Linux names it, and how many of its cores this process may use."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    name = next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown processor"
    )
    return f"{name}, {len(os.sched_getaffinity(0))} cores"


def asked(at: Turn, workloads: Sequence[str], seed: int, settle: float) -> dict[str, float]:
    """All figures of a server in its turn, once it has idled for `settle` seconds."""
    asyncio.run(measure(at.target, WORKLOADS["Q1"], WORKLOADS["Q1"].prompts(-1)[:1]))
    time.sleep(settle)
    figures = {"ready": at.ready}
    for name in workloads:
        figures[name] = asyncio.run(measure(at.target, WORKLOADS[name], WORKLOADS[name].prompts(seed)))
    return {**figures, "memory": at.peak_bytes() / 2**30}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run. Returns 1 if a server does not start or fails a request."""
    options = arguments_of(arguments)
    servers: list[Server] = options.servers
    figures: dict[str, dict[str, list[float]]] = {server.name: {} for server in servers}
    with tempfile.TemporaryDirectory() as folder:
        for round_ in range(options.rounds):
            for server in servers[:: 1 if round_ % 2 == 0 else -1]:
                try:
                    with turn(server, str(options.model), options.port, Path(folder, server.name)) as at:
                        found = asked(at, options.workloads, options.seed + round_, options.settle)
                except (ServerFailed, OSError, ValueError, httpx.HTTPError) as error:
                    print(f"{server.name}: {error or type(error).__name__}", file=sys.stderr)
                    return 1
                print(f"round {round_ + 1} {server.name:10}", *(f"{k} {v:.3g}" for k, v in found.items()), flush=True)
                for name, value in found.items():
                    figures[server.name].setdefault(name, []).append(value)
    print(f"\n{options.model.name}, {processor()}, medians of {options.rounds} (lowest to highest)\n\n{table(figures)}")
    if options.output:
        told = {"model": options.model.name, "processor": processor(), "figures": figures}
        options.output.write_text(json.dumps(told, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
