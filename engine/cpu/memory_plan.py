"""How much memory a server will take, known from headers alone, before anything is loaded. No torch."""

from collections.abc import Sequence
from dataclasses import dataclass

from configs.model.config import ModelConfig
from configs.model.source import ModelError, ModelSource
from configs.settings import Settings
from engine.cpu.formats import Arithmetic, choose_arithmetic
from engine.device import StepLimits, step_limits
from engine.drafting.draft_files import DraftFiles
from engine.ipc.share import own_share
from engine.kv_store.tiers import TierEntry
from engine.machine import free_memory
from engine.memory import MIN_TOKENS, SCORED_ROWS, asked_blocks, covering, gib, longest_held, longest_sequence
from scheduler.types.messages import MemoryPlan

MAX_REQUESTS = 64  # unless asked to, a pool holds no more requests of the longest context than this
RUNTIME_BYTES = 400 * 2**20  # torch's libraries and the HTTP process, measured with the default model
USUAL_STEP = StepLimits(tokens=128, sequences=64)  # a CPU takes seconds for the thousands of tokens that suit a GPU
CAPPED_TOKENS = 1024  # keys whose capped scores are held at once: `kernels.cpu.ops.paged_attention`, which needs torch
SHORT_HEAD = 32_768  # tokens that a draft considers at a time, where its vocabulary is twice as large
_SAMPLED_COPIES = 4  # logits, probabilities, their sort and its cumulative sum
_SCORED_COPIES = 3  # logits, exponentials and comparisons: measured 2.1 times the logits


@dataclass(frozen=True, slots=True)
class DraftMemory:
    """What a draft model takes besides the model, in bytes.

    Attributes:
        fixed: weights and activations; each engine has its own.
        kv_per_token: of its own KV, of which there are as many blocks as of the model's.
    """

    fixed: int = 0
    kv_per_token: int = 0


NO_DRAFT = DraftMemory()


def plan_memory(
    settings: Settings,
    source: ModelSource,
    config: ModelConfig,
    arithmetic: Arithmetic,
    tiers: Sequence[TierEntry] = (),
    *,
    draft: DraftMemory = NO_DRAFT,
) -> MemoryPlan:
    """Share out the memory of this machine (or of its control group), of which tiers below the device take their part.

    Raises:
        ModelError: the weights or the pool asked for do not fit, or a longer context is asked for than the model has.
            Names both numbers and what to change.
    """
    longest = longest_sequence(settings, config)
    weights, activations = arithmetic.weights_bytes(settings, source, config), activation_bytes(settings, config)
    share, bound = own_share(), free_memory()
    holders = 1 if share is None else share.weights_holders
    available = int(bound.amount)
    here = [tier for tier in tiers if tier.host_bytes]
    needed = -(-weights // holders) + activations + draft.fixed + RUNTIME_BYTES
    free = available - needed - sum(tier.host_bytes for tier in here)
    if free <= 0:
        drafts = ["the draft model"] if draft.fixed else []
        takers = " and ".join(["weights and activations", *drafts, *(f"the KV tier {tier.name}" for tier in here)])
        flags = " or ".join(["--max-step-tokens", *(tier.sized_by for tier in here)])
        raise ModelError(
            f"{source.name} needs {gib(available - free)} for {takers} and {gib(available)} are available ({bound.source}); "
            f"free memory, lower {flags} or take a smaller model."
        )
    kv_per_token = arithmetic.kv_bytes_per_token(config)
    blocks = _blocks(settings, (kv_per_token + draft.kv_per_token) * settings.block_size, longest, free)
    context = longest_held(settings, longest, blocks)
    return MemoryPlan(
        weights=weights,
        weights_holders=holders,
        kv_per_token=kv_per_token,
        arithmetic=f"{arithmetic.precision}: {arithmetic.reason}",
        block_size=settings.block_size,
        blocks=blocks,
        activations=activations,
        draft=draft.fixed,
        draft_kv_per_token=draft.kv_per_token,
        available=available,
        available_by=bound.source,
        max_model_len=longest,
        context=context,
        concurrent=blocks / covering(context, settings.block_size),
    )


def activation_bytes(settings: Settings, config: ModelConfig) -> int:
    """The most that one step holds besides weights and pool, in bytes: a layer's rows, and logits to sample or to score."""
    heads = config.heads + 2 * config.kv_heads
    row = 4 * config.hidden_size + 3 * heads * config.head_dim + 3 * config.intermediate_size
    if config.scales.attention_soft_cap is not None:
        row += 3 * config.heads * CAPPED_TOKENS  # scores, exponentials and those that are hidden
    limits = step_limits(settings, USUAL_STEP)
    logits = max(_SAMPLED_COPIES * limits.sequences, _SCORED_COPIES * SCORED_ROWS)
    return 4 * (limits.tokens * row + logits * config.vocab_size)


def draft_memory(settings: Settings, draft: DraftFiles) -> DraftMemory:
    """What a draft model will take."""
    arithmetic = choose_arithmetic(settings, draft.config)
    fixed = arithmetic.weights_bytes(settings, draft.source, draft.config) + activation_bytes(settings, draft.config)
    if arithmetic.library is not None and draft.config.vocab_size >= 2 * SHORT_HEAD:
        fixed += SHORT_HEAD * draft.config.hidden_size * 34 // 32  # the part of its head, in 8 bits at most
    return DraftMemory(fixed, arithmetic.kv_bytes_per_token(draft.config))


def _blocks(settings: Settings, block_bytes: int, longest: int, free: int) -> int:
    fitting, least = free // block_bytes, covering(MIN_TOKENS, settings.block_size)
    if settings.kv_blocks is not None:
        return asked_blocks(settings.kv_blocks, fitting, least, block_bytes)
    one = covering(longest, settings.block_size)
    share = int(free * settings.kv_memory_fraction) // block_bytes
    blocks = min(max(share, one), MAX_REQUESTS * one, fitting)
    if blocks < least:
        raise ModelError(
            f"{gib(free)} are left for the KV cache and the smallest useful one takes {gib(least * block_bytes)}; "
            "free memory or take a smaller model."
        )
    return blocks
