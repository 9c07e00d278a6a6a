"""From settings to a running loop: choose the backend, plan memory, load, produce a real token, say that the engine is ready.

Each phase is timed and reported as it ends. What differs between devices is the backend's; torch is imported by it.
"""

import errno
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.model.config import ModelConfig
from configs.model.encoder import EncoderConfig
from configs.model.ends import describe_ends
from configs.model.gguf_header import keeping_gguf_headers
from configs.model.source import ModelError, ModelSource
from configs.settings import Settings
from configs.weights import parse_weight
from engine.backend import Backend, Startup, generate, pool_once
from engine.device import Device, choose_device
from engine.fingerprint import fingerprints
from engine.ipc.channel import Channel
from engine.kv_store.tiers import DeviceBlocks, TierEntry, tiers_of
from engine.machine import usable_cores
from engine.models.registry import read_description
from engine.models.tasks import kinds_of
from engine.worker import Worker
from scheduler.drafting import Drafter
from scheduler.kv.block_pool import BlockPool
from scheduler.kv.eviction import eviction_of
from scheduler.scheduler import Scheduler
from scheduler.types.config import SchedulerConfig
from scheduler.types.messages import Event, MemoryPlan, Ready, StartPhase, WeightsRead
from scheduler.types.output_kind import OutputKind
from scheduler.types.sampling_params import SamplingParams

if TYPE_CHECKING:
    from engine.loop import EngineLoop

log = logging.getLogger("headrace.engine")

# How much of the pool may be given up early so that blocks can be taken in runs: that makes copies to and from a tier fewer, and
# what is given up is in the tier. Without one it would have to be computed again (figures in docs/kv-tiers.md).
_CHOICE = 1 / 8
_TOLD_SECONDS = 0.25  # between two words on how far weights are loaded
_OUT_OF_MEMORY = ("allocate memory", "not enough memory", "out of memory")


def _cpu(startup: Startup[ModelConfig], reason: str) -> Backend:
    from engine.cpu.backend import CpuBackend

    return CpuBackend(startup, reason)


def _cuda(startup: Startup[ModelConfig], reason: str) -> Backend:
    from engine.gpu.backend import GpuBackend

    return GpuBackend(startup, reason)


BACKENDS: dict[str, Callable[[Startup[ModelConfig], str], Backend]] = {"cpu": _cpu, "cuda": _cuda}  # by kind of device


def choose_backend(startup: Startup[Any]) -> Backend:
    """The backend of the device that computes.

    Raises:
        ModelError: a device is asked for that is not there.
    """
    with startup.phase("choose device"):
        device = choose_device(startup.settings)
    for sentence in startup.settings.unread_on(device.kind):
        log.warning("%s", sentence)
    _refuse_draft(startup, device)
    if isinstance(startup.config, EncoderConfig):
        if os.environ.get("TRITON_INTERPRET") == "1":  # there is nothing of Triton's to interpret
            device = Device("cpu", device.reason)
        from engine.encoder.backend import EncoderBackend

        return EncoderBackend(startup, device)
    return BACKENDS[device.kind](startup, device.reason)


def _refuse_draft(startup: Startup[Any], device: Device) -> None:
    """Refuse a draft model where nothing would ask it.

    Raises:
        ModelError: there is one.
    """
    draft = startup.settings.draft_model
    if draft is None:
        return
    if isinstance(startup.config, EncoderConfig):
        raise ModelError(
            f"--draft-model {draft} has nothing to guess: {startup.source.name} writes no text; leave it out."
        )
    if device.kind != "cpu":
        raise ModelError(
            f"--draft-model {draft} is not computed on a GPU yet ({device.reason}): leave it out, or use --device cpu."
        )


class Starter:
    """Brings one engine up, phase by phase.

    Args:
        settings: of the server.
        source: the model's files.
        channel: takes the phases and the memory plan, and is then the loop's.
        choose: gives the backend.
        tiers: gives the tiers below the device, fastest first.
    """

    def __init__(
        self,
        settings: Settings,
        source: ModelSource,
        channel: Channel,
        choose: Callable[[Startup[Any]], Backend] = choose_backend,
        tiers: Callable[[Settings], Sequence[TierEntry]] = tiers_of,
    ) -> None:
        self._settings = settings
        self._source = source
        self._channel = channel
        self._choose = choose
        self._tiers = tiers(settings)
        self._backend: Backend | None = None
        self._sending, self._tell_next = threading.Lock(), 0.0
        # The worker computes in this thread only: what libraries set up for each thread is warm when the first request comes.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="worker")

    def close(self) -> None:
        """Give back what the start took; to be called whatever became of it."""
        self._thread.shutdown()
        if self._backend is not None:
            self._backend.close()

    @property
    def folder(self) -> Path | None:
        """What would be left behind where `close` cannot be called."""
        return None if self._backend is None else self._backend.folder

    def start(self) -> "tuple[EngineLoop, Ready]":
        """Run all phases. Returns the loop, ready to run, and the event that says so.

        Raises:
            ModelError: the model cannot be served, or memory or files are refused; the sentence says why and what to do.
        """
        with explained(self._source.name), keeping_gguf_headers():
            return self._start()

    def _start(self) -> "tuple[EngineLoop, Ready]":
        with self._phase("read headers"):
            config = read_description(self._source, self._settings.model_impl)
            kinds = kinds_of(self._settings, config)
        startup: Startup[Any] = Startup(
            self._settings, self._source, config, self._phase, self._run, self._tiers, self._weights_read
        )
        self._backend = backend = self._choose(startup)
        plan = backend.plan()
        plan.cores = cores_in_words(self._settings.threads)
        self._send(plan)
        worker = backend.load(plan)
        if lacking := sorted(kinds - backend.produces):
            raise ModelError(f"{backend.name} makes no {', '.join(lacking)}, which --task asks for.")
        self._prove(worker, backend, min(4, plan.block_size))
        backend.warm_up()
        names = fingerprints(self._source, config, self._settings, backend)
        ready = Ready(
            context=plan.context,
            vocab_size=config.vocab_size,
            block_size=plan.block_size,
            blocks=plan.blocks,
            eos_token_ids=list(config.eos_token_ids),
            ends=describe_ends(config.ends),
            device=backend.name,
            version=version("headrace"),
            computes=names.answer,
            kv_fingerprint=names.kv,
            max_step_tokens=backend.limits.tokens,
            max_running=backend.limits.sequences,
            produces=sorted(kinds),
            vector_size=config.hidden_size if OutputKind.VECTOR in kinds else 0,
            reads_predictions=backend.drafter is not None and backend.drafter.reads_predictions,
        )
        return self._loop(ready, plan, backend, worker, whole_prompts=isinstance(config, EncoderConfig)), ready

    def _prove(self, worker: Worker, backend: Backend, prompt_length: int) -> None:
        """Have the worker make one real result."""
        if OutputKind.TOKENS in backend.produces:
            sampling = SamplingParams(max_tokens=1, temperature=0.0)
            with self._phase("first token"):
                self._run(lambda: generate(worker, sampling, prompt_length))
            return
        for kind in sorted(backend.produces):
            with self._phase(f"first {kind}"):
                self._run(partial(pool_once, worker, kind, prompt_length))

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self._send(StartPhase(name=name, seconds=time.perf_counter() - began))

    def _weights_read(self, part: float) -> None:
        """Send it now and then; called from the threads that read."""
        now = time.monotonic()
        if now >= self._tell_next:
            self._tell_next = now + _TOLD_SECONDS
            self._send(WeightsRead(part=part))

    def _send(self, event: Event) -> None:
        with self._sending:  # a socket is one thread's at a time
            self._channel.send(event)

    def _run(self, work: Callable[[], object]) -> object:
        return self._thread.submit(work).result()

    def _loop(
        self, ready: Ready, plan: MemoryPlan, backend: Backend, worker: Worker, *, whole_prompts: bool
    ) -> "EngineLoop":
        from engine.kv_store.opening import open_tiers
        from engine.loop import EngineLoop

        settings, fingerprint = self._settings, ready.kv_fingerprint
        pool = BlockPool(
            plan.blocks,
            plan.block_size,
            caching=settings.prefix_caching and not whole_prompts,
            eviction=eviction_of(settings.eviction, plan.blocks),
            choice=_CHOICE if self._tiers else 0.0,
        )
        blocks = DeviceBlocks(
            worker.blocks, backend.kv_element_bytes, plan.block_size, f"{fingerprint}|{plan.block_size}"
        )
        transfers, transfer_worker = open_tiers(self._tiers, pool, blocks, settings, self._channel.wake)
        scheduler = Scheduler(
            SchedulerConfig(
                context=plan.context,
                eos_token_ids=frozenset(ready.eos_token_ids),
                fingerprint=fingerprint,
                max_step_tokens=backend.limits.tokens,
                max_running=backend.limits.sequences,
                max_preemptions=settings.max_preemptions,
                decode_watermark=settings.decode_watermark,
                scheduling=settings.scheduling,
                tenant_weights=dict(map(parse_weight, settings.tenant_weights)),
                decode_price=settings.decode_price,
                priority_aging=settings.priority_aging_seconds,
                idle_step_tokens=settings.batch_step_tokens,
                adapters=backend.adapters,
                produces=frozenset(ready.produces),
                whole_prompts=whole_prompts,
            ),
            pool,
            transfers,
            drafter=exact_drafter(backend),
            worker_depth=worker.depth,
        )
        return EngineLoop(
            scheduler,
            worker,
            self._channel,
            transfer_worker=transfer_worker,
            thread=self._thread,
            preparation=backend.preparation,
        )


def exact_drafter(backend: Backend) -> Drafter | None:
    """The backend's drafter, if its guesses change no answer.

    Raises:
        ModelError: rejected drafts would leave traces in the KV cache.
    """
    if backend.drafter is not None and not backend.exact_drafts:
        raise ModelError(
            f"the drafter {backend.drafter.name} cannot be used with an fp8 KV cache ({backend.kv_format}): rejected "
            "drafts would change the scales of its blocks, and with them later tokens; set gpu_kv to auto, or use no drafter."
        )
    return backend.drafter


def cores_in_words(threads: int | None) -> str:
    """How many cores the engine may keep busy and what says so, and whether it was told to take more."""
    cores = usable_cores()
    count = int(cores.amount)
    if threads is not None and threads > count:
        log.warning("threads is %d, but there are only %d cores to use (%s)", threads, count, cores.source)
    return f"{count} ({cores.source})" + (f", {threads} threads as --threads asks" if threads else "")


@contextmanager
def explained(model: str) -> Iterator[None]:
    """Turn what the system refuses while `model` is loaded (memory, files) into a sentence; every other error is a defect.

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
    """torch has no exception type for the CPU's: `RuntimeError: ... DefaultCPUAllocator: can't allocate memory ...`."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, MemoryError) or any(words in str(error).lower() for words in _OUT_OF_MEMORY)
