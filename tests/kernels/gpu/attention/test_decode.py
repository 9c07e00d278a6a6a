"""Decode attention against its definition, by Triton's interpreter, where three programs share the work; parts are cut small."""

import mmap

import pytest
import torch

from kernels.gpu.attention import decode as module
from kernels.gpu.attention import decode_work
from kernels.gpu.attention.decode import decode_attention, workspace_bytes
from kernels.gpu.attention.launch import Config
from kernels.gpu.attention.reference import reference_attention
from kernels.gpu.workspace import Workspace
from tests.kernels.gpu.attention.cases import NO_RESERVE, Case, assert_close, compiles

LENGTHS = [1, 15, 16, 17, 31, 32, 33, 64, 65, 129, 150]  # shorter than a part, on its edges, and many parts


@pytest.fixture(autouse=True)
def short_parts(monkeypatch):
    """Parts of 32 keys for up to 8 pieces of work, then of 64, 128 and 256."""
    monkeypatch.setattr(decode_work, "SHORTEST", 32)
    monkeypatch.setattr(decode_work, "PROGRAMS", 8)


def attend(case, longest=None, window=0, **options):
    out, log_sums = case.poisoned(), torch.full(case.q.shape[:2], float("nan"))
    work = case.work(window, longest)
    found = decode_attention(
        case.q, case.kv, work, scale=0.3, scales=case.scales, log_sums=log_sums, out=out, **options
    )
    assert found is out
    assert not work.arrived.any()  # ready for the next layer
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


def test_one_part_is_written_at_once():
    case = singles([1, 32])
    check(case)
    found = decode_attention(case.q, case.kv, case.work(), scale=0.3)
    assert_close(found, reference_attention(*case.shared(), scale=0.3).out)


@pytest.mark.parametrize("window", [1, 7, 32, 65, 1000])
def test_windows(window):
    check(singles([1, 7, 40, 100, 151], heads=(3, 1)), window=window)


@pytest.mark.parametrize("cap", [0.5, 50.0])
def test_soft_cap(cap):
    check(singles([5, 90]), soft_cap=cap, window=70)


@pytest.mark.parametrize("dim", [64, 80, 96, 128, 256])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_head_sizes(dim, dtype):
    check(singles([3, 97], heads=(2, 1), dim=dim, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_fp8_pool(dtype):
    check(singles([3, 35, 97], dim=24, dtype=dtype, fp8=True))


def test_one_very_long_sequence_among_short_ones():
    """With parts of every length in one launch: 32 to 256 keys."""
    check(singles([9, 1000, 300, 1, 600, 130], heads=(2, 1), dim=8, block_size=32))


def test_a_sequence_without_keys_gives_zeros():
    """A padding row of a CUDA graph, beside short ones and beside long ones."""
    for other in (9, 100):
        out, log_sums = attend(singles([0, other, 0]))
        assert (out[[0, 2]] == 0).all() and (log_sums[[0, 2]] == float("-inf")).all()
        assert out[1].isfinite().all()


def test_a_row_does_not_depend_on_its_company(monkeypatch):
    """Bit by bit: neither on the other rows, nor on how long the longest may be, nor on which programs take and merge its parts."""
    case = singles([140, 1, 300, 31], heads=(3, 1))
    alone = [attend(case.alone(index)) for index in range(len(case.lengths))]
    for programs in (1, 2, 3, 7, 1000):
        monkeypatch.setattr(module, "multiprocessors", lambda _, programs=programs: programs)
        config = Config(16, 16, warps=4, stages=2, resident=1)
        together = attend(case, longest=1000, config=config)
        for index, one in enumerate(alone):
            for mine, ours in zip(one, together, strict=True):
                assert torch.equal(mine[0], ours[index])


def test_layers_share_their_work():
    case, other = singles([140, 31], heads=(3, 1)), singles([140, 31], heads=(3, 1), seed=1)
    work = case.work()
    for each in (case, other):
        each.work = lambda *_: work
    other.kv, other.block_tables = case.kv.flip(0).nan_to_num(0.5), case.block_tables
    for each in (case, other, case):
        check(each)


def test_a_workspace_changes_no_bit_whatever_it_held():
    """Also after a call of more rows and keys, as steps and graphs share it; one that is too small is refused."""
    shared = Workspace(workspace_bytes(4, 3, 1, 16, 600), torch.device("cpu"))
    for lengths in ([257, 1, 600, 31], [300, 140], [5]):
        case = singles(lengths, heads=(3, 1))
        shared.memory.fill_(0xFF)  # NaN, if it were read
        found = decode_attention(case.q, case.kv, case.work(), scale=0.3, workspace=shared)
        assert torch.equal(found, decode_attention(case.q, case.kv, case.work(), scale=0.3))
    case = singles([300] * 9, heads=(3, 1))
    with pytest.raises(ValueError, match=r"a call needs \d+ bytes of a workspace that has"):
        decode_attention(case.q, case.kv, case.work(), scale=0.3, workspace=shared)
    assert workspace_bytes(4, 3, 1, 16, 32) == 0  # one part is written at once


def test_blocks_beyond_2_to_31_elements():
    """Block 2 of a pool whose blocks are 2^30 elements apart; the memory between is mapped but never touched."""
    case, stride = singles([40], heads=(2, 1), dtype=torch.float16), 2**30
    wanted = reference_attention(*case.shared(), scale=0.3).out
    with mmap.mmap(-1, (2 * stride + 4096) * 2, flags=mmap.MAP_PRIVATE | NO_RESERVE) as memory:
        far = case.far(memory, stride)
        case.block_tables = torch.tensor([[1, 2, 0]], dtype=torch.int32)
        out = decode_attention(case.q, far, case.work(), scale=0.3)
        del far
    assert_close(out, wanted)


def test_what_does_not_belong_together_is_refused():
    case = singles([20, 3])
    with pytest.raises(ValueError, match="2 rows over 2 KV heads, work for 1 over 2"):
        decode_attention(case.q, case.kv, case.alone(0).work(), scale=1.0)


def test_no_rows_at_all():
    case = singles([20])
    case.q, case.kv_lengths, case.block_tables, case.lengths = (
        case.q[:0],
        case.kv_lengths[:0],
        case.block_tables[:0],
        [],
    )
    assert decode_attention(case.q, case.kv, case.work(longest=1), scale=1.0).shape == (0, 4, 16)


def test_another_shape_of_program(monkeypatch):
    case = singles([1, 65, 100])
    monkeypatch.setattr(module, "config_for", None)
    out = decode_attention(
        case.q, case.kv, case.work(), scale=0.3, config=Config(16, 32, warps=1, stages=5, resident=2)
    )
    assert_close(out, reference_attention(*case.shared(), scale=0.3).out)


def test_a_variant_compiles():
    assert compiles(module, "llama-8b bf16", 90)
