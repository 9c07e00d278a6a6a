"""`python -m engine.bench.steps`: whole steps of a model with random weights on this GPU, beside the time that their bytes take.

A decode step reads every weight and every sequence's keys and values once: (weights + KV) / bandwidth is its floor. The bandwidth
is that of a large device-to-device copy, measured in the same run. Decode steps run on a CUDA graph, as the worker's do; the same
step launched kernel by kernel, the host's time included, is printed beside it.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import accumulate
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from configs.model.config import ModelConfig
from engine.gpu.graph_policy import GraphPlan, GraphShape
from engine.gpu.graphs import CudaRecorder, EagerRecorder, StepGraphs
from engine.gpu.model import GpuKvPool, GpuModel
from engine.gpu.weights import GpuLayer, GpuWeights
from engine.linear import Linear
from engine.sequence_input import SequenceInput
from kernels.bench.timing import Timer, copy_bandwidth

BLOCK = 32
# Decode steps: sequences, keys of each, and keys of the first if it has others: one long among many short ones.
DECODES = (
    *((sequences, 1024, None) for sequences in (1, 32, 128, 256)),
    *((sequences, 4096, None) for sequences in (1, 32, 128)),
    (256, 1024, 40_000),
)
LEFT_FREE = 8 * 2**30  # bytes beside weights and pool

LLAMA_3_8B = ModelConfig(
    architecture="llama",
    vocab_size=128256,
    hidden_size=4096,
    intermediate_size=14336,
    layers=32,
    heads=32,
    kv_heads=8,
    head_dim=128,
    rms_norm_eps=1e-5,
    rope_theta=500000.0,
    rope_scaling=None,
    sliding_window=None,
    sliding_layers=(False,) * 32,
    qkv_bias=False,
    o_bias=False,
    mlp_bias=False,
    qk_norm=False,
    tie_word_embeddings=False,
    max_position=8192,
    ends=(),
    dtype="bfloat16",
)


@dataclass(frozen=True, slots=True)
class StepTime:
    """One kind of step: `rows` tokens of `sequences`, each at `context` keys.

    Attributes:
        name: of the line.
        sequences: in the step.
        rows: of each sequence.
        context: keys of each sequence.
        seconds: on the device; for single tokens, on a CUDA graph.
        floor: seconds that reading what the step reads takes at the measured bandwidth.
        graph: rows of its graph.
        eager: seconds from one step to the next without a graph; for single tokens.
        host: seconds that the host takes to give the device the step, and on a graph waits for nothing.
        kernels: (name, calls, seconds) of what takes the device longest, without a graph, which has no names.
    """

    name: str
    sequences: int
    rows: int
    context: int
    seconds: float
    floor: float
    graph: int | None = None
    eager: float | None = None
    host: float | None = None
    kernels: tuple[tuple[str, int, float], ...] = ()


def random_weights(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> GpuWeights:
    """Weights that keep activations near one in size, made on the device."""

    def matrix(rows: int, columns: int) -> torch.Tensor:
        return torch.randn(rows, columns, device=device, dtype=dtype).mul_(columns**-0.5)

    def norm() -> torch.Tensor:
        return torch.ones(config.hidden_size, device=device)

    hidden, inner = config.hidden_size, config.intermediate_size
    layers = [
        GpuLayer(
            input_norm=norm(),
            qkv=Linear(matrix((config.heads + 2 * config.kv_heads) * config.head_dim, hidden)),
            q_norm=None,
            k_norm=None,
            o=Linear(matrix(hidden, config.heads * config.head_dim)),
            post_norm=norm(),
            gate_up=Linear(matrix(2 * inner, hidden)),
            down=Linear(matrix(hidden, inner)),
        )
        for _ in range(config.layers)
    ]
    table = matrix(config.vocab_size, hidden)
    head = table if config.tie_word_embeddings else matrix(config.vocab_size, hidden)
    return GpuWeights(embedding=table, layers=layers, final_norm=norm(), head=Linear(head))


class StepBench:
    """Times steps of up to `sequences` sequences on a model with a pool for `tokens` tokens; `bandwidth` in bytes per second."""

    def __init__(
        self,
        config: ModelConfig,
        timer: Timer,
        dtype: torch.dtype,
        tokens: int,
        bandwidth: float,
        *,
        sequences: int = 256,
    ) -> None:
        self._config = config
        self._timer = timer
        self._bandwidth = bandwidth
        weights = random_weights(config, timer.device, dtype)
        self._weight_bytes = weights.head.nbytes + sum(
            product.nbytes for layer in weights.layers for product in layer.products
        )
        self._pool = GpuKvPool(config, -(-tokens // BLOCK), BLOCK, timer.device, dtype)
        for part in torch.split(self._pool.storage, 512):
            part.normal_()
        self._model = GpuModel(config, weights, self._pool, context=config.max_position)
        self._plan = GraphPlan(sequences)
        recorder = CudaRecorder(timer.device) if timer.device.type == "cuda" else EagerRecorder()
        self._graphs = StepGraphs(self._model, self._plan, recorder, dtype)
        self._newest = torch.zeros(1, dtype=torch.int64, device=timer.device)

    @property
    def tokens(self) -> int:
        """That the pool holds."""
        return len(self._pool.storage) * BLOCK

    def decode(self, sequences: int, context: int, first: int | None = None) -> StepTime:
        """One token per sequence at `context` keys, the first at `first`; logits included.

        Raises:
            RuntimeError: the step's graph could not be recorded.
        """
        inputs, floor = self._step([first or context] + [context] * (sequences - 1), 1)
        rows = self._plan.bucket(sequences)
        self._graphs.record(GraphShape("decode", rows))
        if self._plan.recorded(sequences) != rows:
            raise RuntimeError(f"no graph of {rows} rows")

        def on_graph(_: int = 0) -> None:
            self._model.logits(self._graphs.forward(inputs, self._newest))

        def eagerly() -> None:
            self._model.logits(self._model.forward(inputs))

        return StepTime(
            f"decode {sequences} at {context}" + (f", one at {first}" if first else ""),
            sequences,
            1,
            context,
            self._timer.seconds(on_graph),
            floor,
            rows,
            self._wall(eagerly),
            self._host(on_graph),
            kernel_table(eagerly, self._timer.device),
        )

    def prefill(self, rows: int) -> StepTime:
        """One prompt's chunk. Its floor counts bytes only: read it as the time of a step, not as a ratio."""
        inputs, floor = self._step([rows], rows)
        seconds = self._timer.seconds(lambda _: self._model.logits(self._model.forward(inputs)))
        return StepTime(f"prefill {rows}", 1, rows, rows, seconds, floor)

    def _step(self, contexts: Sequence[int], rows: int) -> tuple[list[SequenceInput], float]:
        """A step over blocks in random order, and its floor in seconds."""
        order = torch.randperm(len(self._pool.storage), generator=torch.Generator().manual_seed(0)).tolist()
        ends = list(accumulate(-(-context // BLOCK) for context in contexts))
        inputs = [
            SequenceInput(
                token_ids=[(index + row) % self._config.vocab_size for row in range(rows)],
                start=context - rows,
                block_table=order[begin:end],
                wanted=1,
            )
            for index, (context, begin, end) in enumerate(zip(contexts, [0, *ends], ends, strict=False))
        ]
        size = self._weight_bytes + sum(contexts) / BLOCK * self._pool.storage[0].nbytes
        return inputs, size / self._bandwidth

    def _host(self, work: Callable[[], object]) -> float:
        """The median of the seconds that the host takes for a call on an idle device."""
        taken = []
        for _ in range(self._timer.rounds):
            self._wait()
            began = time.perf_counter()
            work()
            taken.append(time.perf_counter() - began)
        return statistics.median(taken)

    def _wall(self, work: Callable[[], object]) -> float:
        """Seconds from one call to the next, the host's time included; a first call is not counted."""
        work()
        self._wait()
        began = time.perf_counter()
        for _ in range(self._timer.rounds):
            work()
        self._wait()
        return (time.perf_counter() - began) / self._timer.rounds

    def _wait(self) -> None:
        if self._timer.device.type == "cuda":
            torch.cuda.synchronize(self._timer.device)


def kernel_table(work: Callable[[], object], device: torch.device, most: int = 8) -> tuple[tuple[str, int, float], ...]:
    """(name, calls, seconds of the device) of a call's kernels, the dearest first; of torch's operations where there is no GPU."""
    gpu = device.type == "cuda"
    activity = ProfilerActivity.CUDA if gpu else ProfilerActivity.CPU
    with profile(activities=[activity], acc_events=True) as profiler:
        work()
        if gpu:
            torch.cuda.synchronize(device)
    found = [
        (event.key, event.count, (event.self_device_time_total if gpu else event.self_cpu_time_total) / 1e6)
        for event in profiler.key_averages()
    ]
    return tuple(sorted(found, key=lambda each: -each[2])[:most])


def steps(bench: StepBench) -> Iterator[StepTime | str]:
    """All steps of the table; of those that the pool does not hold, what they need."""
    for sequences, context, first in DECODES:
        tokens = sequences * context + (first or 0)
        if tokens > bench.tokens:
            yield f"decode {sequences} at {context}: left out, {tokens:,} tokens are needed and {bench.tokens:,} fit"
        else:
            yield bench.decode(sequences, context, first)
    for rows in (512, 2048):
        yield bench.prefill(rows)


def pool_tokens(config: ModelConfig, free: int) -> int:
    """Of a pool in 16 bits for the largest step, or for as much as `free` bytes hold beside the weights."""
    most = max(sequences * context + (first or 0) for sequences, context, first in DECODES)
    inner = 3 * config.intermediate_size + 2 * (config.heads + config.kv_heads) * config.head_dim
    weights = 2 * config.hidden_size * (config.layers * inner + 2 * config.vocab_size)
    token = 2 * config.layers * 2 * config.kv_heads * config.head_dim
    return max(min(most, (free - weights - LEFT_FREE) // token), BLOCK)


def main() -> int:
    """Print the table. Returns 1 if there is no GPU."""
    parser = argparse.ArgumentParser(prog="python -m engine.bench.steps", description=__doc__)
    parser.add_argument("--json", type=Path, help="write the figures there")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("no GPU: torch finds none")
        return 1
    timer = Timer(torch.device("cuda", 0))
    bandwidth = copy_bandwidth(timer)
    config = replace(LLAMA_3_8B, max_position=131_072)
    bench = StepBench(config, timer, torch.bfloat16, pool_tokens(config, torch.cuda.mem_get_info()[0]), bandwidth)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, copies {bandwidth / 1e9:.0f} GB/s")
    lines: list[dict[str, object]] = []
    for line in steps(bench):
        if isinstance(line, str):
            print(line)
            lines.append({"left_out": line})
            continue
        lines.append(asdict(line))
        eager = "" if line.eager is None else f"  without a graph {1e3 * line.eager:8.2f} ms"
        ratio = f"floor {1e3 * line.floor:8.2f} ms  x {line.seconds / line.floor:.2f}"
        if line.host is not None:
            eager += f"  host {1e3 * line.host:6.2f} ms"
        print(f"{line.name:36}{1e3 * line.seconds:9.2f} ms  {ratio}{eager}", flush=True)
        if arguments.json:
            arguments.json.write_text(json.dumps({"device": torch.cuda.get_device_name(), "steps": lines}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
