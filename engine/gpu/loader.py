"""Brings one rank's worker up: arithmetic, memory plan, weights, pool."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch

from configs.model.config import ModelConfig
from configs.model.source import ModelError, ModelSource
from configs.settings import Settings
from engine.device import StepLimits
from engine.drafting.registry import drafter_of
from engine.gpu.formats import GpuArithmetic, choose_gpu_arithmetic
from engine.gpu.graph_policy import GraphPlan, chunk_row_steps
from engine.gpu.memory_plan import plan_gpu_memory, states_bytes
from engine.gpu.model import GpuKvPool, GpuModel
from engine.gpu.weights import GpuAssembly
from engine.gpu.worker import GpuWorker
from engine.grammar.anteroom import Preparation
from engine.grammar.matchers import Grammars
from engine.loading import load
from engine.loading.progress import Tell
from engine.machine import free_memory
from engine.pooling.pooler import produced
from engine.pooling.registry import standard_poolers
from engine.sampling.registry import standard_edits
from engine.tensor_parallel.commands import RankCommand
from engine.tensor_parallel.process_group import ProcessGroup, SingleProcess
from engine.tensor_parallel.shards import split_config
from kernels.gpu.attention.cascade_groups import LEAST_SAVED, LEAST_SAVED_OVER_GRAPH
from kernels.gpu.runtime import INTERPRETED
from kernels.gpu.workspace import Workspace
from scheduler.drafting import Drafter
from scheduler.types.messages import MemoryPlan
from scheduler.types.output_kind import OutputKind


class GpuLoader:
    """One rank of a model on one GPU: `plan`, then `load`.

    Args:
        settings: of the server.
        source: the model's files.
        config: their description.
        limits: of a step.
        device: the GPU; CPU tensors where Triton interprets.
        arithmetic: to use instead of what the settings ask for.
        ranks: the processes that compute the model, each with a loader of its own: they make the same calls.

    Raises:
        ModelError: the settings ask for what the chip lacks, for what does not go together, or for a split that cannot be made.
    """

    adapters: Mapping[str, str] = MappingProxyType({})  # LoRA adapters that `load` gives the worker, with digests
    produces = frozenset({OutputKind.TOKENS})  # with the kinds of the poolers that `load` gives the worker
    drafter: Drafter | None = None  # what guesses for the worker that `load` makes
    preparation: Preparation | None = None  # what that worker has to make before it can compute some requests

    def __init__(
        self,
        settings: Settings,
        source: ModelSource,
        config: ModelConfig,
        limits: StepLimits,
        device: torch.device,
        *,
        arithmetic: GpuArithmetic | None = None,
        ranks: ProcessGroup | None = None,
    ) -> None:
        self._settings = settings
        self._source = source
        self._config = config
        self._limits = limits
        self._device = device
        self._ranks: ProcessGroup = ranks or SingleProcess()
        try:
            self._part = split_config(config, self._ranks.size)
        except ValueError as error:
            raise ModelError(f"--tensor-parallel {self._ranks.size}: {error}.") from error
        self.arithmetic = arithmetic or choose_gpu_arithmetic(
            source,
            config,
            device,
            weights=settings.gpu_weights,
            kv=settings.gpu_kv,
            load_format=settings.load_format,
        )

    @property
    def kv_format(self) -> str:
        """The format of keys and values: equal exactly where blocks are interchangeable."""
        return self.arithmetic.kv_format(self._ranks.size)

    @property
    def exact_drafts(self) -> bool:
        """Not with 8-bit blocks: a rejected draft may leave a larger scale (`kernels/gpu/kv/write_kv_fp8.py`)."""
        return not self.arithmetic.fp8_kv

    @property
    def kv_element_bytes(self) -> int:
        """Bytes of one number of a key or value."""
        return 1 if self.arithmetic.fp8_kv else self.arithmetic.dtype.itemsize

    @property
    def name(self) -> str:
        """The device in words, with the number of ranks."""
        name = torch.cuda.get_device_name(self._device) if self._device.type == "cuda" else "interpreted"
        return name if self._ranks.size == 1 else f"{self._ranks.size} x {name}"

    @property
    def compiles(self) -> bool:
        """Whether kernels are compiled; on CPU tensors Triton interprets them."""
        return self._device.type == "cuda"

    def plan(self, free: int | None = None) -> MemoryPlan:
        """Share out `free` bytes, by default what the device says is free now; with several ranks, the least of theirs.

        Raises:
            ModelError: the model or what is asked for does not fit (`plan_gpu_memory`).
        """
        if free is None:
            free = self._free_bytes()
        return plan_gpu_memory(
            self._settings,
            self._source,
            self._config,
            self.arithmetic,
            self._limits,
            free=self._ranks.least(free),
            ranks=self._ranks.size,
        )

    def _free_bytes(self) -> int:
        if self._device.type == "cuda":
            return torch.cuda.mem_get_info(self._device)[0]
        return int(free_memory().amount) // self._ranks.size

    def load(
        self, plan: MemoryPlan, send: Callable[[RankCommand], None] | None = None, tell: Tell | None = None
    ) -> GpuWorker:
        """Load the weights straight to the device, then take the pool.

        Args:
            plan: the same on all ranks.
            send: passed on to `GpuWorker`; for the first rank.
            tell: is told how far the weights are read.

        Raises:
            ModelError: the files cannot be loaded.
        """
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)
        assembly = GpuAssembly(self.arithmetic, self._device, self._ranks.rank, self._ranks.size)
        weights = load(self._source, self._config, self._settings.load_format, assembly, tell)
        if self._device.type == "cuda":
            torch.cuda.empty_cache()  # the pool needs in one piece what loading took in passing
        pool = GpuKvPool(
            self._part,
            plan.blocks,
            plan.block_size,
            self._device,
            self.arithmetic.dtype,
            fp8=self.arithmetic.fp8_kv,
        )
        model = GpuModel(
            self._config,
            weights,
            pool,
            context=plan.context,
            group=self._ranks,
            least_saved=self._least_saved(),
            workspace=Workspace(states_bytes(self._part, self._limits, plan.context), self._device),
        )
        recording = self._settings.cuda_graphs and self._ranks.rank == 0  # the first rank decides for all
        graphs = GraphPlan(self._limits.sequences, recording=recording)
        chunks = GraphPlan(self._limits.tokens, recording=recording, steps=chunk_row_steps)
        vocab, eos = self._config.vocab_size, self._config.eos_token_ids
        self.preparation = grammars = Grammars(vocab, eos)
        if self.exact_drafts:
            self.drafter = drafter_of(self._settings, grammars, at_once=GpuWorker.depth == 1, auto=False)
        edits = standard_edits(vocab, eos, grammars)
        poolers = standard_poolers(self._config)
        self.produces = produced(poolers)
        return GpuWorker.of(
            model,
            edits,
            graphs,
            self.arithmetic.dtype,
            send,
            adapters=self.adapters,
            poolers=poolers,
            step_tokens=self._limits.tokens,
            chunks=chunks if self._settings.cuda_graphs else None,
        )

    def _least_saved(self) -> int | None:
        """Bytes per layer that cascade attention must save; None: it is off."""
        if not self._settings.gpu_shared_prefixes:
            return None
        return LEAST_SAVED_OVER_GRAPH if self._settings.cuda_graphs else LEAST_SAVED


def rank_device(rank: int) -> torch.device:
    """Where a rank computes: the GPU of its number (CUDA_VISIBLE_DEVICES says which those are), CPU tensors where Triton
    interprets."""
    return torch.device("cpu") if INTERPRETED else torch.device("cuda", rank)
