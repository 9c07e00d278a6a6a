"""How a GPU computes a model, chosen once before it is loaded: the form of its weights, and that of its keys and values.

What a form costs a decode step is the bytes it reads; what it costs in accuracy is said beside it.
"""

from dataclasses import dataclass
from typing import Literal

import torch

from configs.model.config import ModelConfig
from configs.model.source import ModelError, ModelSource
from engine.loading.stored import stored_kinds
from engine.models.abilities import VARIANTS, Abilities
from engine.models.family import AFTER_NORMS
from kernels.gpu.linear.fp8 import refusal

_BLOCK_MULTIPLE = 64  # bytes: whatever a block holds, kernels may assume that the next one is aligned as well
WeightForm = Literal["dense", "groups", "fp8"]
GPU = Abilities(
    who="the GPU kernels",
    activations=("silu",),
    more=AFTER_NORMS,
    variants=VARIANTS - {"rotary_dim", "window_rotation", "unrotated_layers", "residual_scale", "logit_scale"},
    instead="use --device cpu with --cpu-precision exact",
)


@dataclass(frozen=True, slots=True)
class GpuArithmetic:
    """Types of everything that stays on the device.

    Attributes:
        weights: `dense`: in `dtype`. `groups`: types that 4- and 8-bit groups hold exactly in those, other matrices in `dtype`: a
            quarter to half of the bytes, and no group is rounded again. `fp8`: rounded to 8-bit floats, and activations with them;
            embedding and head stay in `dtype`.
        dtype: of activations, and of weights and cache where nothing else is said: bf16, fp16, or fp32 for comparisons.
        fp8_kv: keys and values in 8-bit floats with a scale for each block and head: half of the bytes, up to 2^-4 of a value lost.
        reason: in words, for the start-up log.
    """

    weights: WeightForm
    dtype: torch.dtype
    fp8_kv: bool = False
    reason: str = ""

    def kv_format(self, ranks: int = 1) -> str:
        """Names the format of a block, for its fingerprint: blocks of different formats are not interchangeable. Weights are part
        of it because products round differently, ranks because each keeps only its own heads."""
        name = str(self.dtype).removeprefix("torch.")
        blocks = "float8_e4m3 with scales" if self.fp8_kv else name
        return f"gpu {name}, {self.weights} weights, {blocks} blocks" + (f" on {ranks} ranks" if ranks > 1 else "")

    def kv_block_bytes(self, config: ModelConfig, block_size: int) -> int:
        """Device memory of one block, in bytes. `config` is one rank's (`engine.tensor_parallel.shards.split_config`)."""
        return sum(block_parts(config, block_size, self.dtype, fp8=self.fp8_kv))


def block_parts(config: ModelConfig, block_size: int, dtype: torch.dtype, *, fp8: bool) -> tuple[int, int]:
    """(bytes of keys and values, bytes of scales and padding) of one block in all layers."""
    sides = config.layers * 2 * config.kv_heads
    values = sides * block_size * config.head_dim
    return (values, 4 * sides + -(values + 4 * sides) % _BLOCK_MULTIPLE) if fp8 else (values * dtype.itemsize, 0)


def choose_gpu_arithmetic(
    source: ModelSource,
    config: ModelConfig,
    device: torch.device,
    *,
    weights: Literal["auto", "dense", "fp8"] = "auto",
    kv: Literal["auto", "fp8"] = "auto",
    load_format: str = "auto",
) -> GpuArithmetic:
    """The arithmetic that the settings ask for, on this model and chip.

    Args:
        source: the model's files.
        config: their description.
        device: where it will compute.
        weights: `auto` keeps what groups hold exactly in groups, which loses nothing, and everything else in 16 bits. `dense` and
            `fp8` are forms of `GpuArithmetic.weights`; `fp8` is lossy and therefore never chosen unasked.
        kv: `auto` is the model's type; `fp8` is lossy and never chosen unasked either.
        load_format: as in the settings; `dummy` weights have no groups.

    Raises:
        ModelError: the kernels lack a variant of the model's family, or the chip lacks fp8 weights; says which.
    """
    GPU.check(config)
    dtype = torch.float16 if config.dtype == "float16" else torch.bfloat16
    if device.type == "cpu":
        dtype = torch.float32  # interpreted, for debugging: results can be compared with the exact path's
    name = str(dtype).removeprefix("torch.")
    form: WeightForm
    if weights == "fp8":
        obstacle = refusal(device)
        if obstacle:
            raise ModelError(f"fp8 weights were asked for: {obstacle}.")
        form, reason = "fp8", "8-bit floats, as asked for"
    elif weights == "auto" and stored_kinds(source, config, load_format):
        form, reason = "groups", "4- and 8-bit groups of the numbers in the file"
    else:
        form, reason = "dense", name
    return GpuArithmetic(form, dtype, kv == "fp8", f"weights: {reason}; {'8-bit float' if kv == 'fp8' else name} KV")
