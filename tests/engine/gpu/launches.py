"""Which builds of which kernels steps ask for: `python launches.py [compile|host]`, on CPU tensors, no GPU, nothing interpreted.

Triton's own launcher sorts the arguments; only what would come after it, compiling and running, is left out (with `compile`, only
running). Prints the builds of warm-up steps, then those that other steps would still add. With `host`, it prints instead what the
host takes to launch a step with chunks: all of Python and of Triton's launcher, but neither the driver nor torch's products.
"""

import os
import random
import sys
import time
from dataclasses import replace
from statistics import median

os.environ["TRITON_INTERPRET"] = "0"  # before triton is imported

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from configs.model.config import ModelConfig
from engine.gpu.formats import GpuArithmetic
from engine.gpu.graph_policy import GraphPlan, GraphShape, chunk_row_steps
from engine.gpu.graphs import StepGraphs
from engine.gpu.model import GpuKvPool, GpuModel
from engine.gpu.weights import GpuAssembly
from engine.loading.dummy import load_dummy
from engine.sequence_input import SequenceInput
from kernels.gpu.attention import decode, launch, paged
from kernels.gpu.sampling.penalties import count_tokens
from kernels.gpu.sampling.sample import BatchSettings, RowSettings, sample
from kernels.gpu.sampling.token_logprobs import token_logprobs

CPU = torch.device("cpu")
CONFIG = ModelConfig(
    architecture="qwen3", vocab_size=4500, hidden_size=96, intermediate_size=128, layers=1, heads=9, kv_heads=3,
    head_dim=64, rms_norm_eps=1e-6, rope_theta=1e4, rope_scaling=None, sliding_window=None, sliding_layers=(False,),
    qkv_bias=False, o_bias=False, mlp_bias=False, qk_norm=True, tie_word_embeddings=True, max_position=4096,
    ends=(), dtype="bfloat16",
)  # fmt: skip


class Driver:
    """The properties of a GPU that is not here."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, _: int) -> int:
        return 0


def prepare(compiles: bool) -> list[str]:
    """From here on nothing is launched; the list grows with each build that is asked for."""
    asked: list[str] = []
    driver.set_active(Driver())
    run, build = JITFunction.run, JITFunction._do_compile

    def dry(self, *arguments, grid, warmup, **options):
        assert all(0 < size < 2 ** (31 if axis == 0 else 16) for axis, size in enumerate(grid)), (self, grid)
        return run(self, *arguments, grid=grid, warmup=True, **options)

    def noted(self, key, *rest):
        asked.append(f"{self.__name__} {key}")
        if compiles:
            return build(self, key, *rest)
        return self.device_caches[0][0].setdefault(key, object())

    JITFunction.run, JITFunction._do_compile = dry, noted
    launch.capability = lambda device: 90
    for module in (decode, paged):
        module.chip = lambda device: 90
    decode.multiprocessors = lambda device: 132
    return asked


def step(model: GpuModel, counts: torch.Tensor, chunks: list[tuple[int, int]], seed: int) -> None:
    """One step of sequences given as (rows, keys), with everything that is sampled after it."""
    rng = random.Random(seed)
    inputs = [
        SequenceInput(
            token_ids=[5] * rows, start=keys - rows, block_table=rng.choices(range(9), k=-(-keys // 32)), wanted=1
        )
        for rows, keys in chunks
    ]
    logits = model.logits(model.forward(inputs))
    rows = len(chunks)
    for settings in (RowSettings(), RowSettings(top_k=5), RowSettings(presence=0.5)):
        sample(logits, BatchSettings.of([settings] * rows, CPU), counts)
    tokens = torch.zeros(2 * rows + 1, dtype=torch.int64)
    for some in (tokens[:rows], tokens[1 : rows + 1]):
        token_logprobs(logits, some, 5)
        count_tokens(counts, some, some, output=True)


class Unmultiplied:
    """A product that is not computed."""

    def __init__(self, outputs: int) -> None:
        self.outputs = outputs

    def __call__(self, x: torch.Tensor, adapters: torch.Tensor | None = None) -> torch.Tensor:
        return x.new_empty((len(x), self.outputs))


class Silent:
    """Records graphs of which nothing is launched."""

    def record(self, prepare, work):
        prepare()
        return lambda: None


def host(layers: int = 32, times: int = 30) -> None:
    """Median microseconds of the host, from a step's sequences to the last launch of its forward pass."""
    config = replace(CONFIG, layers=layers, sliding_layers=(False,) * layers, heads=8, kv_heads=2)
    arithmetic = GpuArithmetic("dense", torch.bfloat16)
    weights = load_dummy(config, GpuAssembly(arithmetic, CPU))
    shapes = {"qkv": 12 * 64, "o": 96, "gate_up": 256, "down": 96}
    layer = replace(weights.layers[0], **{name: Unmultiplied(outputs) for name, outputs in shapes.items()})
    pool = GpuKvPool(config, 300, 32, CPU, arithmetic.dtype)
    model = GpuModel(config, replace(weights, layers=[layer] * layers), pool, context=4096)
    newest = torch.zeros(1, dtype=torch.int64)
    torch.set_num_threads(1)
    for said, singles, rows in (("a chunk of 256", 0, 256), ("a chunk of 224 and 32 single tokens", 32, 224)):
        chunks = GraphPlan(512, steps=chunk_row_steps)
        graphs = StepGraphs(model, GraphPlan(64), Silent(), torch.bfloat16, chunks=chunks)
        inputs = [SequenceInput(token_ids=[5], start=1000, block_table=[0] * 32, wanted=1) for _ in range(singles)]
        inputs.append(SequenceInput(token_ids=[5] * rows, start=512, block_table=[0] * 32, wanted=1))
        took = []
        for _ in range(2):
            seconds = []
            for _ in range(times):
                began = time.process_time()  # other processes do not count
                graphs.forward(inputs, newest)
                seconds.append(time.process_time() - began)
            took.append(1e6 * median(seconds))
            graphs.record(GraphShape("chunks", 256))
        assert graphs.replayed == times
        print(f"{said}: {took[0]:.0f} us kernel by kernel, {took[1]:.0f} us on a graph, of {layers} layers")


def main() -> None:
    """Warm up, then go on."""
    if sys.argv[1:] == ["host"]:
        prepare(False)
        host()
        return
    asked = prepare(sys.argv[1:] == ["compile"])
    for fp8 in (False, True):
        arithmetic = GpuArithmetic("dense", torch.bfloat16, fp8)
        pool = GpuKvPool(CONFIG, 9, 32, CPU, arithmetic.dtype, fp8=fp8)
        model = GpuModel(CONFIG, load_dummy(CONFIG, GpuAssembly(arithmetic, CPU)), pool, context=4096, least_saved=1)
        counts = torch.zeros(300, CONFIG.vocab_size, dtype=torch.int32)
        before = len(asked)
        model.warm_up(200, [1, 2, 8])
        step(model, counts, [(1, 60)], 0)  # what is sampled
        print("warm", len(asked) - before)
        before = len(asked)
        rng = random.Random(2)
        for turn in range(12):
            singles = [(1, rng.randint(1, 3000)) for _ in range(rng.randint(1, 40))]
            longer = [(rows, rows + rng.randint(0, 99)) for rows in (rng.randint(2, 80) for _ in range(turn % 4))]
            step(model, counts, [*singles, *longer, (2, 4096)] if turn == 5 else singles + longer, turn)
        print("more", *asked[before:], sep="\n")


if __name__ == "__main__":
    main()
