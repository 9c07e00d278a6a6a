"""How the tokens of a step are shared: decodes first, then prompts.

Decodes. An eighth of the budget is kept for prompts that wait or are being computed, so that decodes never starve them. If not
all decodes fit, those that the policy puts first go first, then those that have waited longest. Decodes that the policy holds
back (`SchedulingPolicy.deferred`) run on what the prompts before them leave.

Prompts. Half of what is left goes to the oldest, so that no prompt starves; the other half goes to the shortest remaining one,
so that a short prompt passes a long one, and what is left over to the next shortest. Prompts of equal length therefore run first
come, first served, which gives the lowest mean TTFT. Chunking a prompt beside decodes is Dynamic SplitFuse (DeepSpeed-FastGen,
section 3).
"""

from collections.abc import Callable, Collection, Iterable, Sequence

from scheduler.policies.base import Need, SchedulingPolicy
from scheduler.types.request import Request


def choose_decodes(
    ready: list[Request], prompts: Collection[Request], budget: int, policy: SchedulingPolicy, *, room: int
) -> list[Request]:
    """The decodes of a step, by priority and then by arrival.

    Args:
        ready: running requests that only have to compute their newest token.
        prompts: running requests that have to compute more, or wait for their last token.
        budget: tokens of the step.
        policy: decides who goes first.
        room: tokens that they may take (`decode_room`).
    """
    deferred, before = policy.deferred(ready, [r for r in prompts if r.prefilling and r.wants_step and not r.loading])
    room_deferred = max(0, min(room, budget - before) - (len(ready) - len(deferred)))
    if len(ready) > room or len(deferred) > room_deferred:
        ready = sorted(ready, key=lambda r: (policy.rank(r), r.last_step, r.arrival))
        late = {r.arrival for r in [r for r in ready if r.arrival in deferred][room_deferred:]}
        ready = [r for r in ready if r.arrival not in late][:room]
    return sorted(ready, key=lambda r: (r.priority, r.arrival))


def decode_room(budget: int, *, prompts: bool) -> int:
    """Tokens of a step that decodes may take: all of them, unless there are prompts to compute or requests that wait."""
    return budget - min(budget - 1, max(1, budget // 8)) if prompts else budget


Split = Callable[[Iterable[Need], int], dict[int, int]]


def splitter(whole_prompts: bool) -> Split:
    """How prompts share a step's tokens."""
    return split_whole if whole_prompts else split_prefill


def split_prefill(needs: Iterable[Need], budget: int) -> dict[int, int]:
    """Tokens for each prompt, by its `arrival`; prompts that get none are left out. The sum is at most `budget`.

    Rank goes first: a prompt gets nothing while one of a lower rank could still use the tokens.
    """
    needs = list(needs)
    if sum([need.remaining for need in needs]) <= budget:
        return {need.arrival: need.remaining for need in needs if need.remaining > 0}
    if len({need.rank for need in needs}) == 1:
        return _split_class(needs, budget)
    classes: dict[tuple[int, ...], list[Need]] = {}
    for need in needs:
        classes.setdefault(need.rank, []).append(need)
    shares: dict[int, int] = {}
    for rank in sorted(classes):
        for arrival, tokens in _split_class(classes[rank], budget).items():
            shares[arrival] = tokens
            budget -= tokens
    return shares


def split_whole(needs: Iterable[Need], budget: int) -> dict[int, int]:
    """Likewise where no prompt may be cut, since each of its tokens looks at all others (encoders): all of a prompt, or nothing.

    The oldest of the lowest rank goes first, and one that does not fit in what is left is passed by shorter ones. It is not passed
    for long: if it is first in line, it has a step that it fits in.
    """
    shares: dict[int, int] = {}
    for need in sorted(needs, key=lambda need: (need.rank, need.arrival)):
        if 0 < need.remaining <= budget:
            shares[need.arrival] = need.remaining
            budget -= need.remaining
    return shares


def _split_class(needs: Sequence[Need], budget: int) -> dict[int, int]:
    oldest, remaining = min([(arrival, remaining) for _, arrival, remaining in needs])
    shares = {oldest: min(remaining, -(-budget // 2))}
    left = budget - shares[oldest]
    for remaining, arrival in sorted([(remaining, arrival) for _, arrival, remaining in needs]):
        if not left:
            break
        given = shares.get(arrival, 0)
        take = min(left, remaining - given)
        shares[arrival] = given + take
        left -= take
    return {arrival: tokens for arrival, tokens in shares.items() if tokens > 0}
