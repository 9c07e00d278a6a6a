"""Requests without a file: lengths drawn by a description, such as `prompt=256±64,output=128`.

    256        always so many tokens
    256±64     normal, with this mean and standard deviation (`256+-64` is the same), at least 1
    100-500    uniform, both ends included

`prefix=512` lets all prompts begin with the same 512 tokens, like a system prompt. There are no times, so arrivals must be drawn.
"""

import re
from collections.abc import Callable
from itertools import count, islice
from random import Random

from loadtest.workload.traces import Trace, TraceRequest
from loadtest.workload.traces.problems import TraceError

MANY = 1000  # requests, if nobody says how many; longer runs go through them again, with other texts
_FIELDS = ("prompt", "output", "prefix")
_MOST = 1 << 24  # tokens
_NUMBER = r"(\d+(?:\.\d+)?)"
_NORMAL = re.compile(rf"{_NUMBER}(?:±|\+-|\+/-){_NUMBER}")
_UNIFORM = re.compile(r"(\d+)-(\d+)")
Draw = Callable[[Random], int]


def synthetic(text: str, many: int = MANY, seed: int = 0) -> Trace:
    """`many` requests by a description. The same arguments give the same ones. Raises TraceError, which says what is accepted."""
    draws = _parsed(text)
    rng = Random(f"{seed} synthetic")
    prefix = draws["prefix"](rng) if "prefix" in draws else 0
    requests, own = [], count(1)
    for number in range(many):
        prompt, output = prefix + draws["prompt"](rng), draws["output"](rng)
        blocks = (0, *islice(own, -(-prompt // prefix) - 1)) if prefix else ()
        requests.append(
            TraceRequest(
                line=number + 1,
                arrival=0.0,
                prompt_tokens=prompt,
                output_tokens=output,
                blocks=blocks,
                block_tokens=prefix,
            )
        )
    return Trace(name=f"synthetic {text}", format="synthetic", requests=requests, timed=False)


def _parsed(text: str) -> dict[str, Draw]:
    found: dict[str, Draw] = {}
    for pair in text.split(","):
        name, _, value = pair.strip().partition("=")
        if name not in _FIELDS or name in found:
            raise TraceError(
                f"--synthetic: {pair!r} is none of {', '.join(_FIELDS)}, or one twice: prompt=256±64,output=128"
            )
        found[name] = _draw(name, value)
    missing = [name for name in ("prompt", "output") if name not in found]
    if missing:
        raise TraceError(f"--synthetic {text!r} has no {missing[0]}: prompt=256±64,output=128")
    return found


def _draw(name: str, text: str) -> Draw:
    """What draws a length. Raises TraceError."""
    if match := _NORMAL.fullmatch(text):
        mean, spread = float(match[1]), float(match[2])
        if 1 <= mean <= _MOST and spread <= _MOST:
            return lambda rng: min(_MOST, max(1, round(rng.gauss(mean, spread))))
    elif match := _UNIFORM.fullmatch(text):
        low, high = int(match[1]), int(match[2])
        if 1 <= low <= high <= _MOST:
            return lambda rng: rng.randint(low, high)
    elif text.isdecimal() and 1 <= int(text) <= _MOST:
        length = int(text)
        return lambda rng: length
    raise TraceError(f"--synthetic: {name}={text} is no length from 1 to {_MOST:,}: 256, 256±64, 100-500")
