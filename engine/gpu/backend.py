"""GPUs as a backend: this process is the first rank, and starts the others where several GPUs compute. No torch before `plan`."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from configs.model.config import ModelConfig
from engine.backend import Startup, generate, import_torch
from engine.device import StepLimits, step_limits
from engine.fingerprint import build
from engine.grammar.anteroom import Preparation
from engine.memory import check_host_memory
from engine.tensor_parallel.group import RankGroup, loopback, rendezvous
from engine.worker import Worker
from scheduler.drafting import Drafter
from scheduler.types.messages import MemoryPlan
from scheduler.types.output_kind import OutputKind
from scheduler.types.sampling_params import SamplingParams

if TYPE_CHECKING:
    import torch

    from engine.gpu.loader import GpuLoader
    from engine.gpu.worker import GpuWorker
    from engine.tensor_parallel.process_group import TorchProcessGroup

# A GPU needs thousands of tokens a step to be busy: 2048 rows of Llama 3 8B are 33 TFLOP, 50 ms at 700 TFLOP/s.
USUAL_STEP = StepLimits(tokens=2048, sequences=256)
_WARM_PROMPT = 3
# Each kind of step runs kernels of its own: they are compiled here and not while a request waits. Edited logits are in fp32, others
# in the model's type.
_WARM_SETTINGS: tuple[dict[str, object], ...] = (
    {},
    {"top_p": 0.9},
    {"presence_penalty": 0.1},
    {"top_p": 0.9, "presence_penalty": 0.1},
    {"logprobs": 0},
    {"logprobs": 5},
    {"logprobs": 20},
    {"logprobs": 21},
    {"prompt_logprobs": 1},
    {"logit_bias": {5: 1.0}},
    {"logit_bias": {5: 1.0}, "top_p": 0.9},
    {"logit_bias": {5: 1.0}, "presence_penalty": 0.1},
    {"logit_bias": {5: 1.0}, "top_p": 0.9, "presence_penalty": 0.1},
)


class GpuBackend:
    """Serves a model on one GPU, or split over several.

    Torch is imported before the plan, since only it knows what is free on a GPU. Other ranks are started first: they import and
    load while this process does.

    Args:
        startup: what to start from.
        reason: why a GPU computes, for the start-up log.
    """

    drafter: Drafter | None = None
    preparation: Preparation | None = None

    def __init__(self, startup: Startup[ModelConfig], reason: str) -> None:
        self._startup = startup
        self._reason = reason
        self.limits: StepLimits = step_limits(startup.settings, USUAL_STEP)
        several = startup.settings.tensor_parallel > 1
        self._rank_group = RankGroup(startup.settings, startup.source) if several else None
        self._loader: GpuLoader | None = None
        self._worker: GpuWorker | None = None

    @property
    def folder(self) -> Path | None:
        """Where the ranks meet."""
        return self._rank_group.folder if self._rank_group else None

    @property
    def loader(self) -> "GpuLoader":
        """The first rank's loader, which `plan` made."""
        assert self._loader is not None, "plan first"
        return self._loader

    @property
    def name(self) -> str:
        """Name and number of the GPUs."""
        return self.loader.name

    @property
    def kv_format(self) -> str:
        """The loader's."""
        return self.loader.kv_format

    @property
    def build(self) -> str:
        """The GPUs, the code, and what changes the order in which attention adds up: whether shared prefixes are read once, and
        guesses, which are verified as rows of one chunk."""
        options = [", shared prefixes"] if self._startup.settings.gpu_shared_prefixes else []
        if self.drafter is not None:
            options.append(f", guesses by {self.drafter.name}")
        return build(self.name) + "".join(options)

    @property
    def kv_element_bytes(self) -> int:
        """The loader's."""
        return self.loader.kv_element_bytes

    @property
    def exact_drafts(self) -> bool:
        """The loader's."""
        return self.loader.exact_drafts

    @property
    def produces(self) -> frozenset[OutputKind]:
        """The loader's: all ranks have the same."""
        return self.loader.produces

    @property
    def adapters(self) -> Mapping[str, str]:
        """The loader's: all ranks have the same."""
        return self.loader.adapters

    def plan(self) -> MemoryPlan:
        """Import torch, meet the other ranks, and share out what is free on the GPU with the least.

        Raises:
            ModelError: what is asked for does not fit, there or in the host's memory.
        """
        start = self._startup
        check_host_memory(start.tiers)
        with start.phase("import torch"):
            import_torch(start.settings.threads)
            from engine.gpu.loader import GpuLoader, rank_device
        device = rank_device(0)
        ranks = self._join(device) if self._rank_group else None
        with start.phase("plan memory"):
            self._loader = GpuLoader(start.settings, start.source, start.config, self.limits, device, ranks=ranks)
            plan = self._loader.plan()
        plan.arithmetic += f"; on {self.name}: {self._reason}"
        return plan

    def _join(self, device: "torch.device") -> "TorchProcessGroup":
        from engine.tensor_parallel.process_group import TorchProcessGroup

        assert self._rank_group is not None
        settings = self._startup.settings
        with self._startup.phase("meet ranks"):
            os.environ.update(loopback())
            meeting = rendezvous(self._rank_group.folder)
            return TorchProcessGroup(0, settings.tensor_parallel, meeting, device, timeout=settings.start_seconds)

    def load(self, plan: MemoryPlan) -> Worker:
        """Load the weights straight to the device."""
        with self._startup.phase("load weights"):
            self._worker = self.loader.load(
                plan, self._rank_group.send if self._rank_group else None, self._startup.tell
            )
            self.drafter, self.preparation = self.loader.drafter, self.loader.preparation
        return self._worker

    def warm_up(self) -> None:
        """Compile all kernels; where Triton interprets them, there is nothing to compile."""
        assert self._worker is not None, "load first"
        worker = self._worker
        with self._startup.phase("compile kernels"):
            if self.loader.compiles:
                self._startup.run(lambda: run_every_kernel(worker))

    def close(self) -> None:
        """Stop the other ranks."""
        if self._rank_group is not None:
            self._rank_group.close()


def run_every_kernel(worker: "GpuWorker") -> None:
    """Run a forward pass in all its shapes, record the first graphs, then every kind of step once. One sequence is enough: no
    kernel is built for a number of sequences.

    Raises:
        ModelError: the model gave no token.
    """
    worker.warm_up()
    worker.record_first()
    for asked in _WARM_SETTINGS:
        generate(worker, SamplingParams(max_tokens=2, **asked), _WARM_PROMPT)  # type: ignore[arg-type]
