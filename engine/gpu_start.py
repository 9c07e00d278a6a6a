"""Brings a GPU's worker up: arithmetic, memory plan, weights, pool, and every kernel compiled before the first request."""

import torch

from configs.model_config import ModelConfig
from configs.model_source import ModelError, ModelSource
from configs.settings import Settings
from engine.device import StepLimits
from engine.gpu_arithmetic import GpuArithmetic, choose_gpu_arithmetic
from engine.gpu_model import GpuKvPool, GpuModel
from engine.gpu_plan import plan_gpu_memory
from engine.gpu_weights import GpuAssembly
from engine.gpu_worker import GpuWorker
from engine.graph_plan import GraphPlan
from engine.loading import load
from kernels.gpu.prefix_groups import LEAST_SAVED, LEAST_SAVED_OVER_GRAPH
from scheduler.messages import MemoryPlan
from scheduler.sampling_params import SamplingParams
from scheduler.step import Chunk, SequenceInit, Step

_WARM_PROMPT = 3
_WARM_ROWS = (2, 16)  # even and a multiple of 16: Triton builds kernels anew for such numbers


class GpuStart:
    """One model on one GPU, step by step: `plan`, then `worker`, then `warm_up`.

    Args:
        settings: of the server.
        source: the model's files.
        config: their description.
        limits: of a step.
        device: the GPU; CPU tensors where Triton interprets.
        arithmetic: as it is to be, instead of what the settings ask for.

    Raises:
        ModelError: the settings ask for what the chip lacks, or for what does not go together.
    """

    def __init__(
        self,
        settings: Settings,
        source: ModelSource,
        config: ModelConfig,
        limits: StepLimits,
        device: torch.device,
        *,
        arithmetic: GpuArithmetic | None = None,
    ) -> None:
        self._settings = settings
        self._source = source
        self._config = config
        self._limits = limits
        self._device = device
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
        """See `engine.arithmetic.Arithmetic`."""
        return self.arithmetic.kv_format()

    @property
    def kv_element_bytes(self) -> int:
        """See `engine.arithmetic.Arithmetic`."""
        return 1 if self.arithmetic.fp8_kv else self.arithmetic.dtype.itemsize

    @property
    def name(self) -> str:
        """Of the device, for people."""
        return torch.cuda.get_device_name(self._device) if self._device.type == "cuda" else "interpreted"

    def plan(self, free: int | None = None) -> MemoryPlan:
        """Share out `free` bytes, or what the device says is free now.

        Raises:
            ModelError: see `plan_gpu_memory`.
        """
        if free is None:
            free = torch.cuda.mem_get_info(self._device)[0]
        return plan_gpu_memory(self._settings, self._source, self._config, self.arithmetic, self._limits, free=free)

    def worker(self, plan: MemoryPlan) -> GpuWorker:
        """Load the weights straight to the device, then take the pool.

        Raises:
            ModelError: the files cannot be loaded.
        """
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)
        weights = load(
            self._source, self._config, self._settings.load_format, GpuAssembly(self.arithmetic, self._device)
        )
        if self._device.type == "cuda":
            torch.cuda.empty_cache()  # of what the loading took for a moment: the pool needs it in one piece
        pool = GpuKvPool(
            self._config,
            plan.blocks,
            plan.block_size,
            self._device,
            self.arithmetic.dtype,
            fp8=self.arithmetic.fp8_kv,
        )
        model = GpuModel(self._config, weights, pool, context=plan.context, least_saved=self._least_saved())
        graphs = GraphPlan(self._limits.sequences, plan.context, recording=self._settings.cuda_graphs)
        return GpuWorker.of(model, self._config.eos_token_ids, graphs, self.arithmetic.dtype)

    def _least_saved(self) -> int | None:
        """See `GpuModel`."""
        if not self._settings.gpu_shared_prefixes:
            return None
        return LEAST_SAVED_OVER_GRAPH if self._settings.cuda_graphs else LEAST_SAVED

    def warm_up(self, worker: GpuWorker) -> None:
        """See `warm_up`; a GPU's forward pass is rehearsed in all its shapes before."""
        if self._device.type == "cuda":  # interpreted, nothing is compiled
            worker.rehearse()
        warm_up(worker, self._limits.sequences)


def warm_up(worker: GpuWorker, most: int) -> None:
    """Run every kind of step once, of up to `most` sequences, on block 0, which holds nothing yet: kernels are compiled here and
    not under a request.

    Raises:
        ModelError: the model gave no token.
    """
    kinds = [
        {},
        {"top_p": 0.9},
        {"presence_penalty": 0.1},
        {"top_p": 0.9, "presence_penalty": 0.1},
        {"logprobs": 0},
        {"logprobs": 5},
        {"logprobs": 20},
    ]
    for kind in kinds:
        _generate(worker, 1, SamplingParams(max_tokens=2, **kind))  # type: ignore[arg-type]
    for rows in (rows for rows in _WARM_ROWS if rows <= most):
        _generate(worker, rows, SamplingParams(max_tokens=2, top_p=0.9))


def _generate(worker: GpuWorker, rows: int, sampling: SamplingParams) -> None:
    """Two tokens for each of so many sequences, which write over each other's keys."""
    names = [f"warm-up {row}" for row in range(rows)]
    prompt = list(range(_WARM_PROMPT))
    new = [SequenceInit(request_id=name, prompt_ids=prompt, sampling=sampling) for name in names]
    for start, length in ((0, _WARM_PROMPT), (_WARM_PROMPT, 1)):
        last = start > 0
        chunks = [Chunk(request_id=name, start=start, length=length, block_table=[0], samples=True) for name in names]
        step = Step(step_id=-1, chunks=chunks, new=[] if last else new, retired=names if last else [])
        for result in worker.run(step).results:
            if result.token_id is None:
                raise ModelError(f"the model gave no token while it was warmed up: {result.error}")
