"""How this machine computes a model, chosen once at load. No torch: the memory plan needs it before torch is loaded."""

from dataclasses import dataclass
from importlib.metadata import version
from math import prod
from pathlib import Path
from typing import Literal

from configs.model.config import ModelConfig
from configs.model.source import ModelSource
from configs.needs import FAST_BLOCK_UNIT
from configs.settings import Settings
from engine.loading.stored import stored_types
from engine.models.abilities import VARIANTS, Abilities
from engine.models.by_transformers import classes_in_words, stored_bytes
from engine.models.family import AFTER_NORMS, WIDE_NORMS
from engine.models.layout import expected_shapes, weights_bytes
from kernels.cpu.layouts import FORMATS, packed_size
from kernels.cpu.variants import ACTIVATIONS, choose

_MORE, _OPTIONAL = (*AFTER_NORMS, *WIDE_NORMS), ("input_norm", "post_norm")
EXACT = Abilities(
    who="the exact decoder's kernels",
    activations=("silu", "gelu", "gelu_tanh"),
    more=_MORE,
    optional=_OPTIONAL,
    variants=VARIANTS,
    instead="no other decoder computes it",
)
FAST = Abilities(
    who="the C++ kernels",
    activations=tuple(ACTIVATIONS),
    more=_MORE,
    optional=_OPTIONAL,
    variants=VARIANTS,
    instead="use --cpu-precision exact",
)

_LANES = 16
_MAX_DIM = 256
_GROUP = 32


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """`exact`: fp32 by torch. `fast`: int8 products and bf16 KV by the C++ library at `library`.

    `reason` says in words why, for the start-up log. `by` names whose code it is, if not ours.
    """

    precision: Literal["exact", "fast"]
    reason: str
    library: Path | None = None
    by: str = ""

    @property
    def name(self) -> str:
        """Device and arithmetic in words."""
        return f"cpu, {self.precision}{self.by}"

    @property
    def kv_format(self) -> str:
        """How keys and values are stored: blocks of different formats are not interchangeable. The library's variants round
        differently, so each is a format of its own."""
        return f"bf16 {self.library.name}" if self.library else "fp32"

    @property
    def kv_element_bytes(self) -> int:
        """Bytes of one number of a key or value."""
        return 2 if self.library else 4

    def weights_bytes(self, settings: Settings, source: ModelSource, config: ModelConfig) -> int:
        """Memory of the loaded weights, in bytes."""
        if config.implementation == "transformers":
            return stored_bytes(source.path)
        return packed_bytes(source, config, settings.load_format) if self.library else weights_bytes(config)

    def kv_bytes_per_token(self, config: ModelConfig) -> int:
        """Keys and values of all layers for one token, in bytes."""
        return config.kv_bytes_per_token // (2 if self.library else 1)


def choose_arithmetic(settings: Settings, config: ModelConfig) -> Arithmetic:
    """What `--cpu-precision` asks for, if machine and model allow it; otherwise fp32 by torch, and why.

    Raises:
        ModelError: the model has what no decoder on a CPU computes.
    """
    if config.implementation == "transformers":
        return Arithmetic(
            "exact", f"fp32 by {classes_in_words(config)}", by=f" by transformers {version('transformers')}"
        )
    EXACT.check(config)
    if settings.cpu_precision == "exact":
        return Arithmetic("exact", "fp32 by torch, as --cpu-precision exact asks")
    obstacle = _obstacle(settings, config)
    if obstacle:
        return Arithmetic("exact", f"fp32 by torch: {obstacle}")
    kernels = choose()
    if kernels.library is None:
        return Arithmetic("exact", f"fp32 by torch: {kernels.reason}")
    return Arithmetic("fast", f"int8 products, bf16 KV by the {kernels.reason}", kernels.library)


def _obstacle(settings: Settings, config: ModelConfig) -> str | None:
    """What keeps the C++ kernels from computing this model, in words; None: nothing."""
    if lacking := FAST.lack(config):
        return lacking
    if settings.block_size % FAST_BLOCK_UNIT:
        return f"the C++ kernels need a --block-size that is a multiple of {FAST_BLOCK_UNIT}, not {settings.block_size}"
    widths = {
        "hidden_size": (config.hidden_size, _GROUP),
        "intermediate_size": (config.intermediate_size, _GROUP),
        "heads * head_dim": (config.heads * config.head_dim, _GROUP),
        "head_dim": (config.head_dim, _LANES),
    }
    for name, (width, unit) in widths.items():
        if width % unit:
            return f"the C++ kernels need the model's {name} to be a multiple of {unit}, not {width}"
    if config.head_dim > _MAX_DIM:
        return f"the C++ kernels need a head_dim of at most {_MAX_DIM}, not {config.head_dim}"
    return None


def packed_bytes(source: ModelSource, config: ModelConfig, load_format: str) -> int:
    """Memory of the weights as `engine.cpu.packed_weights` holds them, in bytes: a file's own blocks, all other matrices in 8 bits
    (34 bytes for 32 weights), norms and biases in fp32."""
    kinds = stored_types(source, config, load_format)
    total = 0
    for name, shape in expected_shapes(config).items():
        kind = kinds.get(name, "")
        total += prod(shape) * 4 if len(shape) == 1 else prod(packed_size(kind if kind in FORMATS else "Q8_0", *shape))
    return total
