"""How the prompts that are being computed share what a step has left after the decodes.

Half goes to the oldest, so that no prompt starves; the other half to the shortest remaining first, so that a short prompt
passes a long one; what is left over goes on down the same line. Prompts of equal length therefore run first come first
served, which gives the lowest mean TTFT. Chunking a prompt beside decodes is Dynamic SplitFuse (DeepSpeed-FastGen, section 3).
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Need(NamedTuple):
    """What one prompt could use."""

    rank: tuple[int, ...]  # less goes first
    arrival: int  # of the request, unique
    remaining: int  # tokens still to compute


def split_prefill(needs: Iterable[Need], budget: int) -> dict[int, int]:
    """Tokens for each prompt, by its `arrival`; those that get none are left out. The sum is at most `budget`.

    Rank goes first: a prompt gets nothing while one of a lesser rank could still use the tokens.
    """
    classes: dict[tuple[int, ...], list[Need]] = {}
    for need in needs:
        classes.setdefault(need.rank, []).append(need)
    shares: dict[int, int] = {}
    for rank in sorted(classes):
        for arrival, tokens in _split_class(classes[rank], budget).items():
            shares[arrival] = tokens
            budget -= tokens
    return shares


def _split_class(needs: Sequence[Need], budget: int) -> dict[int, int]:
    oldest = min(needs, key=lambda need: need.arrival)
    shares = {oldest.arrival: min(oldest.remaining, -(-budget // 2))}
    left = budget - shares[oldest.arrival]
    for need in sorted(needs, key=lambda need: (need.remaining, need.arrival)):
        given = shares.get(need.arrival, 0)
        take = min(left, need.remaining - given)
        shares[need.arrival] = given + take
        left -= take
    return {arrival: tokens for arrival, tokens in shares.items() if tokens > 0}
