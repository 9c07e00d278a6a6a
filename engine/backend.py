"""What a kind of device must offer to serve a model: plan -> load -> warm up. No torch.

A new kind is a folder with a `Backend` of its own, and a line in `engine.start.BACKENDS`.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from configs.model.config import ModelConfig
from configs.model.encoder import EncoderConfig
from configs.model.source import ModelError, ModelSource
from configs.settings import Settings
from engine.device import StepLimits
from engine.grammar.anteroom import Preparation
from engine.kv_store.tiers import TierEntry
from engine.machine import usable_cores
from engine.worker import Worker
from scheduler.drafting import Drafter
from scheduler.types.messages import MemoryPlan
from scheduler.types.output_kind import OutputKind
from scheduler.types.sampling_params import SamplingParams
from scheduler.types.step import Chunk, ChunkPhase, SequenceInit, Step

Described = TypeVar("Described", ModelConfig, EncoderConfig)


@dataclass(frozen=True, slots=True)
class Startup(Generic[Described]):
    """What a backend starts from.

    Attributes:
        settings: of the server.
        source: the model's files.
        config: their description.
        phase: times a named phase of the start and reports it when it ends.
        run: does some work in the worker's thread, which is the one that will run steps, and waits for it.
        tiers: that will be opened below the device; some take memory which a plan has to leave them.
        tell: is told how far weights are read, as a part of all of them, by any thread.
    """

    settings: Settings
    source: ModelSource
    config: Described
    phase: Callable[[str], AbstractContextManager[None]]
    run: Callable[[Callable[[], object]], object]
    tiers: Sequence[TierEntry] = ()
    tell: Callable[[float], None] | None = None


class Backend(Protocol):
    """One model on one kind of device. `plan`, `load` and `warm_up` are called once each, in this order.

    Attributes that say what was chosen (`name`, `kv_format`, `build`, `kv_element_bytes`) are valid after `plan`, those that say
    what its worker can do (`produces`, `adapters`, `drafter`, `preparation`) after `load`.
    """

    @property
    def name(self) -> str:
        """Device and arithmetic in words."""
        ...

    @property
    def limits(self) -> StepLimits:
        """How much one step may hold."""
        ...

    @property
    def kv_format(self) -> str:
        """How keys and values are stored (number format, layout): equal exactly where blocks are interchangeable."""
        ...

    @property
    def build(self) -> str:
        """What computes, as far as `kv_format` does not say it: the device, the code, and options that change how its sums are
        rounded, such as a drafter where more rows are computed otherwise. The same after a restart on the same machine."""
        ...

    @property
    def kv_element_bytes(self) -> int:
        """Bytes of one number of a key or value."""
        ...

    @property
    def produces(self) -> frozenset[OutputKind]:
        """The kinds of output that its worker makes; requests for others are refused."""
        ...

    @property
    def adapters(self) -> Mapping[str, str]:
        """The LoRA adapters that its worker has, in the order of their rows: by its name, the digest of each one's contents (all
        that changes its numbers: weights, scale). Requests for others are refused.

        Blocks are named by the digest: an adapter that is trained anew under its old name finds none of its old blocks, in no tier.

        An adapter changes the products of layers, never the head: `logits` takes no row of it. What PEFT calls `all-linear` leaves
        the head out, and a tied one is the embedding as well, which would have to change with it. A reader of adapters must refuse
        one that has weights for the head.
        """
        ...

    @property
    def drafter(self) -> Drafter | None:
        """Proposes the tokens that its worker verifies; None: each decode brings one token."""
        ...

    @property
    def preparation(self) -> Preparation | None:
        """What its worker has to make before it can compute some requests; None: nothing."""
        ...

    @property
    def exact_drafts(self) -> bool:
        """Whether a block in which a draft was rejected ends up with the bytes it would have without, as its name promises."""
        ...

    @property
    def folder(self) -> Path | None:
        """A folder to remove where `close` cannot be called, or None."""
        ...

    def plan(self) -> MemoryPlan:
        """Choose the arithmetic and share out the device's memory.

        Raises:
            ModelError: the model does not fit, or the settings ask for what the device lacks.
        """
        ...

    def load(self, plan: MemoryPlan) -> Worker:
        """Load the weights and take the KV pool.

        Raises:
            ModelError: the files cannot be loaded.
        """
        ...

    def warm_up(self) -> None:
        """Do what would otherwise delay the first requests; the worker has produced a token already.

        Raises:
            ModelError: the model gave no token.
        """
        ...

    def close(self) -> None:
        """Give back what the backend holds beside the worker; to be called whatever became of the start."""
        ...


def import_torch(threads: int | None) -> None:
    """Import torch, which takes a second, and set how many `threads` it computes with (None: as many as it would by itself, but no
    more than there are cores to use)."""
    # Threads that spin at the end of each parallel loop take the core from whoever they wait for: with other work on
    # the machine a step took 1-11 s that takes 0.3-0.5 s when they sleep (20 sequences, 2 cores).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import torch

    # Threads are not pinned to cores: with pinning, one stream lost 6 % and 8 streams gained 4 % on two cores, within the
    # machine's drift. The HTTP process needs a core now and then, and the system knows better which.
    torch.set_num_threads(threads or min(torch.get_num_threads(), int(usable_cores().amount)))


def pool_once(worker: Worker, kind: OutputKind, prompt_length: int) -> None:
    """Have a worker that makes no tokens make one result, likewise.

    Raises:
        ModelError: there is none.
    """
    name, prompt = "warm-up", list(range(prompt_length))
    new = SequenceInit(request_id=name, prompt_ids=prompt, sampling=SamplingParams(max_tokens=0), produces=kind)
    chunk = Chunk(request_id=name, start=0, length=prompt_length, block_table=[0], phase=ChunkPhase.PREFILL)
    result = worker.run(Step(step_id=-1, chunks=[chunk], new=[new], retired=[name])).results[0]
    if result.pooled is None:
        raise ModelError(f"the model gave no {kind} while it was warmed up: {result.error}")


def generate(worker: Worker, sampling: SamplingParams, prompt_length: int) -> None:
    """Generate `sampling.max_tokens` tokens after a prompt of `prompt_length` tokens, in block 0, which holds nothing yet.

    This shows that the whole path works, and warms it up.

    Raises:
        ModelError: the model gave no token.
    """
    name, prompt = "warm-up", list(range(prompt_length))
    new = SequenceInit(request_id=name, prompt_ids=prompt, sampling=sampling)
    for index in range(sampling.max_tokens):
        start, length = (prompt_length + index - 1, 1) if index else (0, prompt_length)
        phase = ChunkPhase.DECODE if index else ChunkPhase.PREFILL
        chunk = Chunk(request_id=name, start=start, length=length, block_table=[0], phase=phase, samples=1)
        retired = [name] if index == sampling.max_tokens - 1 else []
        result = worker.run(Step(step_id=-1, chunks=[chunk], new=[] if index else [new], retired=retired)).results[0]
        if not result.token_ids:
            raise ModelError(f"the model gave no token while it was warmed up: {result.error}")
