"""`python -m engine.bench.serve`: output tokens per second of the whole engine, from requests to tokens, on this GPU.

The real loop, scheduler and worker over Llama 3 8B's shape with random weights; all requests are there at the start and share
nothing. `tests/peers/transformers_serving.py` measures the peer that it is compared with, with the same numbers.
"""

import argparse
import json
import random
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import torch

from configs.model.config import ModelConfig
from engine.bench.steps import BLOCK, LLAMA_3_8B, random_weights
from engine.gpu.graph_policy import GraphPlan, chunk_row_steps
from engine.gpu.model import GpuKvPool, GpuModel
from engine.gpu.worker import GpuWorker
from engine.ipc.channel import Channel
from engine.loop import EngineLoop
from engine.sampling.registry import standard_edits
from scheduler.kv.block_pool import BlockPool
from scheduler.scheduler import Scheduler
from scheduler.types.config import SchedulerConfig
from scheduler.types.messages import AddRequest, Command, Shutdown, StepOutputs
from scheduler.types.sampling_params import SamplingParams


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked of the engine (lengths in tokens), and how many tokens a step may hold."""

    requests: int = 256
    prompt: int = 512
    output: int = 128
    step_tokens: int = 2048


@dataclass(frozen=True, slots=True)
class Served:
    """What one load took."""

    name: str
    seconds: float
    output_tokens: int
    tokens_per_second: float
    steps: int
    graph_steps: int


class ScriptedRequests:
    """The engine's channel in this process: it gives all requests at once and stops the engine when the last has ended."""

    def __init__(self, requests: list[AddRequest]) -> None:
        self._waiting = list(requests)
        self._open = len(requests)
        self._woken = threading.Semaphore(1)  # 1 for the waiting requests; it counts, so that no wake is lost
        self.tokens = 0

    def receive(self) -> Iterator[Command]:
        """Give all requests at once, and `Shutdown` when all have ended."""
        waiting, self._waiting = self._waiting, []
        yield from waiting
        if not self._open:
            yield Shutdown(reason="all requests have ended")

    def send(self, event: object) -> None:
        """Count the tokens in an event, and the requests that it ends."""
        if isinstance(event, StepOutputs):
            self.tokens += len(event.tokens) + sum(len(output.token_ids) for output in event.outputs)
            self._open -= sum(output.finish_reason is not None for output in event.outputs)

    def wake(self) -> None:
        """End a `wait`."""
        self._woken.release()

    def wait(self, seconds: float | None = None) -> None:
        """Sleep until a `wake` while requests are open."""
        if self._open:
            self._woken.acquire(timeout=seconds)


class ServeBench:
    """A worker over random weights, which serves one load after the other."""

    def __init__(self, config: ModelConfig, device: torch.device, dtype: torch.dtype, load: Load) -> None:
        self._config = config
        self._load = load
        self._context = -(-(load.prompt + load.output) // BLOCK) * BLOCK
        self._blocks = load.requests * self._context // BLOCK + 1
        pool = GpuKvPool(config, self._blocks, BLOCK, device, dtype)
        model = GpuModel(config, random_weights(config, device, dtype), pool, context=self._context)
        plan, chunks = GraphPlan(load.requests), GraphPlan(load.step_tokens, steps=chunk_row_steps)
        edits = standard_edits(config.vocab_size, config.eos_token_ids)
        self._worker = GpuWorker.of(model, edits, plan, dtype, chunks=chunks)

    def serve(self, name: str, count: int) -> Served:
        """Serve `count` requests of the load from an empty cache."""
        load, seed = self._load, random.Random(name)
        requests = [
            AddRequest(
                request_id=f"{name} {index}",
                prompt_ids=seed.choices(range(self._config.vocab_size), k=load.prompt),
                sampling=SamplingParams(max_tokens=load.output, temperature=0.0, ignore_eos=True),
            )
            for index in range(count)
        ]
        limits = SchedulerConfig(
            context=self._context,
            eos_token_ids=frozenset(),
            fingerprint=name,
            max_step_tokens=load.step_tokens,
            max_running=load.requests,
        )
        scheduler = Scheduler(limits, BlockPool(self._blocks, BLOCK, caching=True))
        wire, replayed = ScriptedRequests(requests), self._worker.replayed
        loop = EngineLoop(scheduler, self._worker, cast(Channel, wire))
        began = time.perf_counter()
        loop.run()
        seconds = time.perf_counter() - began
        return Served(
            name,
            seconds,
            wire.tokens,
            wire.tokens / seconds,
            scheduler.stats.steps,
            self._worker.replayed - replayed,
        )


def main() -> int:
    """Serve twice, since the first time pays for kernels and graphs, and print both. Returns 1 if tokens are missing or there is no
    GPU."""
    parser = argparse.ArgumentParser(prog="python -m engine.bench.serve", description=__doc__)
    parser.add_argument("--json", type=Path, help="write the figures there")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("no GPU: torch finds none")
        return 1
    bench = ServeBench(LLAMA_3_8B, torch.device("cuda", 0), torch.bfloat16, Load())
    lines = []
    for name in ("first", "warm"):
        served = bench.serve(name, Load().requests)
        if served.output_tokens != Load().requests * Load().output:
            print(f"{name}: {served.output_tokens} tokens came, not {Load().requests} x {Load().output}")
            return 1
        lines.append(asdict(served))
        print(
            f"{name:8}{served.tokens_per_second:10.0f} output tok/s  {served.seconds:8.2f} s  {served.steps} steps, "
            f"{served.graph_steps} of them on graphs",
            flush=True,
        )
        if arguments.json:
            arguments.json.write_text(json.dumps({"device": torch.cuda.get_device_name(), "serving": lines}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
