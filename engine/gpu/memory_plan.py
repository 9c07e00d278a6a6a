"""How much of a GPU's memory a server will take, known from headers alone, before anything is loaded.

Every part is counted, and only what is free is shared out: a GPU may have other users.
"""

from configs.model.config import ModelConfig
from configs.model.source import ModelError, ModelSource
from configs.settings import Settings
from engine.device import StepLimits
from engine.gpu.formats import GpuArithmetic
from engine.gpu.graph_policy import GraphPlan
from engine.gpu.weights import weights_bytes
from engine.memory import MIN_TOKENS, SCORED_ROWS, asked_blocks, covering, gib, longest_held, longest_sequence
from engine.models.registry import family_of
from engine.tensor_parallel.shards import split_config
from kernels.gpu.attention.decode import most_parts
from kernels.gpu.sampling.sample import ROWS_AT_ONCE
from scheduler.types.messages import MemoryPlan

# Not measured yet: no GPU has run this.
RUNTIME_BYTES = 768 * 2**20  # compiled kernels, workspaces of cuBLAS on two streams, and gaps between allocations
GRAPH_BYTES = 4 * 2**20  # of one graph's launches: some hundreds, with their arguments
_SCORED_COPIES = 4  # logits in 16 bits and in fp32, exponentials, comparisons


def plan_gpu_memory(
    settings: Settings,
    source: ModelSource,
    config: ModelConfig,
    arithmetic: GpuArithmetic,
    limits: StepLimits,
    *,
    free: int,
    ranks: int = 1,
) -> MemoryPlan:
    """Share out `free` bytes of a device; each of `ranks` devices gets the same plan. Its `activations` include graphs and runtime.

    Raises:
        ModelError: the weights or the pool asked for do not fit, or a longer context is asked for than the model has.
            Names both numbers and what to change.
    """
    longest = longest_sequence(settings, config)
    weights = weights_bytes(source, config, arithmetic, load_format=settings.load_format, ranks=ranks)
    config = split_config(config, ranks)
    step = step_bytes(config, limits, arithmetic.dtype.itemsize, longest)
    if settings.cuda_graphs:
        step += graph_bytes(config, limits, arithmetic.dtype.itemsize, longest)
    left = free - weights - step - RUNTIME_BYTES
    if left <= 0:
        raise ModelError(
            f"{source.name} needs {gib(free - left)} for weights and activations and {gib(free)} are free on the GPU; "
            "free memory there, lower --max-step-tokens or --max-running, or take a smaller model."
        )
    block = arithmetic.kv_block_bytes(config, settings.block_size)
    blocks = _blocks(settings, block, left)
    context = longest_held(settings, longest, blocks)
    return MemoryPlan(
        weights=weights,
        kv_per_token=covering(block, settings.block_size),
        arithmetic=arithmetic.reason,
        block_size=settings.block_size,
        blocks=blocks,
        activations=step + RUNTIME_BYTES,
        available=free,
        max_model_len=longest,
        context=context,
        concurrent=blocks / covering(context, settings.block_size),
    )


def step_bytes(config: ModelConfig, limits: StepLimits, itemsize: int, context: int) -> int:
    """The most that one eager step holds besides weights and pool, in bytes: a layer's rows, partial states of attention, logits
    to sample or to score, and the token counts of penalties."""
    rows = limits.tokens * _row_bytes(config, itemsize)
    each = 3 * 4 + itemsize + 4  # logits as they are, in fp32 and once more for logprobs beside edits; counts of tokens
    sampled = limits.sequences * each + min(limits.sequences, ROWS_AT_ONCE) * 8
    scored = SCORED_ROWS * _SCORED_COPIES * 4
    return rows + _states_bytes(config, limits, context) + max(sampled, scored) * config.vocab_size


def graph_bytes(config: ModelConfig, limits: StepLimits, itemsize: int, context: int) -> int:
    """Memory of all CUDA graphs, in bytes. They share one pool of activations, since one runs at a time."""
    plan = GraphPlan(limits.sequences, context)
    rows = limits.sequences * _row_bytes(config, itemsize)
    return plan.size * GRAPH_BYTES + rows + _states_bytes(config, limits, context)


def _row_bytes(config: ModelConfig, itemsize: int) -> int:
    """Bytes of one token in a layer: residual, normed, change, sum, the sum normed; projections; gate and up, their product."""
    heads = 2 * config.heads + 2 * config.kv_heads
    rows = 5 if family_of(config).has("after_mlp_norm") else 4
    return itemsize * (rows * config.hidden_size + 2 * heads * config.head_dim + 3 * config.intermediate_size)


def _states_bytes(config: ModelConfig, limits: StepLimits, context: int) -> int:
    """Partial states of decode attention, fp32, in bytes, when every sequence has its greatest length."""
    parts = most_parts(context, config.kv_heads)
    return 0 if parts == 1 else 4 * parts * limits.sequences * config.heads * (config.head_dim + 1)


def _blocks(settings: Settings, block_bytes: int, left: int) -> int:
    fitting, least = left // block_bytes, covering(MIN_TOKENS, settings.block_size)
    if settings.kv_blocks is not None:
        return asked_blocks(settings.kv_blocks, fitting, least, block_bytes)
    blocks = int(left * settings.gpu_memory_fraction) // block_bytes
    if blocks < least:
        raise ModelError(
            f"{gib(left)} are left for the KV cache on the GPU and the smallest useful one takes {gib(least * block_bytes)}; "
            "free memory there or take a smaller model."
        )
    return blocks
