"""The CPU as a backend. The plan needs no torch, so that it is reported before torch is imported."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeVar

from configs.model.config import ModelConfig
from engine.backend import Startup, import_torch
from engine.cpu.formats import Arithmetic, choose_arithmetic
from engine.cpu.memory_plan import USUAL_STEP, plan_memory
from engine.device import StepLimits, step_limits
from engine.fingerprint import build, fingerprints
from engine.grammar.anteroom import Preparation
from engine.ipc.share import own_share
from engine.worker import Worker
from scheduler.drafting import Drafter
from scheduler.types.messages import MemoryPlan
from scheduler.types.output_kind import OutputKind

if TYPE_CHECKING:
    from engine.cpu.model import Model
    from engine.cpu.shared_weights import Placer

T = TypeVar("T")


class CpuBackend:
    """Serves a model on the CPU, exactly or by the C++ kernels.

    Args:
        startup: what to start from.
        reason: why the CPU computes, for the start-up log.
    """

    folder: Path | None = None
    produces = frozenset({OutputKind.TOKENS})  # with the kinds of the worker's poolers, once it is there
    adapters: Mapping[str, str] = MappingProxyType({})
    drafter: Drafter | None = None
    preparation: Preparation | None = None
    exact_drafts = True

    def __init__(self, startup: Startup[ModelConfig], reason: str) -> None:
        self._startup = startup
        self._reason = reason
        self.limits: StepLimits = step_limits(startup.settings, USUAL_STEP)
        self._arithmetic: Arithmetic | None = None

    @property
    def arithmetic(self) -> Arithmetic:
        """The arithmetic, which `plan` chose."""
        assert self._arithmetic is not None, "plan first"
        return self._arithmetic

    @property
    def name(self) -> str:
        """The arithmetic's."""
        return self.arithmetic.name

    @property
    def kv_format(self) -> str:
        """The arithmetic's."""
        return self.arithmetic.kv_format

    @property
    def build(self) -> str:
        """The arithmetic and the code."""
        return build(self.name)

    @property
    def kv_element_bytes(self) -> int:
        """The arithmetic's."""
        return self.arithmetic.kv_element_bytes

    def plan(self) -> MemoryPlan:
        """Share out the memory of this machine (or of its control group)."""
        start = self._startup
        with start.phase("plan memory"):
            self._arithmetic = choose_arithmetic(start.settings, start.config)
            plan = plan_memory(start.settings, start.source, start.config, self._arithmetic, start.tiers)
        plan.arithmetic += f"; on the CPU: {self._reason}"
        return plan

    def load(self, plan: MemoryPlan) -> Worker:
        """Import torch, then load."""
        start = self._startup
        with start.phase("import torch"):
            import_torch(start.settings.threads)
            from engine.cpu.worker import CpuWorker
            from engine.drafting.registry import drafter_of
            from engine.grammar.matchers import Grammars
            from engine.pooling.pooler import produced
            from engine.pooling.registry import standard_poolers
            from engine.sampling.registry import standard_edits
            from engine.sampling.sampler import CpuSampler

        with start.phase("load weights"):
            vocab = start.config.vocab_size
            self.preparation = grammars = Grammars(vocab, start.config.eos_token_ids)
            self.drafter = drafter_of(
                start.settings, grammars, at_once=CpuWorker.depth == 1, auto=self.arithmetic.precision == "fast"
            )
            poolers = standard_poolers(start.config)
            self.produces = produced(poolers)
            model = self._model(plan)
            edits = standard_edits(vocab, start.config.eos_token_ids, grammars, model.mask)
            return CpuWorker(model, CpuSampler(vocab, edits), self.adapters, poolers)

    def _model(self, plan: MemoryPlan) -> "Model":
        import torch

        from engine.cpu.model import ExactModel, FastModel
        from engine.cpu.weights import WEIGHT_CLASSES, load_weights
        from engine.loading import load

        source, config, load_format = self._startup.source, self._startup.config, self._startup.settings.load_format
        tell = self._startup.tell
        if self.arithmetic.precision == "exact":
            from engine.cpu.decoder import Decoder
            from engine.cpu.kv_pool import KvPool

            weights = self._weights(
                lambda place: load_weights(source, config, load_format, place=place, tell=tell), WEIGHT_CLASSES
            )
            return ExactModel(Decoder(config, weights), KvPool(config, plan.blocks, plan.block_size))
        from engine.cpu.kv_pool import PackedKvPool
        from engine.cpu.packed_weights import PACKED_CLASSES, assemble_packed

        return FastModel(
            config,
            self._weights(
                lambda place: load(source, config, load_format, partial(assemble_packed, place=place), tell),
                PACKED_CLASSES,
            ),
            PackedKvPool(config, plan.blocks, plan.block_size),
            arithmetic=self.arithmetic,
            context=plan.context,
            threads=torch.get_num_threads(),
        )

    def _weights(self, pack: "Callable[[Placer], T]", classes: Sequence[type]) -> T:
        """Those that this machine's engines share, or, where this is the only one, its own."""
        from engine.cpu.huge_pages import HugePages
        from engine.cpu.shared_weights import SharedWeights, in_place
        from engine.cpu.tensor_tree import tensors_of

        start, share = self._startup, own_share()
        if share is None or share.weights is None:
            weights = pack(in_place)
            HugePages(tensors_of(weights)).begin()
            return weights
        kv = fingerprints(start.source, start.config, start.settings, self).kv
        return SharedWeights(share.weights, classes).get(f"{kv}|{self.build}", pack)

    def warm_up(self) -> None:
        """Nothing: the first token has warmed up all there is."""

    def close(self) -> None:
        """Nothing: the backend holds nothing."""
