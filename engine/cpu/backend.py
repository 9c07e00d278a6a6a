"""The CPU as a backend. The plan needs no torch, so that it is reported before torch is imported."""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeVar

from configs.model.config import ModelConfig
from engine.backend import Startup, import_torch
from engine.cpu.formats import Arithmetic, choose_arithmetic
from engine.cpu.memory_plan import NO_DRAFT, USUAL_STEP, draft_memory, plan_memory
from engine.device import StepLimits, step_limits
from engine.drafting.draft_files import DraftFiles, find_draft
from engine.fingerprint import build, fingerprints
from engine.grammar.anteroom import Preparation
from engine.ipc.share import own_share
from engine.worker import Worker
from scheduler.drafting import Drafter
from scheduler.types.messages import MemoryPlan
from scheduler.types.output_kind import OutputKind

if TYPE_CHECKING:
    from engine.cpu.loading import PoolSize
    from engine.cpu.shared_weights import Placer
    from engine.drafting.draft_model import DraftModel
    from engine.drafting.registry import Run

T = TypeVar("T")
log = logging.getLogger("headrace.engine")


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
        self._draft: DraftFiles | None = None

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
        self._arithmetic = arithmetic = choose_arithmetic(start.settings, start.config)
        if start.settings.draft_model is not None:
            with start.phase("compare tokens"):
                self._draft = self._find_draft()
        with start.phase("plan memory"):
            draft = draft_memory(start.settings, self._draft) if self._draft is not None else NO_DRAFT
            plan = plan_memory(start.settings, start.source, start.config, arithmetic, start.tiers, draft=draft)
        plan.arithmetic += f"; on the CPU: {self._reason}"
        return plan

    def load(self, plan: MemoryPlan) -> Worker:
        """Import torch, then load."""
        start = self._startup
        with start.phase("import torch"):
            import_torch(start.settings.threads)
            from engine.cpu.loading import PoolSize, load_model
            from engine.cpu.worker import CpuWorker
            from engine.drafting.registry import drafter_of
            from engine.grammar.matchers import Grammars
            from engine.pooling.pooler import produced
            from engine.pooling.registry import standard_poolers
            from engine.sampling.registry import standard_edits
            from engine.sampling.sampler import CpuSampler

        vocab, size = start.config.vocab_size, PoolSize(plan.blocks, plan.block_size, plan.context)
        with start.phase("load weights"):
            model = load_model(
                start.source, start.config, self.arithmetic, start.settings.load_format, size,
                keep=self._keep, tell=start.tell,
            )  # fmt: skip
        self.preparation = grammars = Grammars(vocab, start.config.eos_token_ids)
        self.drafter = drafter_of(
            start.settings,
            grammars,
            at_once=CpuWorker.depth == 1,
            auto=self.arithmetic.precision == "fast",
            draft=self._load_draft(size),
        )
        poolers = standard_poolers(start.config)
        self.produces = produced(poolers)
        edits = standard_edits(vocab, start.config.eos_token_ids, grammars, model.mask)
        return CpuWorker(model, CpuSampler(vocab, edits), self.adapters, poolers)

    def _find_draft(self) -> DraftFiles | None:
        """The draft model, if it may guess here."""
        settings, arithmetic = self._startup.settings, self.arithmetic
        if settings.speculation == "auto" and arithmetic.precision == "exact":
            log.warning(
                "draft_model is set, but it is not used: %s; set speculation draft to use it", arithmetic.reason
            )
            return None
        return find_draft(settings, self._startup.source)

    def _load_draft(self, size: "PoolSize") -> "tuple[DraftModel, Run] | None":
        """The draft model, if there is one, and where it computes."""
        start = self._startup
        if self._draft is None:
            return None
        from engine.cpu.draft_model import load_draft

        with start.phase("load draft model"):
            return load_draft(self._draft, start.settings, size), start.run

    def _keep(self, pack: "Callable[[Placer], T]", classes: Sequence[type]) -> T:
        """The weights that this machine's engines share, or, where this is the only one, its own."""
        from engine.cpu.loading import own_weights
        from engine.cpu.shared_weights import SharedWeights

        start, share = self._startup, own_share()
        if share is None or share.weights is None:
            return own_weights(pack, classes)
        kv = fingerprints(start.source, start.config, start.settings, self).kv
        return SharedWeights(share.weights, classes).get(f"{kv}|{self.build}", pack)

    def warm_up(self) -> None:
        """Nothing: the first token has warmed up all there is."""

    def close(self) -> None:
        """Nothing: the backend holds nothing."""
