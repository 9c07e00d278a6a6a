"""The orders by the name an operator chooses them by."""

from scheduler.policies.fair import FairOrder
from scheduler.policies.policy import Order
from scheduler.policies.prefix_batch import ThroughputOrder
from scheduler.policies.token_cost import Prices
from scheduler.types.config import SchedulerConfig

ORDERS = ("fcfs", "priority", "fair", "throughput")
_CREDIT_CONTEXTS = 2  # a light tenant's burst that is served ahead of others: two of the longest prompts
_MARGIN_STEPS = 2  # differences below what two full steps of prompt tokens give are noise


def make_order(config: SchedulerConfig) -> Order:
    """The order of a scheduler.

    Raises:
        ValueError: the configuration names none of `ORDERS`.
    """
    match config.scheduling:
        case "fcfs":
            return Order(groups=False)
        case "priority":
            return Order()
        case "fair":
            return FairOrder(
                Prices(config.decode_price),
                credit=_CREDIT_CONTEXTS * config.context,
                margin=_MARGIN_STEPS * config.max_step_tokens,
                weights=config.tenant_weights,
            )
        case "throughput":
            return ThroughputOrder()
    raise ValueError(f"scheduling must be one of {', '.join(ORDERS)}, got {config.scheduling!r}")
