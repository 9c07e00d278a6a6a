"""Compiled kernels in a server's own shapes against their references; where Triton interprets, the same checks in small ones."""

import pytest
import torch

from kernels.gpu.runtime import INTERPRETED
from tests.gpu import kernel_checks as checks

COMPILED = not INTERPRETED and torch.cuda.is_available()
gpu = [pytest.mark.gpu, pytest.mark.skipif(not COMPILED, reason="needs a GPU, and `pytest -m gpu`")]
cpu = pytest.mark.skipif(not INTERPRETED, reason="Triton does not interpret")
SMALL = {"heads": (4, 2), "dim": 16, "dtype": torch.float32}
LLAMA = {"heads": (32, 8), "dim": 128, "dtype": torch.bfloat16}
SMOLLM = {"heads": (9, 3), "dim": 64, "dtype": torch.float16}
# Heads whose size is no power of two, and the widest: Phi-2's, a BERT's 96, Gemma 2's.
WIDTHS = [LLAMA | {"heads": heads, "dim": dim} for heads, dim in (((32, 32), 80), ((8, 8), 96), ((8, 4), 256))]
OPTIONS = [{}, {"window": 100}, {"window": 100, "soft_cap": 30.0}, {"fp8": True}]
LARGE = [*(LLAMA | each for each in OPTIONS), SMOLLM, LLAMA | {"dtype": torch.float16, "fp8": True}, *WIDTHS]


def both(small, large):
    """Small cases for the interpreter, large ones for a GPU: (device, ...) each."""
    return [
        *(pytest.param("cpu", *case, marks=cpu, id=f"cpu-{index}") for index, case in enumerate(small)),
        *(pytest.param("cuda", *case, marks=gpu, id=f"gpu-{index}") for index, case in enumerate(large)),
    ]


@pytest.mark.parametrize(
    ("device", "options"),
    both(
        [(SMALL | each,) for each in OPTIONS],
        [(case,) for case in LARGE],
    ),
)
def test_decode(device, options):
    lengths = [1, 31, 33, 129, 300] if device == "cpu" else [1, 31, 32, 33, 129, 700, 4097]
    checks.check_decode(device, lengths, **options)


@pytest.mark.parametrize(
    ("device", "options"),
    both(
        [(SMALL | each,) for each in OPTIONS],
        [(case,) for case in LARGE],
    ),
)
def test_chunks_and_single_tokens(device, options):
    lengths = [(33, 33), (1, 133), (0, 40), (5, 18), (65, 129)]
    if device == "cuda":
        lengths += [(300, 300), (129, 1500), (1, 2000)]
    checks.check_paged(device, lengths, **options)


@pytest.mark.parametrize(
    ("device", "options"),
    both(
        [(SMALL | {"window": 100},)], [(LLAMA,), (LLAMA | {"window": 100, "soft_cap": 30.0},), (SMOLLM,), (WIDTHS[0],)]
    ),
)
def test_chunks_in_boxes(device, options):
    """By the copy engine of Hopper and later chips."""
    if device == "cuda" and torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("there is no copy engine")
    lengths = [(5, 18), (33, 70)] if device == "cpu" else [(33, 33), (1, 133), (5, 18), (300, 300), (129, 1500)]
    checks.check_paged(device, lengths, boxes=True, **options)


@pytest.mark.parametrize(
    ("device", "options"),
    both(
        [(SMALL | {"heads": (2, 1)},)], [(LLAMA,), (LLAMA | {"fp8": True},), (SMOLLM,), *((case,) for case in WIDTHS)]
    ),
)
def test_chunks_that_are_split(device, options):
    lengths = [(3, 4100)] if device == "cpu" else [(32, 20_000), (3, 5000), (200, 9000), (300, 300), (2, 40)]
    checks.check_split(device, lengths, **options)


@pytest.mark.parametrize(
    ("device", "options"),
    both([(SMALL,), (SMALL | {"fp8": True},)], [(LLAMA,), (LLAMA | {"fp8": True},), (WIDTHS[0],)]),
)
def test_cascade(device, options):
    checks.check_cascade(device, [(1, 0), (3, 96), (2, 560)], **options)


@pytest.mark.parametrize(("device", "parts", "options"), both([(5, SMALL)], [(3, LLAMA), (70, LLAMA), (5, SMOLLM)]))
def test_merge(device, parts, options):
    checks.check_merge(device, parts, heads=options["heads"][0], dim=options["dim"], dtype=options["dtype"])


FORMATS = {
    "Q4_0": ("symmetric", 4, 32),
    "Q4_1": ("minima", 4, 32),
    "Q8_0": ("symmetric", 8, 32),
    "AWQ": ("zeros", 4, 128),
    "int8": ("channel", 8, 0),
}


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize(
    ("device", "dtype", "outputs", "columns"),
    both(
        [(torch.float32, 129, 384), (torch.float16, 20, 1152)],
        [(torch.bfloat16, 1030, 4096), (torch.float16, 1030, 4096)],
    ),
)
def test_products(device, dtype, outputs, columns, kind):
    """In each shape of program, and too many for the kernel."""
    for rows in (1, 16, 17, 64, 200, 300) if device == "cuda" else (1, 16, 33, 65):
        checks.check_product(
            device, rows, *FORMATS[kind], outputs=outputs, columns=columns, dtype=dtype, bias=rows == 16
        )


SHAPES = [
    (32, 8, 128, torch.bfloat16, False),
    (16, 8, 128, torch.bfloat16, True),
    (9, 3, 64, torch.float16, False),
    (32, 32, 80, torch.bfloat16, False),
    (8, 4, 256, torch.bfloat16, True),
]


@pytest.mark.parametrize(
    ("device", "heads", "kv_heads", "dim", "dtype", "norms"), both([(4, 2, 16, torch.float32, True)], SHAPES)
)
def test_keys_and_values_are_written(device, heads, kv_heads, dim, dtype, norms):
    checks.check_write(device, heads=heads, kv_heads=kv_heads, dim=dim, dtype=dtype, norms=norms)


@pytest.mark.parametrize(
    ("device", "heads", "kv_heads", "dim", "dtype"),
    both([(2, 1, 16, torch.float32)], [(32, 8, 128, torch.bfloat16), (9, 3, 64, torch.float16)]),
)
def test_keys_and_values_are_written_in_eight_bits(device, heads, kv_heads, dim, dtype):
    checks.check_write_fp8(device, heads=heads, kv_heads=kv_heads, dim=dim, dtype=dtype)


@pytest.mark.parametrize(
    ("device", "rows", "vocab", "top", "dtype"),
    both(
        [(2, 9000, 5, torch.float32)],
        [(16, 128256, 20, torch.float32), (16, 151936, 20, torch.bfloat16), (3, 49152, 0, torch.float32)],
    ),
)
def test_logprobs(device, rows, vocab, top, dtype):
    checks.check_logprobs(device, rows=rows, vocab=vocab, top=top, dtype=dtype)
