"""How much of a GPU's memory a server will take, known from headers alone, before anything is loaded.

Every part is counted, and only what is free is shared out: a GPU may have other users.
"""

import logging
from dataclasses import dataclass

from configs.model.config import ModelConfig
from configs.model.source import ModelError, ModelSource
from configs.settings import Settings
from engine.device import StepLimits
from engine.gpu.formats import GpuArithmetic
from engine.gpu.graph_inputs import CHUNKS
from engine.gpu.graph_policy import GraphPlan, chunk_row_steps
from engine.gpu.weights import weights_bytes
from engine.memory import MIN_TOKENS, SCORED_ROWS, asked_blocks, covering, gib, longest_held, longest_sequence
from engine.models.registry import family_of
from engine.tensor_parallel.shards import split_config
from kernels.gpu.attention import decode, paged
from kernels.gpu.attention.cascade_groups import most_splits
from kernels.gpu.sampling.sample import ROWS_AT_ONCE
from scheduler.types.messages import MemoryPlan

log = logging.getLogger("headrace.engine")

# Not measured yet: no GPU has run this.
GRAPH_BYTES = 4 * 2**20  # of one graph's launches: some hundreds, with their arguments
CUBLAS_BYTES = (
    2 * 2 * 32 * 2**20
)  # workspaces of cuBLAS and cuBLASLt, each on the stream of steps and on that of recordings
KERNELS_BYTES = 384 * 2**20  # code that cuBLAS and Triton load, and the stacks that it asks for
GAPS_BYTES = 256 * 2**20  # between what torch has reserved and what tensors take
NCCL_BYTES = 512 * 2**20  # of a communicator: some 10 MiB for each of up to 32 channels, and more with NVLS
PEER_BYTES = 4 * 2**20  # memory that all ranks can reach: two halves and flags, in pieces of 2 MiB
_UNPACKED_BYTES = 112 * 2**20  # weights in groups on their way to cuBLAS, and partial sums of their products
_SCORED_COPIES = 4  # logits in 16 bits and in fp32, exponentials, comparisons


@dataclass(frozen=True, slots=True)
class GpuActivations:
    """What one GPU holds besides weights and pool, in bytes.

    Attributes:
        step: the most that an eager step holds: a layer's rows, logits to sample or to score, the token counts of penalties.
        states: the workspace for partial states of decode attention, one for eager steps, warm-ups and all graphs.
        prefixes: partial results of shared prefixes.
        graphs: all CUDA graphs, their inputs, and the memory that they share because one runs at a time; nearly as much again for
            the run before a recording, on a stream that has a cache of its own.
        exchange: NCCL's buffers, and what all ranks give for a sum.
        libraries: cuBLAS' workspaces, code, gaps.
    """

    step: int
    states: int
    prefixes: int
    graphs: int
    exchange: int
    libraries: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.step + self.states + self.prefixes + self.graphs + self.exchange + self.libraries

    @classmethod
    def of(
        cls,
        settings: Settings,
        config: ModelConfig,
        limits: StepLimits,
        arithmetic: GpuArithmetic,
        context: int,
        *,
        ranks: int = 1,
    ) -> "GpuActivations":
        """For one rank's `config` and sequences of up to `context` tokens."""
        size = arithmetic.dtype.itemsize
        unpacked = _UNPACKED_BYTES if arithmetic.weights == "groups" else 0
        return cls(
            step=step_bytes(config, limits, size) + unpacked,
            states=states_bytes(config, limits, context),
            prefixes=_prefix_bytes(config, limits, size, context) if settings.gpu_shared_prefixes else 0,
            graphs=graph_bytes(config, limits, size, context, settings.block_size) if settings.cuda_graphs else 0,
            exchange=_exchange_bytes(config, limits, size, ranks),
            libraries=CUBLAS_BYTES + KERNELS_BYTES + GAPS_BYTES,
        )

    def __str__(self) -> str:
        parts = {
            "a step": self.step,
            "partial states": self.states,
            "prefixes": self.prefixes,
            "graphs": self.graphs,
            "ranks": self.exchange,
            "libraries": self.libraries,
        }
        return ", ".join(f"{name} {gib(amount)}" for name, amount in parts.items() if amount)


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
    """Share out `free` bytes of a device; each of `ranks` devices gets the same plan. Its `activations` are `GpuActivations`.

    Raises:
        ModelError: the weights or the pool asked for do not fit, or a longer context is asked for than the model has.
            Names both numbers and what to change.
    """
    longest = longest_sequence(settings, config)
    weights = weights_bytes(source, config, arithmetic, load_format=settings.load_format, ranks=ranks)
    config = split_config(config, ranks)
    activations = GpuActivations.of(settings, config, limits, arithmetic, longest, ranks=ranks)
    log.info("activations: %s", activations)
    left = free - weights - activations.total
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
        activations=activations.total,
        available=free,
        max_model_len=longest,
        context=context,
        concurrent=blocks / covering(context, settings.block_size),
    )


def step_bytes(config: ModelConfig, limits: StepLimits, itemsize: int) -> int:
    """The most that one eager step holds besides weights, pool and partial states, in bytes."""
    rows = limits.tokens * _row_bytes(config, itemsize)
    each = itemsize + 3 * 4  # logits as they are, in fp32 where edited, once more where capped; counts of tokens
    sampled = limits.sequences * each + min(limits.sequences, ROWS_AT_ONCE) * 8
    scored = SCORED_ROWS * _SCORED_COPIES * 4
    return rows + max(sampled, scored) * config.vocab_size


def states_bytes(config: ModelConfig, limits: StepLimits, context: int) -> int:
    """The workspace of attention (`kernels.gpu.workspace`), in bytes, when every sequence has its greatest length."""
    heads = (config.heads, config.kv_heads, config.head_dim, context)
    return max(decode.workspace_bytes(limits.sequences, *heads), paged.workspace_bytes(limits.tokens, *heads))


def graph_bytes(config: ModelConfig, limits: StepLimits, itemsize: int, context: int, block_size: int) -> int:
    """Memory of all CUDA graphs, in bytes: their launches, their inputs and outputs, their rows and those of the run before."""
    decodes, chunks = GraphPlan(limits.sequences), GraphPlan(limits.tokens, steps=chunk_row_steps)
    widest = max(decodes.largest, chunks.largest)
    tables = (2 * limits.sequences + CHUNKS) * 4 * covering(context, block_size)
    inputs = widest * (itemsize * config.hidden_size + 2 * 8 * 8) + tables
    return (decodes.size + chunks.size) * GRAPH_BYTES + 2 * widest * _row_bytes(config, itemsize) + inputs


def _prefix_bytes(config: ModelConfig, limits: StepLimits, itemsize: int, context: int) -> int:
    """Of cascade attention: queries and partial results of each part of the prefixes, results of the rest, in bytes."""
    splits = most_splits(context, config.kv_heads)
    row = config.heads * ((splits + 1) * 4 * (config.head_dim + 1) + splits * itemsize * config.head_dim)
    return limits.sequences * row


def _exchange_bytes(config: ModelConfig, limits: StepLimits, itemsize: int, ranks: int) -> int:
    """What ranks take to exchange rows and logits, in bytes; nothing for one alone."""
    if ranks == 1:
        return 0
    rows = ranks * limits.tokens * config.hidden_size
    logits = 2 * max(limits.sequences, SCORED_ROWS) * config.vocab_size
    return NCCL_BYTES + PEER_BYTES + itemsize * (rows + logits)


def _row_bytes(config: ModelConfig, itemsize: int) -> int:
    """Bytes of one token in a layer: residual, normed, change, sum, the sum normed; projections; gate and up, their product."""
    heads = 2 * config.heads + 2 * config.kv_heads
    rows = 5 if family_of(config).has("after_mlp_norm") else 4
    return itemsize * (rows * config.hidden_size + 2 * heads * config.head_dim + 3 * config.intermediate_size)


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
