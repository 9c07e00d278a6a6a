"""How long a step takes: the roofline of its bytes and operations, times fitted factors, plus fitted constants.

Roofline: Williams, Waterman and Patterson (2009), "Roofline: an insightful visual performance model", CACM 52(4). A decoder's
matrix products take 2 operations per weight and token; attention takes 4 * head_dim operations per head, layer and pair of
query and key. Every step reads the layers' weights once, and each sequence's KV once; of a mixture of experts it reads those
that any of its tokens goes through.

The time is linear in the constants of `Costs`: `features` gives what each of them multiplies, which is what `fit` needs.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from loadtest.simulate.specs import Costs, Hardware, ModelSpec, SpecError
from scheduler.skipping.steady_decodes import SteadyStep
from scheduler.types.step import ChunkPhase, Step

STEP_COSTS = ("step", "token", "sequence", "matrices", "attention")  # the order of `features`
Features = tuple[float, float, float, float, float]


@dataclass(slots=True)
class Work:
    """What one step computes.

    Attributes:
        tokens: rows of the batch.
        sequences: chunks.
        samples: rows multiplied by the output head.
        decode_keys: keys read by decodes of one token.
        prefill_keys: keys read by other chunks (each once per chunk): prompts, and decodes that verify drafts.
        prefill_pairs: pairs of query and key in these chunks.
        moved: bytes of KV by tier.
    """

    tokens: int = 0
    sequences: int = 0
    samples: int = 0
    decode_keys: int = 0
    prefill_keys: int = 0
    prefill_pairs: int = 0
    moved: dict[str, float] = field(default_factory=dict)


def work_of(step: Step) -> Work:
    """The work of a planned step."""
    work = Work(sequences=len(step.chunks))
    for chunk in step.chunks:
        length, end = chunk.length, chunk.start + chunk.length
        work.tokens += length
        work.samples += chunk.samples
        if chunk.phase is ChunkPhase.DECODE and not chunk.draft_ids:
            work.decode_keys += end
        else:
            work.prefill_keys += end
            work.prefill_pairs += length * chunk.start + length * (length + 1) // 2
    if isinstance(step, SteadyStep):
        work.tokens += step.rows
        work.sequences += step.rows
        work.samples += step.rows
        work.decode_keys += step.keys
    return work


class CostModel:
    """How many seconds a model's steps take on one replica.

    Args:
        hardware: one device.
        model: what runs on it.
        devices: per replica; weights, KV and operations are divided evenly (tensor parallelism, Shoeybi et al. 2019:
            two all-reduces per layer).

    Raises:
        SpecError: the device has no rate for the model's arithmetic, or there are several devices and no link, or they cannot
            share the model's heads.
    """

    def __init__(self, hardware: Hardware, model: ModelSpec, devices: int = 1) -> None:
        if model.compute not in hardware.operations_per_second:
            known = ", ".join(hardware.operations_per_second)
            raise SpecError(f"{model.name} computes in {model.compute}, {hardware.name} has rates for {known}")
        if devices > 1 and not hardware.link_bytes_per_second:
            raise SpecError(f"{hardware.name} has no link: a replica is one device, not {devices}")
        if not model.divides(devices):
            raise SpecError(
                f"{model.name} has {model.heads} heads and {model.kv_heads} of keys and values: they cannot be divided over "
                f"--devices {devices}"
            )
        self.hardware, self.model, self.devices = hardware, model, devices
        self.costs: Costs = hardware.costs
        self._operations = devices * hardware.operations_per_second[model.compute]
        self._attention_operations = devices * hardware.attention_operations_per_second
        self._bandwidth = devices * hardware.memory_bytes_per_second
        self._dense, self._active_operations = model.experts == 1, 2 * model.active_weights
        self._layer_seconds = model.layer_weights * model.weight_bits / 8 / self._bandwidth  # to read all of them
        self._head_seconds = model.head_weights * model.head_bits / 8 / self._bandwidth
        self._head_operations = 2 * model.head_weights
        self._key_seconds = model.kv_bytes_per_token / self._bandwidth
        self._pair_seconds = 4 * model.layers * model.heads * model.head_dim / self._attention_operations
        self._decode_seconds = max(self._key_seconds, self._pair_seconds)

    def kv_blocks(self, block_size: int) -> int:
        """Blocks of `block_size` tokens that fit beside the weights. Raises SpecError if there is room for none."""
        memory = self.devices * self.hardware.memory_bytes * self.hardware.memory_share
        blocks = int((memory - self.model.weight_bytes) / (block_size * self.model.kv_bytes_per_token))
        if blocks < 1:
            raise SpecError(
                f"{self.model.name} has {self.model.weight_bytes / 1e9:.1f} GB of weights and {self.devices} x "
                f"{self.hardware.name} give {memory / 1e9:.1f} GB to weights and KV; take more --devices"
            )
        return blocks

    def seconds(self, work: Work) -> float:
        """The duration of one step."""
        costs = self.costs
        seconds = costs.step + costs.token * work.tokens + costs.sequence * work.sequences
        seconds += costs.matrices * self._matrices(work)
        seconds += costs.attention * self._attention(work)
        return seconds + self.fixed_seconds(work) if work.moved or self.devices > 1 else seconds

    def features(self, work: Work) -> Features:
        """What each of `STEP_COSTS` multiplies: 1, tokens, sequences, and the two rooflines in seconds."""
        return 1.0, float(work.tokens), float(work.sequences), self._matrices(work), self._attention(work)

    def fixed_seconds(self, work: Work) -> float:
        """The part that is not fitted: KV transfers at the tiers' bandwidths, and all-reduces between devices."""
        seconds = self.move_seconds(work.moved) if work.moved else 0.0
        return seconds + (self._link_seconds(work.tokens) if self.devices > 1 else 0.0)

    def move_seconds(self, moved: Mapping[str, float]) -> float:
        """How long KV transfers take, given bytes by tier; tiers work at the same time. Raises KeyError for an unknown tier."""
        rates = self.hardware.tier_bytes_per_second
        return max((size / (self.devices * rates[tier]) for tier, size in moved.items()), default=0.0)

    def _matrices(self, work: Work) -> float:
        tokens, read = work.tokens, self._layer_seconds
        if not self._dense:
            read = self.model.read_weights(tokens) * self.model.weight_bits / 8 / self._bandwidth
        seconds = max(read, self._active_operations * tokens / self._operations)
        if work.samples:
            seconds += max(self._head_seconds, self._head_operations * work.samples / self._operations)
        return seconds

    def _attention(self, work: Work) -> float:
        seconds = work.decode_keys * self._decode_seconds
        if work.prefill_keys:
            seconds += max(work.prefill_keys * self._key_seconds, work.prefill_pairs * self._pair_seconds)
        return seconds

    def _link_seconds(self, tokens: int) -> float:
        """Ring all-reduce: each device sends its part about twice, in activations of 16 bits."""
        sent = 2 * (self.devices - 1) / self.devices * tokens * self.model.hidden_size * 2
        each = self.hardware.link_seconds + sent / self.hardware.link_bytes_per_second
        return 2 * self.model.layers * each
