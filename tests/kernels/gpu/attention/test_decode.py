"""Decode attention against its definition, by Triton's interpreter; parts are cut small where many are wanted."""

import mmap

import pytest
import torch

from kernels.gpu.attention import decode as module
from kernels.gpu.attention.decode import PROGRAMS, SHORTEST, decode_attention, most_parts, split_length, workspace_bytes
from kernels.gpu.attention.launch import Config
from kernels.gpu.attention.reference import reference_attention
from kernels.gpu.workspace import Workspace
from tests.kernels.gpu.attention.cases import NO_RESERVE, Case, assert_close, compiles

LENGTHS = [1, 15, 16, 17, 64, 127, 128, 129, 255, 257, 300]  # shorter than a part, on its edges, and many parts


def attend(case, longest=None, **options):
    out, log_sums = case.poisoned(), torch.full(case.q.shape[:2], float("nan"))
    longest = longest or max(keys for _, keys in case.lengths)
    found = decode_attention(
        *case.decode(), scale=0.3, longest_kv=longest, scales=case.scales, log_sums=log_sums, out=out, **options
    )
    assert found is out
    return out, log_sums


def check(case, longest=None, **options):
    out, log_sums = attend(case, longest, **options)
    wanted = reference_attention(*case.shared(), scale=0.3, scales=case.scales, **options)
    assert_close(out, wanted.out)
    torch.testing.assert_close(log_sums, wanted.log_sums, rtol=0, atol=1e-4)


def singles(lengths, **shape):
    return Case([(1, keys) for keys in lengths], **shape)


@pytest.mark.parametrize(
    ("heads", "block_size"), [((4, 4), 16), ((8, 2), 32), ((5, 1), 16), ((3, 1), 32), ((20, 1), 16)]
)
def test_heads_and_blocks(heads, block_size):
    check(singles(LENGTHS, heads=heads, block_size=block_size))


@pytest.mark.parametrize("longest", [1, 40, 128])
def test_one_part_is_written_at_once(longest):
    check(singles([1, longest]))
    found = decode_attention(*singles([1, longest]).decode(), scale=0.3, longest_kv=longest)
    assert_close(found, reference_attention(*singles([1, longest]).shared(), scale=0.3).out)


@pytest.mark.parametrize("window", [1, 7, 64, 130, 1000])
def test_windows(window):
    check(singles([1, 7, 90, 200, 331], heads=(3, 1)), window=window)


@pytest.mark.parametrize("cap", [0.5, 50.0])
def test_soft_cap(cap):
    check(singles([5, 200]), soft_cap=cap, window=140)


@pytest.mark.parametrize("dim", [64, 80, 96, 128, 256])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_head_sizes(dim, dtype):
    check(singles([3, 193], heads=(2, 1), dim=dim, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_fp8_pool(dtype):
    check(singles([3, 70, 193], dim=24, dtype=dtype, fp8=True))


@pytest.mark.parametrize("lengths", [[530, 1030], [600, 2100]])
def test_parts_of_every_length(lengths):
    """With 16 KV heads, parts double after 512, 1024 and 2048 keys."""
    check(singles(lengths, heads=(16, 16), dim=8, block_size=32))


def test_a_sequence_without_keys_gives_zeros():
    """A padding row of a CUDA graph, beside short ones and beside long ones."""
    for other in (9, 300):
        out, log_sums = attend(singles([0, other]))
        assert (out[0] == 0).all() and (log_sums[0] == float("-inf")).all()
        assert out[1].isfinite().all()


def test_a_row_does_not_depend_on_its_company():
    """Bit by bit: neither on the other rows, nor on how long the longest may be."""
    case = singles([257, 1, 600, 31], heads=(3, 1))
    together, _ = attend(case, longest=5000)
    for index, (_, keys) in enumerate(case.lengths):
        row = slice(index, index + 1)
        alone = decode_attention(
            case.q[row], case.kv, case.kv_lengths[row], case.block_tables[row], scale=0.3, longest_kv=keys
        )
        assert torch.equal(alone, together[row])


@pytest.mark.parametrize("kv_heads", [1, 2, 3, 8, 32, 100])
def test_the_grid_has_room_for_every_length(kv_heads):
    most = 0
    for keys in range(1, 20000, 37):
        parts = -(-keys // split_length(keys, kv_heads))
        most = max(most, parts)
        assert parts <= most_parts(keys, kv_heads)
        assert parts * kv_heads <= max(PROGRAMS, 2 * kv_heads) or split_length(keys, kv_heads) == 8 * SHORTEST
    assert most_parts(20000, kv_heads) <= max(most, -(-20000 // (8 * SHORTEST)), PROGRAMS // kv_heads)


def test_a_workspace_changes_no_bit_whatever_it_held():
    """Also after a call of more rows and keys, as steps and graphs share it; one that is too small is refused."""
    shared = Workspace(workspace_bytes(4, 3, 1, 16, 600), torch.device("cpu"))
    for lengths in ([257, 1, 600, 31], [300, 140], [5]):
        case = singles(lengths, heads=(3, 1))
        shared.memory.fill_(0xFF)  # NaN, if it were read
        options = {"scale": 0.3, "longest_kv": max(lengths)}
        found = decode_attention(*case.decode(), **options, workspace=shared)
        assert torch.equal(found, decode_attention(*case.decode(), **options))
    case = singles([700, 700, 700, 700], heads=(3, 1))
    with pytest.raises(ValueError, match=r"a call needs \d+ bytes of a workspace that has"):
        decode_attention(*case.decode(), scale=0.3, longest_kv=700, workspace=shared)


def test_blocks_beyond_2_to_31_elements():
    """Block 2 of a pool whose blocks are 2^30 elements apart; the memory between is mapped but never touched."""
    case, stride = singles([40], heads=(2, 1), dtype=torch.float16), 2**30
    with mmap.mmap(-1, (2 * stride + 4096) * 2, flags=mmap.MAP_PRIVATE | NO_RESERVE) as memory:
        far = case.far(memory, stride)
        tables = torch.tensor([[1, 2, 0]], dtype=torch.int32)
        out = decode_attention(case.q, far, case.kv_lengths, tables, scale=0.3, longest_kv=40)
        del far
    assert_close(out, reference_attention(*case.shared(), scale=0.3).out)


def test_what_does_not_belong_together_is_refused():
    case = singles([20, 3])
    with pytest.raises(ValueError, match="1 kv_lengths"):
        decode_attention(case.q, case.kv, case.kv_lengths[:1], case.block_tables, scale=1.0, longest_kv=20)


def test_no_rows_at_all():
    case = singles([20])
    nothing = (case.q[:0], case.kv, case.kv_lengths[:0], case.block_tables[:0])
    assert decode_attention(*nothing, scale=1.0, longest_kv=0).shape == (0, 4, 16)


def test_another_shape_of_program(monkeypatch):
    case = singles([1, 129, 300])
    monkeypatch.setattr(module, "config_for", None)
    out = decode_attention(*case.decode(), scale=0.3, longest_kv=300, config=Config(16, 32, warps=4, stages=5))
    assert_close(out, reference_attention(*case.shared(), scale=0.3).out)


def test_a_variant_compiles():
    assert compiles(module, "llama-8b bf16", 90)
