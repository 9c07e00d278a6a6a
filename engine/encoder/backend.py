"""Encoders as a backend, on a CPU or one GPU: the same torch module in fp32, or on a GPU in the type of the checkpoint if that has
16 bits. On a CPU the plan needs no torch. No GPU has run this yet."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from configs.model.encoder import EncoderConfig
from engine.backend import Startup, import_torch
from engine.cgroups import Bound
from engine.device import Device, StepLimits
from engine.encoder.memory_plan import encoder_limits, plan_encoder
from engine.fingerprint import build
from engine.grammar.anteroom import Preparation
from engine.machine import free_memory
from engine.models.tasks import abilities_of
from engine.worker import Worker
from scheduler.drafting import Drafter
from scheduler.types.messages import MemoryPlan

if TYPE_CHECKING:
    from torch import Tensor

    from engine.encoder.weights import Weights
    from engine.pooling.pooler import Pooler

_HALVES = ("float16", "bfloat16")


class EncoderBackend:
    """Serves an encoder.

    Args:
        startup: what to start from.
        device: what computes, and why.
    """

    folder: Path | None = None
    adapters: Mapping[str, str] = MappingProxyType({})
    drafter: Drafter | None = None
    exact_drafts = True
    preparation: Preparation | None = None

    def __init__(self, startup: Startup[EncoderConfig], device: Device) -> None:
        config = startup.config
        self._startup = startup
        self._device = device
        self._dtype = config.dtype if device.kind == "cuda" and config.dtype in _HALVES else "float32"
        self.limits: StepLimits = encoder_limits(startup.settings, config, cpu=device.kind == "cpu")
        self.produces = abilities_of(config)

    @property
    def name(self) -> str:
        """Device and type."""
        return f"{self._device.kind}, encoder in {self._dtype}"

    @property
    def kv_format(self) -> str:
        """There is no KV."""
        return f"none, {self._dtype}"

    @property
    def kv_element_bytes(self) -> int:
        """There is no KV; a size is asked for anyway."""
        return 1

    @property
    def build(self) -> str:
        """The device, the code, and what becomes of the states."""
        config = self._startup.config
        rules = config.pooling
        return f"{build(self.name)}, {rules.kind}, normalize {rules.normalize}, score {config.score}"

    def plan(self) -> MemoryPlan:
        """Share out the memory of the device.

        Raises:
            ModelError: the model does not fit, or the settings ask for what encoders lack.
        """
        start, cpu = self._startup, self._device.kind == "cpu"
        if not cpu:
            with start.phase("import torch"):
                import_torch(start.settings.threads)
        with start.phase("plan memory"):
            return plan_encoder(
                start.settings,
                start.source,
                start.config,
                self.limits,
                free_memory() if cpu else _free_on_gpu(),
                number_bytes=4 if self._dtype == "float32" else 2,
                arithmetic=f"encoder: {self._dtype} by torch; on {self._device.kind}: {self._device.reason}",
            )

    def load(self, plan: MemoryPlan) -> Worker:
        """Load the weights straight to the device."""
        start = self._startup
        if self._device.kind == "cpu":
            with start.phase("import torch"):
                import_torch(start.settings.threads)
        from engine.encoder.model import Encoder
        from engine.encoder.weights import load_encoder
        from engine.encoder.worker import EncoderWorker

        with start.phase("load weights"):
            weights = load_encoder(start.source, start.config, start.settings.load_format, self._place)
            poolers = self._poolers(weights)
            return EncoderWorker(Encoder(start.config, weights), poolers, plan.blocks)

    def _place(self, tensor: "Tensor") -> "Tensor":
        import torch

        dtype: torch.dtype = getattr(torch, self._dtype)
        return tensor.to(self._device.kind, dtype)

    def _poolers(self, weights: "Weights") -> "list[Pooler]":
        from engine.encoder.model import ScoringHead
        from engine.pooling.scores import PairScore
        from engine.pooling.vectors import vector_pooler

        config = self._startup.config
        scores = [PairScore(ScoringHead(config, weights))] if config.labels == 1 else []
        return [vector_pooler(config.pooling), *scores]

    def warm_up(self) -> None:
        """Nothing: the first vector has warmed up all there is."""

    def close(self) -> None:
        """Nothing: the backend holds nothing."""


def _free_on_gpu() -> Bound:
    import torch

    return Bound(torch.cuda.mem_get_info()[0], "free on the GPU")
