"""Which decodes a step has room for, beside the prompts.

Prompts that wait or are being computed keep an eighth of the budget, so that decodes alone never starve them. Where not all
decodes fit, those go first that the order puts first, then those that waited longest. Decodes that the order holds back
(`SchedulingPolicy.held`) run on what the prompts before them leave.
"""

from collections.abc import Collection

from scheduler.policies.base import SchedulingPolicy
from scheduler.types.request import Request


def choose_decodes(
    ready: list[Request], prompts: Collection[Request], waiting: int, budget: int, policy: SchedulingPolicy
) -> list[Request]:
    """The decodes of a step, oldest of the lowest class first.

    Args:
        ready: running requests that lack only their newest token.
        prompts: running requests that lack more, or wait for their last token.
        waiting: requests that do not run.
        budget: tokens of the step.
        policy: who goes first.
    """
    held, before = policy.held(ready, [r for r in prompts if r.prefilling and r.wants_step and not r.loading])
    room = budget - min(budget - 1, max(1, budget // 8)) if prompts or waiting else budget
    room_held = max(0, min(room, budget - before) - (len(ready) - len(held)))
    if len(ready) > room or len(held) > room_held:
        ready = sorted(ready, key=lambda r: (policy.rank(r), r.last_step, r.arrival))
        late = {r.arrival for r in [r for r in ready if r.arrival in held][room_held:]}
        ready = [r for r in ready if r.arrival not in late][:room]
    return sorted(ready, key=lambda r: (r.priority, r.arrival))
