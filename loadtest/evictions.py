"""`headrace loadtest evictions`: what share of a trace's blocks the cache would have held, by eviction policy and size.

The scheduler's own block pool is driven with the policies that a server has. Requests come in the trace's order, one at a time:
each matches its prefix, shares what it finds, allocates blocks for the rest, publishes them, and releases them all. So nothing
overlaps, and answers, whose content traces do not give, take no space. Only full blocks are cached; the rest of a prompt is
left out.

The optimum (Belady, 1966) is shown beside them: it evicts what is needed last, knowing the future as no policy can.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from typing import NamedTuple

from loadtest.workload.numbers import count, positive, share, whole
from loadtest.workload.traces import TraceRequest
from loadtest.workload.traces.problems import TraceError
from loadtest.workload.traces.read import FORMATS, read_trace
from scheduler.kv.block_pool import BlockPool
from scheduler.kv.eviction import eviction_of

POLICIES = ("lru", "predicted")
_SIZES = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)
_NEVER = 1 << 62

Asked = list[list[int]]  # for each request, the blocks of its prompt; equal numbers are equal prefixes


class HitRates(NamedTuple):
    """Hit rates with one size of cache: the share of the blocks asked for that were found, by policy."""

    percent: float  # asked for; of a cache that is raised to the longest prompt, `blocks` are more
    blocks: int
    rates: dict[str, float]
    optimum: float


def main(argv: Sequence[str] | None = None) -> int:
    """Print a table. Returns the exit code: 0 if all went well, 2 if the trace cannot be used."""
    options = _parser().parse_args(argv)
    try:
        requests = read_trace(options.trace, options.format).requests[options.rows]
        asked = blocks_asked(requests, options.block_size)
    except (TraceError, ValueError) as error:
        print(f"headrace loadtest evictions: {error}", file=sys.stderr)
        return 2
    working_set = len({block for request in asked for block in request})
    print(f"{len(asked)} requests ask for {sum(map(len, asked))} full blocks, of which {working_set} are different.\n")
    print("| cache, % of these | blocks | " + " | ".join((*POLICIES, "optimum", "predicted / lru")) + " |")
    print("|" + " --- |" * (len(POLICIES) + 4))
    raised: list[str] = []
    for percent in options.sizes:
        row = measure(asked, percent, options.choice)
        if row.blocks > int(working_set * percent / 100):
            raised.append(f"{percent:g}")
        gain = row.rates["predicted"] / row.rates["lru"] if row.rates["lru"] else float("nan")
        shares = [f"{100 * rate:.1f} %" for rate in (*row.rates.values(), row.optimum)]
        print(f"| {row.percent:g} | {row.blocks} | {' | '.join(shares)} | {gain:.3f} |", flush=True)
    if raised:
        longest = max(map(len, asked))
        print(f"\nRaised to {longest} blocks, those of the longest prompt, which has to fit: {', '.join(raised)} %.")
    return 0


def blocks_asked(requests: Sequence[TraceRequest], block_size: int) -> Asked:
    """The full blocks of each prompt.

    Args:
        requests: those of a trace that gives blocks, or sessions whose prompts extend one another.
        block_size: tokens per block, for sessions; a trace with blocks has its own.

    Raises:
        ValueError: the trace does not say what its prompts share.
    """
    numbers: dict[tuple[str, int], int] = {}
    asked: Asked = []
    for request in requests:
        if request.blocks:
            asked.append(list(request.blocks[: request.prompt_tokens // request.block_tokens]))
        elif request.session is not None:
            names = ((request.session, place) for place in range(request.prompt_tokens // block_size))
            asked.append([numbers.setdefault(name, len(numbers)) for name in names])
    asked = [blocks for blocks in asked if blocks]
    if not asked:
        raise ValueError("the trace has neither blocks nor sessions, so nothing is known to be shared")
    return asked


def measure(asked: Asked, percent: float, choice: float = 0.0) -> HitRates:
    """All policies with a cache of `percent` of the distinct blocks, but never smaller than the longest prompt."""
    working_set = len({block for request in asked for block in request})
    blocks = max(int(working_set * percent / 100), *map(len, asked))
    rates = {name: hit_rate(asked, pool_of(name, blocks, choice)) for name in POLICIES}
    return HitRates(percent, blocks, rates, optimum(asked, blocks))


def pool_of(name: str, blocks: int, choice: float = 0.0) -> BlockPool:
    """A device's pool as a server would have it. A block holds a single token here: its number in the trace."""
    return BlockPool(blocks, 1, eviction=eviction_of(name, blocks), choice=choice)


def hit_rate(asked: Asked, pool: BlockPool, seen: Callable[[int, int], None] = lambda _asked, _found: None) -> float:
    """The share of the blocks that were found. `seen` is called for each request with how many it asked for and found."""
    found = 0
    for blocks in asked:
        keys = [block.to_bytes(16, "little") for block in blocks]
        hits = pool.match(keys, blocks)
        pool.eviction.on_lookup(keys, len(hits))
        pool.share(hits)
        table = hits + pool.allocate(len(keys) - len(hits), hits[-1] if hits else None)
        for place in range(len(hits), len(keys)):
            pool.publish(table[place], keys[place], blocks[place : place + 1])
        pool.release(table)
        found += len(hits)
        seen(len(keys), len(hits))
    return found / sum(map(len, asked))


def optimum(asked: Asked, capacity: int) -> float:
    """The hit rate of a cache that evicts what is asked for again last; of blocks never asked for again, tails first."""
    following = _following(asked)
    kept: dict[int, int] = {}  # block -> the next request that asks for it
    # (-next request, -place in the prompt, block); an entry is void if `kept` says otherwise.
    last_first: list[tuple[int, int, int]] = []
    found = 0
    for blocks, nexts in zip(asked, following, strict=True):
        found += next((place for place, block in enumerate(blocks) if block not in kept), len(blocks))
        for block in blocks:
            kept.pop(block, None)
        while len(kept) + len(blocks) > capacity:
            ask, _, block = heappop(last_first)
            if kept.get(block) == -ask:
                del kept[block]
        for place, (block, ask) in enumerate(zip(blocks, nexts, strict=True)):
            kept[block] = ask
            heappush(last_first, (-ask, -place, block))
    return found / sum(map(len, asked))


def _following(asked: Asked) -> Asked:
    """For each block of each request, the index of the next request that asks for it."""
    coming: dict[int, int] = {}
    following: Asked = []
    for number in range(len(asked) - 1, -1, -1):
        following.append([coming.get(block, _NEVER) for block in asked[number]])
        coming.update(dict.fromkeys(asked[number], number))
    return following[::-1]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="headrace loadtest evictions",
        description="Hit rates of the eviction policies over a trace, by the scheduler's own block pool.",
    )
    parser.add_argument("trace", help="a file in a format that gives blocks (Mooncake) or sessions (BurstGPT)")
    parser.add_argument("--format", choices=list(FORMATS), help="of the trace [by its first line]")
    parser.add_argument("--rows", type=_rows, default=slice(None), metavar="A:B", help="requests to take, from 0 [all]")
    parser.add_argument(
        "--block-size", type=whole, default=32, metavar="N", help="in tokens, for sessions [%(default)s]"
    )
    parser.add_argument(
        "--sizes", type=_sizes, default=_SIZES, metavar="P[,P..]", help="of the cache, in %% of the distinct blocks"
    )
    parser.add_argument(
        "--choice",
        type=share,
        default=0.0,
        metavar="S",
        help="share of unused blocks to choose runs from [%(default)g]",
    )
    return parser


def _rows(text: str) -> slice:
    begin, colon, end = text.partition(":")
    if not colon:
        raise argparse.ArgumentTypeError(f"{text!r} is not a range of rows; write 0:1000")
    return slice(count(begin or "0"), whole(end) if end else None)


def _sizes(text: str) -> tuple[float, ...]:
    return tuple(positive(part) for part in text.split(","))
