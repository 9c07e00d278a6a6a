"""The scheduling policies, by the names that operators use."""

from scheduler.policies.base import SchedulingPolicy
from scheduler.policies.fair import FairPolicy
from scheduler.policies.prefix_batch import PrefixBatchPolicy
from scheduler.policies.token_cost import TokenCost
from scheduler.types.config import SchedulerConfig

POLICIES = ("fcfs", "priority", "fair", "throughput")
_CREDIT_CONTEXTS = 2  # a light tenant's burst that is served before others: two of the longest prompts
_MARGIN_STEPS = 2  # differences of less than two full steps of prompt tokens are noise


def make_policy(config: SchedulerConfig) -> SchedulingPolicy:
    """The scheduling policy that the configuration names.

    Raises:
        ValueError: it is not one of `POLICIES`.
    """
    match config.scheduling:
        case "fcfs":
            return SchedulingPolicy(groups=False)
        case "priority":
            return SchedulingPolicy()
        case "fair":
            return FairPolicy(
                TokenCost(config.decode_price),
                credit=_CREDIT_CONTEXTS * config.context,
                margin=_MARGIN_STEPS * config.max_step_tokens,
                weights=config.tenant_weights,
            )
        case "throughput":
            return PrefixBatchPolicy()
    raise ValueError(f"scheduling must be one of {', '.join(POLICIES)}, got {config.scheduling!r}")
