"""What the operator reads at start-up: the memory plan before anything is loaded, the phases, how far long ones are, the address, a
curl to try."""

import json
import logging
import os
import shlex
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TextIO

from scheduler.types.messages import Event, MemoryPlan, Ready, StartPhase, WeightsRead
from scheduler.types.output_kind import OutputKind

_log = logging.getLogger("headrace.engine")
_PATIENCE = 2.0  # seconds from the server's start on: who waits no longer needs no telling how far weights are
_EVERY = 5.0  # seconds between two lines of the log about that
_WIDTH = 40  # of the bar on a terminal
_ERASE = "\r\x1b[2K"
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


@dataclass(slots=True)
class _Told:
    """How much of one engine's start-up has been printed, and the phases still to print."""

    planned: bool = False
    ready: bool = False
    phases: list[StartPhase] = field(default_factory=list)


class Console:
    """Prints each part once for each engine, as its event arrives. Restarts and failures are left to the log.

    Args:
        out: the stream to print to.
        engines: names of the server's engines. They are printed only if there are several.
        url: the server's address.
        uds: the Unix socket on which it is served there, if it is one.
        model: the name that requests use.
        has_template: whether the model can chat.
        keyed: whether requests need an API key.
        page: whether a browser finds a page there.
        started: when the server's process started, in `time.monotonic()` seconds.
    """

    def __init__(
        self,
        out: TextIO,
        *,
        engines: Sequence[str],
        url: str,
        uds: str | None = None,
        model: str,
        has_template: bool,
        keyed: bool,
        page: bool,
        started: float,
    ) -> None:
        self._out = out
        self._place = url if uds is None else f"the Unix socket {uds}"
        self._curl = partial(first_curl, url, model, has_template=has_template, keyed=keyed, uds=uds)
        self._hint = "Open it in a browser, or try" if page and uds is None else "Try"
        self._started = started
        self._told = {name: _Told() for name in engines}
        self._load_line = LoadLine(out, started)

    def on_event(self, engine: str, event: Event) -> None:
        """Print what this event of the named engine completes."""
        told = self._told[engine]
        match event:
            case MemoryPlan() if not told.planned:
                told.planned = True
                self._print([*self._heading(engine), *plan_lines(event)])
            case WeightsRead() if not told.ready:
                self._load_line.tell(f"weights of {engine}" if len(self._told) > 1 else "weights", event.part)
            case StartPhase() if not told.ready:
                self._load_line.erase()
                told.phases.append(event)
            case Ready() if not told.ready:
                first = not any(each.ready for each in self._told.values())
                told.ready = True
                lines = phase_lines(told.phases, time.monotonic() - self._started)
                ends = [f"End tokens  {event.ends}"] if OutputKind.TOKENS in event.produces else []
                self._print([*self._heading(engine), *lines, *ends])
                if first:
                    hint = f"headrace listens on {self._place} ({event.device}). {self._hint}:"
                    self._print([hint, "", f"  {self._curl(produces=event.produces)}"])
            case _:
                pass

    def _heading(self, engine: str) -> list[str]:
        return [f"Engine {engine}"] if len(self._told) > 1 else []

    def _print(self, lines: Sequence[str]) -> None:
        """Print, if anybody can still be told: a full disk or a reader that has gone is no reason not to serve."""
        try:
            print("\n".join([*lines, ""]), file=self._out, flush=True)
        except OSError as error:
            _log.warning("what is told at start-up cannot be printed: %s", error)
            with open(os.devnull, "wb") as nowhere:  # for what is still in the buffer
                os.dup2(nowhere.fileno(), self._out.fileno())


class LoadLine:
    """Tells how far weights are loaded: a bar on a terminal, a line of the log every few seconds elsewhere.

    Args:
        out: the stream of what is told at start-up.
        started: when the server's process started, by `clock`.
        clock: gives seconds.
    """

    def __init__(self, out: TextIO, started: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._out = out
        self._clock = clock
        self._next = started + _PATIENCE
        self._drawn = False

    def tell(self, what: str, part: float) -> None:
        """`what` is loaded up to this part, 0 to 1."""
        if (now := self._clock()) < self._next:
            return
        if self._out.isatty():
            filled = round(part * _WIDTH)
            self._drawn = True
            # The cursor goes back to the first column, so that a line of the log takes the bar's place.
            self._write(f"{_ERASE}{what}  {'█' * filled}{'░' * (_WIDTH - filled)}  {part:4.0%}\r")
        else:
            self._next = now + _EVERY
            _log.info("%s: %.0f %% loaded", what, 100 * part)

    def erase(self) -> None:
        """Make room for other text."""
        if self._drawn:
            self._write(_ERASE)
            self._drawn = False

    def _write(self, text: str) -> None:
        try:
            self._out.write(text)
            self._out.flush()
        except (OSError, UnicodeEncodeError):  # nobody can be told, or not in these characters: no reason not to serve
            self._drawn = False


def size(count: int) -> str:
    """A number of bytes in a form for people: `45.0 KiB`."""
    value, unit = float(count), 0
    while value >= 1024 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{value:.1f} {_UNITS[unit]}" if unit else f"{count} B"


def plan_lines(plan: MemoryPlan) -> list[str]:
    """The memory plan as a table."""
    pool = plan.kv_per_token * plan.block_size * plan.blocks
    holders = plan.weights_holders
    shared = f"its part of {size(plan.weights)}, which {holders} engines share" if holders > 1 else ""
    draft_pool = plan.draft_kv_per_token * plan.block_size * plan.blocks
    draft = [("draft model", size(plan.draft + draft_pool), f"{size(draft_pool)} of it for its own KV")]
    total = plan.weights // holders + pool + plan.activations + plan.draft + draft_pool
    bound = "max_model_len" if plan.context == plan.max_model_len else "as much as the pool holds"
    rows = [
        ("weights", size(plan.weights // holders), shared),
        ("KV pool", size(pool), f"{plan.blocks} blocks of {plan.block_size} tokens, {size(plan.kv_per_token)} a token")
        if pool
        else ("no KV", "", "each text is computed whole, and nothing of it is kept"),
        ("activations", size(plan.activations), ""),
        *(draft if plan.draft else []),
        (
            "together",
            size(total),
            f"of {size(plan.available)} available" + (plan.available_by and f" ({plan.available_by})"),
        ),
    ]
    context = (
        f"  longest context  {plan.context} tokens ({bound}); {plan.concurrent:.1f} requests of that length fit at once"
    )
    lines = [f"  {name:11}  {amount:>10}  {note}".rstrip() for name, amount, note in rows]
    cores = [f"Cores       {plan.cores}"] if plan.cores else []
    return [f"Arithmetic  {plan.arithmetic}", *cores, "Memory plan", *lines, context]


def phase_lines(phases: Sequence[StartPhase], total: float) -> list[str]:
    """The start-up phases in seconds, with what they leave of `total`, so that the table adds up to the wall time."""
    rows = [(phase.name, phase.seconds) for phase in phases]
    rows += [("everything else", max(0.0, total - sum(seconds for _, seconds in rows))), ("total", total)]
    width = max(len(name) for name, _ in rows)
    return ["Start-up", *(f"  {name:{width}}  {seconds:8.2f} s" for name, seconds in rows)]


def first_curl(
    url: str,
    model: str,
    *,
    has_template: bool,
    keyed: bool,
    uds: str | None = None,
    produces: Collection[OutputKind] = (OutputKind.TOKENS,),
) -> str:
    """A request to try. If keys are needed, it names a shell variable that holds one, never the key itself."""
    path, asked = _first_request(has_template, produces)
    body = {"model": model, **asked}
    key = ' -H "Authorization: Bearer $API_KEY"' if keyed else ""
    payload = shlex.quote(json.dumps(body, ensure_ascii=False))
    socket = "" if uds is None else f"--unix-socket {shlex.quote(uds)} "
    return f"curl {socket}{url}/v1/{path} -H 'Content-Type: application/json'{key} -d {payload}"


def _first_request(has_template: bool, produces: Collection[OutputKind]) -> tuple[str, dict[str, object]]:
    """Path and body, by what the model is served for."""
    if OutputKind.TOKENS in produces and has_template:
        return "chat/completions", {"messages": [{"role": "user", "content": "Name three rivers."}], "max_tokens": 64}
    if OutputKind.TOKENS in produces:
        return "completions", {"prompt": "The longest river of the world is", "max_tokens": 64}
    if OutputKind.VECTOR in produces:
        return "embeddings", {"input": "The longest river of the world is the Nile."}
    return "rerank", {"query": "Which river is the longest?", "documents": ["Rivers carry water.", "The Nile is."]}
