"""How much memory a server will take, known from headers alone, before anything is loaded. No torch."""

from pathlib import Path

import psutil

from configs.model.config import ModelConfig
from configs.model.source import ModelError, ModelSource
from configs.settings import Settings
from engine.cpu.formats import Arithmetic
from engine.device import SCORED_ROWS, StepLimits, step_limits
from scheduler.types.messages import MemoryPlan

GIB = 2**30
MAX_REQUESTS = 64  # unless asked to, a pool holds no more requests of the longest context than this
MIN_TOKENS = 16  # a pool that holds fewer is of no use
RUNTIME_BYTES = 400 * 2**20  # torch's libraries and the HTTP process, measured with the default model
USUAL_STEP = StepLimits(tokens=128, sequences=64)  # a CPU takes seconds for the thousands of tokens that suit a GPU
_SAMPLED_COPIES = 4  # logits, probabilities, their sort and its cumulative sum
_SCORED_COPIES = 3  # logits, exponentials and comparisons: measured 2.1 times the logits
_CGROUPS = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")


def plan_memory(settings: Settings, source: ModelSource, config: ModelConfig, arithmetic: Arithmetic) -> MemoryPlan:
    """Share out the memory of this machine (or of its control group).

    Raises:
        ModelError: the weights or the pool asked for do not fit, or a longer context is asked for than the model has.
            Names both numbers and what to change.
    """
    longest = longest_sequence(settings, config)
    weights, activations = arithmetic.weights_bytes(settings, source, config), activation_bytes(settings, config)
    available = available_bytes()
    free = available - weights - activations - RUNTIME_BYTES - int(settings.kv_host_gib * GIB)
    if free <= 0:
        tier = " and the host's KV tier" if settings.kv_host_gib else ""
        raise ModelError(
            f"{source.name} needs {gib(available - free)} for weights and activations{tier} and {gib(available)} are "
            f"available; free memory, lower --max-step-tokens{tier and ' or --kv-host-gib'} or take a smaller model."
        )
    kv_per_token = arithmetic.kv_bytes_per_token(config)
    blocks = _blocks(settings, kv_per_token * settings.block_size, longest, free)
    context = min(longest, blocks * settings.block_size)
    return MemoryPlan(
        weights=weights,
        kv_per_token=kv_per_token,
        arithmetic=f"{arithmetic.precision}: {arithmetic.reason}",
        block_size=settings.block_size,
        blocks=blocks,
        activations=activations,
        available=available,
        max_model_len=longest,
        context=context,
        concurrent=blocks / covering(context, settings.block_size),
    )


def activation_bytes(settings: Settings, config: ModelConfig) -> int:
    """The most that one step holds besides weights and pool, in bytes: a layer's rows, and logits to sample or to score."""
    heads = config.heads + 2 * config.kv_heads
    row = 4 * config.hidden_size + 3 * heads * config.head_dim + 3 * config.intermediate_size
    limits = step_limits(settings, USUAL_STEP)
    logits = max(_SAMPLED_COPIES * limits.sequences, _SCORED_COPIES * SCORED_ROWS)
    return 4 * (limits.tokens * row + logits * config.vocab_size)


def available_bytes() -> int:
    """Memory a process can still take without swapping, in bytes; in a container, what its control group leaves."""
    return min([psutil.virtual_memory().available, *_free_in_cgroups(_CGROUPS, _MEMBERSHIP)])


def longest_sequence(settings: Settings, config: ModelConfig) -> int:
    """How many tokens a sequence may have.

    Raises:
        ModelError: more are asked for than the model is made for.
    """
    asked = settings.max_model_len or config.max_position
    if asked > config.max_position:
        raise ModelError(
            f"--max-model-len {asked} is more than the {config.max_position} tokens the model is made for; "
            "leave the flag out or lower it."
        )
    return asked


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


def asked_blocks(blocks: int, fitting: int, least: int, block_bytes: int) -> int:
    """The number of blocks that the operator asks for.

    Raises:
        ModelError: they do not fit, or hold next to nothing.
    """
    if blocks > fitting:
        raise ModelError(
            f"--kv-blocks {blocks} takes {gib(blocks * block_bytes)} and {gib(fitting * block_bytes)} are left for the "
            f"KV cache; at most {fitting} blocks fit."
        )
    if blocks < least:
        raise ModelError(f"--kv-blocks {blocks} holds fewer than {MIN_TOKENS} tokens; at least {least} are needed.")
    return blocks


def covering(tokens: int, block_size: int) -> int:
    """How many blocks hold `tokens` tokens."""
    return -(-tokens // block_size)


def _free_in_cgroups(root: Path, membership: Path) -> list[int]:
    """What each control group (version 2) above this process leaves, in bytes. Empty if none has a limit."""
    try:
        lines = membership.read_text(encoding="ascii").splitlines()
    except OSError:
        return []
    paths = [line.removeprefix("0::/") for line in lines if line.startswith("0::/")]
    folder = root / paths[0] if paths else root
    found = []
    while folder == root or root in folder.parents:
        free = _free_in_cgroup(folder)
        found += [] if free is None else [free]
        folder = folder.parent
    return found


def _free_in_cgroup(folder: Path) -> int | None:
    """Limit minus use, in bytes, not counting file pages that are dropped on demand; None: no limit."""
    try:
        limit = (folder / "memory.max").read_text(encoding="ascii").strip()
        used = int((folder / "memory.current").read_text(encoding="ascii"))
        stat = dict(line.split() for line in (folder / "memory.stat").read_text(encoding="ascii").splitlines())
    except (OSError, ValueError):
        return None
    if limit == "max":
        return None
    return max(0, int(limit) - used + int(stat.get("inactive_file", 0)))


def gib(size: int) -> str:
    """A number of bytes, for people to read."""
    return f"{size / GIB:.2f} GiB"
