"""Every GPU kernel beside its floor, in the shapes of Llama 3 8B (32 query heads, 8 KV heads of 128, 4,096 wide, bf16).

Bytes are compared with a large device-to-device copy and operations with torch's fused attention on contiguous tensors, both
measured in the same run (the copy at its beginning and at its end). FlashInfer's paged kernels are measured as well if the package
is installed. Two attention kernels are also measured with pipelines other than their own choice.
"""

import json
import platform
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from functools import partial
from itertools import product
from pathlib import Path

import torch
import torch.nn.functional as F
import triton

from kernels.bench.gpu_attention import AttentionBench, Shape
from kernels.bench.lines import Case, FailedCase, Lines, Result, Skipped, attempted
from kernels.bench.timing import Timer, copies, copy_bandwidth
from kernels.gpu.kv.block_copy import BlockCopier
from kernels.gpu.linear.fp8 import Fp8Matrix, fp8_linear, refusal
from kernels.gpu.linear.quantized import KERNEL_ROWS, by_dequantizing, quantized_linear
from kernels.gpu.linear.quantized_matrix import QuantizedMatrix, from_gguf, pack
from kernels.gpu.linear.split_sums import PartialSums
from kernels.gpu.sampling.sample import BatchSettings, RowSettings, sample

SHAPES = tuple(product((1, 2, 4), (32, 64, 128)))  # warps and keys of decode attention


def swap(timer: Timer, blocks: int = 256, block_bytes: int = 4 * 2**20) -> Lines:
    """Scattered blocks (Llama 3 8B's, 32 tokens in bf16) to pinned host memory and back, relative to one large pinned copy."""
    pinned = timer.device.type == "cuda"
    pool = torch.empty(2 * blocks, block_bytes, dtype=torch.uint8, device=timer.device)
    host = torch.empty(2 * blocks, block_bytes, dtype=torch.uint8, pin_memory=pinned)
    order = torch.randperm(2 * blocks, generator=torch.Generator().manual_seed(0)).tolist()
    size = blocks * block_bytes
    for name, source, target in (("out", pool, host), ("in", host, pool)):
        one = BlockCopier((source, target))
        pairs = [(order[index], order[-1 - index]) for index in range(blocks)]
        seconds = timer.seconds(partial(_swapped, one, pairs))
        peak = timer.seconds(partial(_copied, target[:blocks], source[:blocks]))
        yield Result(f"swap {name}, {blocks} blocks", seconds, size / seconds / 1e9, size / peak / 1e9, "GB/s")


def products(
    timer: Timer, bandwidth: float, *, columns: int = 4096, outputs: int = 14336, dtype: torch.dtype = torch.bfloat16
) -> Lines:
    """Products with 4-bit weights: of few rows bytes of the weights per second, relative to copy bandwidth; of more, operations per
    second, relative to 16-bit weights, and beside what unpacking them first gives."""
    weight = torch.randn(outputs, columns, device=timer.device, dtype=dtype)
    plain = [weight.clone() for _ in range(copies(weight.nbytes))]
    ours = partial(quantized_linear, partial_sums=PartialSums.on(timer.device, KERNEL_ROWS))
    for kind, make in (("Q4_0", _random_q4), ("AWQ 128", _random_awq)):
        matrix = make(outputs, columns, timer.device)
        turns = [_cloned(matrix) for _ in range(copies(matrix.nbytes))]
        for rows in (1, 4, 8, 16):
            x = torch.randn(rows, columns, device=timer.device, dtype=dtype)
            seconds = timer.seconds(partial(_multiplied, ours, x, turns))
            reached = matrix.nbytes / seconds
            name = f"W4A16 {kind}, {rows} x {columns} x {outputs}"
            yield Result(name, seconds, reached / 1e9, bandwidth / 1e9, "GB/s")
        for rows in (64, 128, KERNEL_ROWS, 2 * KERNEL_ROWS):
            x = torch.randn(rows, columns, device=timer.device, dtype=dtype)
            of = timer.seconds(partial(_sixteen_bits, x, plain))
            size = 2 * rows * columns * outputs / 1e12
            for said, way in (("", ours), (", unpacked first", by_dequantizing)):
                if way is ours or rows <= KERNEL_ROWS:
                    seconds = timer.seconds(partial(_multiplied, way, x, turns))
                    name = f"W4A16 {kind}, {rows} x {columns} x {outputs}{said}, of 16 bits"
                    yield Result(name, seconds, size / seconds, size / of, "TFLOP/s")


def fp8_products(
    timer: Timer,
    bandwidth: float,
    *,
    columns: int = 4096,
    outputs: int = 14336,
    many: int = 2048,
    dtype: torch.dtype = torch.bfloat16,
) -> Lines:
    """Products with e4m3 weights: few rows by bytes, relative to copy bandwidth; many by operations, relative to 16 bits."""
    if refusal(timer.device):
        return
    weight = torch.randn(outputs, columns, device=timer.device, dtype=dtype)
    matrix = Fp8Matrix.of(weight)
    turns = [replace(matrix, values=matrix.values.clone()) for _ in range(copies(matrix.values.nbytes))]
    for rows in (1, 16):
        x = torch.randn(rows, columns, device=timer.device, dtype=dtype)
        seconds = timer.seconds(partial(_eight_bits, x, turns))
        reached = matrix.values.nbytes / seconds
        yield Result(f"W8A8 e4m3, {rows} x {columns} x {outputs}", seconds, reached / 1e9, bandwidth / 1e9, "GB/s")
    x = torch.randn(many, columns, device=timer.device, dtype=dtype)
    seconds, plain = timer.seconds(partial(_eight_bits, x, turns)), timer.seconds(lambda _: F.linear(x, weight))
    size = 2 * many * columns * outputs / 1e12
    yield Result(
        f"W8A8 e4m3, {many} x {columns} x {outputs}, of 16 bits", seconds, size / seconds, size / plain, "TFLOP/s"
    )


def sampling(timer: Timer, bandwidth: float, *, rows: int = 128, vocab: int = 128256) -> Lines:
    """One token for each row of bf16 logits: bytes of one pass over the logits per second, relative to copy bandwidth."""
    kinds = {
        "greedy": RowSettings(temperature=0.0),
        "drawn": RowSettings(),
        "top_p 0.9": RowSettings(top_p=0.9),
        "top_k 50": RowSettings(top_k=50),
    }
    size = rows * vocab * 2
    turns = [(3 * torch.randn(rows, vocab, device=timer.device)).bfloat16() for _ in range(copies(size))]
    for name, kind in kinds.items():
        settings = BatchSettings.of([replace(kind, seed=row) for row in range(rows)], timer.device)
        seconds = timer.seconds(partial(_sampled, turns, settings))
        yield Result(f"sampling {name}, {rows} x {vocab}", seconds, size / seconds / 1e9, bandwidth / 1e9, "GB/s")


def _eight_bits(x: torch.Tensor, matrices: list[Fp8Matrix], turn: int) -> torch.Tensor:
    return fp8_linear(x, matrices[turn % len(matrices)])


def _sampled(logits: list[torch.Tensor], settings: BatchSettings, turn: int) -> torch.Tensor:
    return sample(logits[turn % len(logits)], settings)


def _swapped(copier: BlockCopier, pairs: list[tuple[int, int]], _: int) -> None:
    handle = copier.copy(pairs)
    if torch.cuda.is_available():
        # The current stream, which is timed, then ends no sooner than the copy's, and the host does not wait.
        handle.before(torch.cuda.current_stream())


def _copied(target: torch.Tensor, source: torch.Tensor, _: int) -> None:
    target.copy_(source, non_blocking=True)


def _multiplied(
    way: Callable[[torch.Tensor, QuantizedMatrix], torch.Tensor],
    x: torch.Tensor,
    matrices: list[QuantizedMatrix],
    turn: int,
) -> torch.Tensor:
    return way(x, matrices[turn % len(matrices)])


def _sixteen_bits(x: torch.Tensor, weights: list[torch.Tensor], turn: int) -> torch.Tensor:
    return F.linear(x, weights[turn % len(weights)])


def _cloned(matrix: QuantizedMatrix) -> QuantizedMatrix:
    """A copy of all that a product reads, at other addresses."""
    extras = None if matrix.extras is None else matrix.extras.clone()
    return replace(matrix, words=matrix.words.clone(), scales=matrix.scales.clone(), extras=extras)


def _random_q4(outputs: int, columns: int, device: torch.device) -> QuantizedMatrix:
    """Q4_0 groups with small scales."""
    groups = torch.randint(0, 256, (outputs, columns // 32, 18), dtype=torch.uint8, device=device)
    groups[..., :2] = torch.tensor([0.01], dtype=torch.float16, device=device).view(torch.uint8)
    return from_gguf(groups.flatten(1), "Q4_0")


def _random_awq(outputs: int, columns: int, device: torch.device) -> QuantizedMatrix:
    """AWQ's groups of 128 with zeros and small scales."""
    quants = torch.randint(0, 16, (outputs, columns), dtype=torch.uint8, device=device)
    zeros = torch.randint(0, 16, (outputs, columns // 128), device=device)
    return pack(quants, torch.full(zeros.shape, 0.01, device=device), zeros, form="zeros", bits=4, group=128)


def cases(timer: Timer, bandwidth: float) -> list[Case]:
    """All cases of the table; for kernels that choose among pipelines, these beside each other."""
    attention = AttentionBench(timer, Shape(), bandwidth)
    return [
        ("decode attention, 64 x 4096", lambda: attention.decode(64, 4096, stages=(3, 5), shapes=SHAPES)),
        ("decode attention, 1 x 8192", lambda: attention.decode(1, 8192, shapes=SHAPES)),
        ("decode attention, 1 x 131072", lambda: attention.decode(1, 131072)),
        ("prefill attention, 1 x 16384", lambda: attention.prefill(1, 16384, stages=(3, 5))),
        ("prefill attention, 8 x 2048", lambda: attention.prefill(8, 2048)),
        ("prefill attention, 8 x 2048 on 8192", lambda: attention.prefill(8, 2048, cached=8192)),
        ("prefill attention, 1 x 16384 on 8192", lambda: attention.prefill(1, 16384, cached=8192)),
        ("prefill attention, 1 x 32 on 32768", lambda: attention.prefill(1, 32, cached=32768)),
        ("prefill attention, 1 x 32 on 131072", lambda: attention.prefill(1, 32, cached=131072)),
        ("swap", lambda: swap(timer)),
        ("W4A16", lambda: products(timer, bandwidth)),
        ("W8A8 e4m3", lambda: fp8_products(timer, bandwidth)),
        ("sampling", lambda: sampling(timer, bandwidth)),
    ]


def main(rounds: int, out: Path | None) -> int:
    """Print the table and write it as JSON. Returns the exit code: 1 if there is no GPU or a case failed."""
    if not torch.cuda.is_available():
        print("no GPU: torch finds none")
        return 1
    timer = Timer(torch.device("cuda"), rounds)
    return report(timer, cases, out, torch.cuda.get_device_name())


def report(
    timer: Timer,
    wanted: Callable[[Timer, float], Iterable[Case]],
    out: Path | None,
    device: str,
    copied: int = 2**30,
) -> int:
    """Print the lines of cases and write them as JSON to `out`. Returns the exit code: 1 if a case failed.

    Args:
        timer: times the cases.
        wanted: makes the cases from the timer and a large copy's bytes per second.
        out: rewritten after every line, so that what was measured is kept whatever happens next.
        device: the device's name.
        copied: bytes of the large copy.
    """
    bandwidth = copy_bandwidth(timer, copied)
    about: dict[str, object] = {
        "device": device,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "python": platform.python_version(),
        "copy_gigabytes_per_second": bandwidth / 1e9,
    }
    print("  ".join(f"{key} {value}" for key, value in about.items()))
    print(f"{'':64}{'ms':>9}{'reached':>10}{'of':>10}  {'unit':8}{'ratio':>6}")
    lines: list[dict[str, object]] = []
    failed = 0
    last: Case = ("copies at the end", lambda: _copies_again(timer, copied, bandwidth))
    for line in attempted([*wanted(timer, bandwidth), last]):
        lines.append(_entry(line))
        failed += isinstance(line, FailedCase)
        print(_printed(line), flush=True)
        if out is not None:
            out.write_text(json.dumps(about | {"results": lines}, indent=1))
    return 1 if failed else 0


def _copies_again(timer: Timer, size: int, before: float) -> Lines:
    """The bandwidth once more, relative to the beginning: whether the GPU has kept its clocks."""
    now = copy_bandwidth(timer, size)
    yield Result("copies at the end, of those at the beginning", 2 * size / now, now / 1e9, before / 1e9, "GB/s")


def _entry(line: Result | Skipped | FailedCase) -> dict[str, object]:
    return asdict(line) | ({"ratio": line.ratio} if isinstance(line, Result) else {})


def _printed(line: Result | Skipped | FailedCase) -> str:
    if isinstance(line, Skipped):
        return f"{line.name:64} skipped: {line.skipped}"
    if isinstance(line, FailedCase):
        return f"{line.name:64} failed: {line.error}"
    return f"{line.name:64}{1e3 * line.seconds:9.3f}{line.reached:10.1f}{line.of:10.1f}  {line.unit:8}{line.ratio:6.2f}"
