"""From a command line to a running loop: plan memory, load, produce a real token, say that it is ready.

Each phase is timed and reported as it ends. torch is imported in a phase of its own, after the memory plan has been sent.
"""

import errno
import logging
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from configs.declaration import parse_weight
from configs.model.config import ModelConfig
from configs.model.read import read_config
from configs.model.source import ModelError, ModelSource
from configs.settings import Settings
from engine.cpu.formats import Arithmetic, choose_arithmetic
from engine.cpu.memory_plan import plan_memory
from engine.device import Device, StepLimits, choose_device, step_limits
from engine.fingerprint import kv_fingerprint
from engine.ipc.channel import Channel
from engine.tensor_parallel.group import Followers, loopback, rendezvous
from scheduler.kv.block_pool import BlockPool
from scheduler.kv.eviction import eviction_of
from scheduler.scheduler import Scheduler
from scheduler.types.config import SchedulerConfig
from scheduler.types.messages import MemoryPlan, Phase, Ready
from scheduler.types.sampling_params import SamplingParams
from scheduler.types.step import Chunk, SequenceInit, Step

if TYPE_CHECKING:
    from engine.cpu.model import Model
    from engine.cpu.worker import CpuWorker, Worker
    from engine.gpu.backend import GpuStart
    from engine.loop import EngineLoop
    from engine.tensor_parallel.shards import Joined

log = logging.getLogger("headrace.engine")

# Of the pool, that may be given up early so that blocks can be taken in runs: copies to and from a tier then are fewer, and what
# is given up lies in the tier. Without one it would have to be computed again (figures in docs/kv-tiers.md).
_CHOICE = 1 / 8
_OUT_OF_MEMORY = ("allocate memory", "not enough memory", "out of memory")


class Starter:
    """Brings one engine up, phase by phase.

    Raises (from `start`):
        ModelError: the model cannot be served, or memory or files are refused; the sentence says why and what to do.
    """

    def __init__(self, settings: Settings, source: ModelSource, channel: Channel) -> None:
        self._settings = settings
        self._source = source
        self._channel = channel
        self._followers: Followers | None = None
        # Nothing computes in another: what libraries set up for a thread is warm when the first request comes.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="worker")

    def close(self) -> None:
        """Send the other ranks home, if there are any; to be called whatever became of the start."""
        self._thread.shutdown()
        if self._followers is not None:
            self._followers.close()

    @property
    def folder(self) -> Path | None:
        """What would be left behind where `close` cannot be called."""
        return self._followers.folder if self._followers else None

    def start(self) -> "tuple[EngineLoop, Ready]":
        """Do all phases. Returns the loop, ready to run, and the event that tells so."""
        with refusals_told(self._source.name):
            return self._start()

    def _start(self) -> "tuple[EngineLoop, Ready]":
        with self._phase("read headers"):
            config = read_config(self._source)
        with self._phase("choose device"):
            device = choose_device(self._settings)
        for sentence in self._settings.unread_on(device.kind):
            log.warning("%s", sentence)
        arithmetic: Arithmetic | GpuStart
        worker: Worker
        if device.kind == "cuda":
            arithmetic, plan, worker = self._on_gpu(config, device)
        else:
            arithmetic, plan, worker = self._on_cpu(config, device)
        ready = Ready(
            context=plan.context,
            vocab_size=config.vocab_size,
            block_size=plan.block_size,
            blocks=plan.blocks,
            eos_token_ids=list(config.eos_token_ids),
            device=arithmetic.name,
            version=version("headrace"),
        )
        return self._loop(config, plan, arithmetic, worker, step_limits(self._settings, device.kind)), ready

    def _on_cpu(self, config: ModelConfig, device: Device) -> "tuple[Arithmetic, MemoryPlan, Worker]":
        with self._phase("plan memory"):
            arithmetic = choose_arithmetic(self._settings, config)
            plan = plan_memory(self._settings, self._source, config, arithmetic)
            plan.arithmetic += f"; on the CPU: {device.reason}"
        self._channel.send(plan)
        with self._phase("import torch"):
            self._import_torch()
        with self._phase("load weights"):
            worker = self._worker(config, plan, arithmetic)
        with self._phase("first token"):
            self._thread.submit(produce_token, worker, plan.block_size).result()
        return arithmetic, plan, worker

    def _on_gpu(self, config: ModelConfig, device: Device) -> "tuple[GpuStart, MemoryPlan, Worker]":
        """The plan comes after torch, which alone knows what is free on a GPU."""
        if self._settings.tensor_parallel > 1:
            self._followers = Followers(self._settings, self._source)
        with self._phase("import torch"):
            self._import_torch()
        ranks = self._join() if self._followers else None
        with self._phase("plan memory"):
            gpu = gpu_start(self._settings, self._source, config, step_limits(self._settings, device.kind), ranks)
            plan = gpu.plan()
            plan.arithmetic += f"; on {gpu.name}: {device.reason}"
        self._channel.send(plan)
        with self._phase("load weights"):
            worker = gpu.worker(plan, self._followers.tell if self._followers else None)
        with self._phase("first token"):
            self._thread.submit(produce_token, worker, plan.block_size).result()
        with self._phase("compile kernels"):
            self._thread.submit(gpu.warm_up, worker).result()
        return gpu, plan, worker

    def _join(self) -> "Joined":
        from engine.gpu.backend import rank_device
        from engine.tensor_parallel.shards import Joined

        assert self._followers is not None
        with self._phase("meet ranks"):
            os.environ.update(loopback())
            return Joined(
                0,
                self._settings.tensor_parallel,
                rendezvous(self._followers.folder),
                rank_device(0),
                timeout=self._settings.start_seconds,
            )

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self._channel.send(Phase(name=name, seconds=time.perf_counter() - began))

    def _import_torch(self) -> None:
        # Threads that spin at the end of each parallel loop take the core from whoever they wait for: with other work on
        # the machine a step took 1-11 s that takes 0.3-0.5 s when they sleep (20 sequences, 2 cores).
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        import torch

        import engine.cpu.worker

        del engine  # imported here so that its time counts in this phase
        # Threads are not tied to cores: measured on two of them, one stream lost 6 % and 8 streams won 4 %, within the machine's
        # drift. The HTTP process needs a core now and then, and the system knows better which.
        torch.set_num_threads(self._settings.threads or torch.get_num_threads())

    def _worker(self, config: ModelConfig, plan: MemoryPlan, arithmetic: Arithmetic) -> "CpuWorker":
        from engine.cpu.worker import CpuWorker
        from engine.sampling.sampler import Sampler

        return CpuWorker(self._model(config, plan, arithmetic), Sampler(config.vocab_size, config.eos_token_ids))

    def _model(self, config: ModelConfig, plan: MemoryPlan, arithmetic: Arithmetic) -> "Model":
        import torch

        from engine.cpu.model import ExactModel, FastModel
        from engine.loading import load, load_weights

        load_format = self._settings.load_format
        if arithmetic.precision == "exact":
            from engine.cpu.decoder import Decoder
            from engine.cpu.kv_pool import KvPool

            decoder = Decoder(config, load_weights(self._source, config, load_format))
            return ExactModel(decoder, KvPool(config, plan.blocks, plan.block_size))
        from engine.cpu.kv_pool import PackedKvPool
        from engine.loading.packed import assemble_packed

        return FastModel(
            config,
            load(self._source, config, load_format, assemble_packed),
            PackedKvPool(config, plan.blocks, plan.block_size),
            arithmetic=arithmetic,
            context=plan.context,
            threads=torch.get_num_threads(),
        )

    def _loop(
        self,
        config: ModelConfig,
        plan: MemoryPlan,
        arithmetic: "Arithmetic | GpuStart",
        worker: "Worker",
        limits: StepLimits,
    ) -> "EngineLoop":
        from engine.kv_store.opening import open_tiers
        from engine.loop import EngineLoop

        settings = self._settings
        fingerprint = kv_fingerprint(self._source, settings, arithmetic)
        pool = BlockPool(
            plan.blocks,
            plan.block_size,
            caching=settings.prefix_caching,
            eviction=eviction_of(settings.eviction, plan.blocks),
            choice=_CHOICE if settings.kv_host_gib or settings.kv_disk_path else 0.0,
        )
        tiers, transfer_worker = open_tiers(
            settings,
            pool,
            worker.blocks,
            fingerprint=f"{fingerprint}|{plan.block_size}",
            element_bytes=arithmetic.kv_element_bytes,
            wake=self._channel.wake,
        )
        scheduler = Scheduler(
            SchedulerConfig(
                context=plan.context,
                eos_token_ids=frozenset(config.eos_token_ids),
                fingerprint=fingerprint,
                max_step_tokens=limits.tokens,
                max_running=limits.sequences,
                max_preemptions=settings.max_preemptions,
                decode_watermark=settings.decode_watermark,
                scheduling=settings.scheduling,
                tenant_weights=dict(map(parse_weight, settings.tenant_weights)),
                decode_price=settings.decode_price,
            ),
            pool,
            tiers,
        )
        return EngineLoop(scheduler, worker, self._channel, transfer_worker=transfer_worker, thread=self._thread)


def gpu_start(
    settings: Settings, source: ModelSource, config: ModelConfig, limits: StepLimits, ranks: "Joined | None"
) -> "GpuStart":
    """Of the first rank."""
    from engine.gpu.backend import GpuStart, rank_device

    return GpuStart(settings, source, config, limits, rank_device(0), ranks=ranks)


@contextmanager
def refusals_told(model: str) -> Iterator[None]:
    """What the system refuses while `model` is loaded (memory, files), as a sentence; every other error is a defect.

    Raises:
        ModelError: memory ran out although the plan had counted on it, or a file cannot be read.
    """
    try:
        yield
    except (MemoryError, OSError, RuntimeError) as error:
        if _out_of_memory(error):
            raise ModelError(
                f"out of memory while loading {model}: less is free than the memory plan counted on; free memory, lower "
                "--kv-blocks or --max-step-tokens, or take a smaller model."
            ) from error
        if isinstance(error, OSError):
            raise ModelError(f"cannot load {model}: {error}; check that its files are there and readable.") from error
        raise


def _out_of_memory(error: Exception) -> bool:
    """torch has no type of its own for the CPU's: `RuntimeError: ... DefaultCPUAllocator: can't allocate memory ...`."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, MemoryError) or any(words in str(error).lower() for words in _OUT_OF_MEMORY)


def produce_token(worker: "Worker", block_size: int) -> None:
    """Compute one real token, so that "ready" means that the whole path works and is warm."""
    name = "warm-up"
    prompt = list(range(min(4, block_size)))
    new = SequenceInit(request_id=name, prompt_ids=prompt, sampling=SamplingParams(max_tokens=1, temperature=0.0))
    chunk = Chunk(request_id=name, start=0, length=len(prompt), block_table=[0], samples=True)
    result = worker.run(Step(step_id=-1, chunks=[chunk], new=[new], retired=[name])).results[0]
    if result.token_id is None:
        raise ModelError(f"the model gave no token in the first step: {result.error}")
