"""How much memory an encoder takes, known from headers alone. No torch."""

from math import prod

from configs.model.encoder import EncoderConfig
from configs.model.source import ModelError, ModelSource
from configs.settings import Settings
from engine.cgroups import Bound
from engine.device import StepLimits, step_limits
from engine.memory import gib, longest_sequence
from engine.models.registry import encoder_family_of
from scheduler.types.messages import MemoryPlan

_CPU_STEP = StepLimits(tokens=1024, sequences=128)  # a tenth of a second of MiniLM on two cores
_GPU_STEP = StepLimits(tokens=16384, sequences=256)
_RUNTIME_BYTES = 400 * 2**20  # torch's libraries and the HTTP process
_WITHOUT_KV = ("kv_blocks", "kv_host_gib", "kv_disk_path", "protect_kv", "roles")


def encoder_limits(settings: Settings, config: EncoderConfig, *, cpu: bool) -> StepLimits:
    """How much one step holds: at least one text of the longest length, since none can be cut."""
    limits = step_limits(settings, _CPU_STEP if cpu else _GPU_STEP)
    return StepLimits(max(limits.tokens, encoder_context(settings, config)), limits.sequences)


def encoder_context(settings: Settings, config: EncoderConfig) -> int:
    """How many tokens a text may have, special ones included.

    Raises:
        ModelError: more are asked for than the model is made for, and the settings do not allow that, or it has no more positions.
    """
    longest = longest_sequence(settings, config)
    if longest > config.positions:
        raise ModelError(
            f"--max-model-len {longest} is more than the {config.positions} positions that the model has; lower it."
        )
    return longest


def check_settings(settings: Settings) -> None:
    """Refuse what an encoder has no use for.

    Raises:
        ModelError: names the setting.
    """
    if settings.tensor_parallel > 1:
        raise ModelError("--tensor-parallel: encoders are computed on one GPU each; use --engines for more.")
    for name in _WITHOUT_KV:
        if settings.asks_for(name):
            raise ModelError(f"--{name.replace('_', '-')} is set, but an encoder keeps no KV: leave it out.")


def plan_encoder(
    settings: Settings,
    source: ModelSource,
    config: EncoderConfig,
    limits: StepLimits,
    available: Bound,
    *,
    number_bytes: int,
    arithmetic: str,
) -> MemoryPlan:
    """Share out the available memory: weights, and the largest step.

    An encoder keeps no KV. What the scheduler counts with are nominal blocks without bytes, each of a whole text, one for each
    sequence that may run and as many again that are never lacking.

    Raises:
        ModelError: it does not fit, or a longer context is asked for than the model has.
    """
    check_settings(settings)
    longest = encoder_context(settings, config)
    numbers = sum(prod(tensor.shape) for tensor in encoder_family_of(config).tensors(config))
    row = 6 * config.hidden_size + 2 * config.intermediate_size
    scores = config.heads * longest  # of a text that attends, where the device holds them at once
    weights, activations = numbers * number_bytes, limits.tokens * (row + scores) * number_bytes
    free = int(available.amount)
    if (needed := weights + activations + _RUNTIME_BYTES) > free:
        raise ModelError(
            f"{source.name} needs {gib(needed)} for weights and activations and {gib(free)} are available ({available.source}); "
            "free memory, lower --max-step-tokens or take a smaller model."
        )
    return MemoryPlan(
        weights=weights,
        kv_per_token=0,
        block_size=longest,
        blocks=2 * limits.sequences,
        activations=activations,
        available=free,
        available_by=available.source,
        max_model_len=longest,
        context=longest,
        concurrent=float(limits.sequences),
        arithmetic=arithmetic,
    )
