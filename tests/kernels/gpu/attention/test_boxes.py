"""Keys and values as boxes of the pool, by tensor descriptors: the same bits as by pointers, and what no box can read."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from kernels.gpu.attention import boxes, chunk_work, paged
from kernels.gpu.attention.boxes import by_boxes, describe, refusal
from kernels.gpu.attention.chunk_work import plan_chunks
from kernels.gpu.attention.launch import Config
from kernels.gpu.attention.paged import config_for, paged_attention
from kernels.gpu.attention.reference import reference_attention
from tests.kernels.gpu.attention.cases import Case, assert_close, compiles

POINTERS = Config(32, 16, warps=8, stages=2)
BOXES = replace(POINTERS, boxes=True)
LENGTHS = [(1, 1), (33, 33), (0, 40), (5, 18), (17, 80), (1, 64)]


def attend(case, config, **options):
    return paged_attention(*case.shared(), scale=0.3, longest=case.longest, config=config, **options)


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ({"heads": (3, 1)}, {"window": 20, "soft_cap": 5.0}),
        pytest.param({}, {}, marks=pytest.mark.long),
        pytest.param({"block_size": 64, "heads": (8, 2)}, {}, marks=pytest.mark.long),  # several boxes of a block
        pytest.param(
            {"dim": 80, "dtype": torch.bfloat16}, {}, marks=pytest.mark.long
        ),  # columns past a head's are zeros
        pytest.param({"dim": 128, "dtype": torch.float16}, {"window": 7}, marks=pytest.mark.long),
        pytest.param({"block_size": 32}, {"causal": False}, marks=pytest.mark.long),
    ],
)
def test_the_same_bits_as_by_pointers(shape, options):
    """With as many keys at a time. The pool's unused parts are NaN, and tables end with ids that no pool has."""
    case = Case(LENGTHS, **shape)
    found = attend(case, BOXES, **options)
    assert torch.equal(found, attend(case, POINTERS, **options))
    assert_close(found, reference_attention(*case.shared(), scale=0.3, **options).out)


def test_a_row_does_not_depend_on_its_company():
    batch = Case([(5, 18), (70, 133), (1, 40)], heads=(3, 1))
    together = attend(batch, BOXES)
    alone = paged_attention(
        batch.q[5:75],
        batch.kv,
        torch.tensor([0, 70], dtype=torch.int32),
        batch.kv_lengths[1:2],
        batch.block_tables[1:2],
        scale=0.3,
        longest=70,
        config=BOXES,
    )
    assert torch.equal(alone, together[5:75])


def test_chunks_that_are_split(monkeypatch):
    monkeypatch.setattr(chunk_work, "SHORTEST", 32)
    monkeypatch.setattr(chunk_work, "_STEP", 16)
    lengths = [(3, 5), (9, 200), (20, 130)]
    case = Case(lengths, heads=(2, 1))
    found = []
    for config in (POINTERS, BOXES):
        work = plan_chunks(lengths, group=2, kv_heads=1, height=16, device=torch.device("cpu"))
        assert work is not None and work.states
        found.append(attend(case, config, work=work))
    assert torch.equal(*found)
    assert_close(found[0], reference_attention(*case.shared(), scale=0.3).out)


def test_blocks_beyond_2_to_31_elements():
    """Their rows have numbers below 2^31: of a tensor without memory, which interpreted kernels would copy."""
    stride = 2**30
    far = torch.empty_strided((5, 2, 2, 16, 64), (stride, 2048, 1024, 64, 1), dtype=torch.float16, device="meta")
    described = describe(far, BOXES)
    assert described.shape == [(4 * stride + 4096) // 64, 64] and described.block_shape == [16, 64]


def test_the_chips_choice(monkeypatch):
    """Pointers until boxes were measured to be faster; then boxes, where a pool can be read so."""
    case, used, kernel = Case([(3, 20)], heads=(2, 1)), [], paged._paged_attention

    class LaunchArguments:
        def __getitem__(self, grid):
            def launch(*arguments, **constants):
                used.append((arguments[12], constants["BLOCK_N"]))
                kernel[grid](*arguments, **constants)

            return launch

    monkeypatch.setattr(paged, "_paged_attention", LaunchArguments())
    attend(case, None)
    monkeypatch.setattr(paged, "FASTER", frozenset({90}))
    attend(case, None)
    eight = Case([(3, 20)], heads=(2, 1), fp8=True)
    attend(eight, None, scales=eight.scales)
    (pointers, _), (described, keys), (converted, _) = used
    assert pointers is None and converted is None and described.block_shape == [keys, 16]


@pytest.mark.parametrize("block_size", [16, 32, 64])
def test_boxes_are_within_a_block(block_size):
    config = config_for(4, 128, 2, 90)
    found = by_boxes(config, torch.empty(3, 2, 8, block_size, 128, dtype=torch.bfloat16))
    assert found == replace(config, keys=min(block_size, 64), boxes=True)
    assert found.tile == config.tile  # chunks are cut into tiles before


@pytest.mark.parametrize(
    ("kv", "message"),
    [
        (torch.empty(3, 2, 1, 16, 256), "heads of 256"),
        (torch.empty(3, 2, 1, 16, 16, dtype=torch.uint8), "converted in registers"),
        (torch.empty(3, 2, 1, 24, 16), "16 rows do not divide a block of 24"),
        (torch.empty(3, 2, 1, 16, 32)[..., :16], "whole rows"),
        (torch.empty(3, 2 * 16 * 16 + 8).as_strided((3, 2, 1, 16, 16), (520, 256, 256, 16, 1)), "whole rows"),
        (torch.empty(3, 2, 1, 16, 6), "rows of 24 bytes"),
        (torch.empty(1 + 3 * 512)[1:].view(3, 2, 1, 16, 16), "not aligned"),
        (torch.empty_strided((2, 2, 1, 16, 16), (2**35, 256, 256, 16, 1), device="meta"), "have a number"),
    ],
)
def test_what_no_box_can_read_is_refused(kv, message):
    assert message in refusal(kv, 16)
    assert by_boxes(POINTERS, kv) == POINTERS
    with pytest.raises(ValueError, match=f"in boxes: .*{message}"):
        describe(kv, BOXES)


def test_pointers_need_no_descriptor():
    assert describe(SimpleNamespace(), POINTERS) is None


def test_every_boxed_variant_has_one_of_pointers():
    names = {each.name for each in paged.VARIANTS}
    boxed = [each for each in paged.VARIANTS if each.name.endswith(" boxes")]
    assert boxed and max(each.constants["D_PAD"] for each in boxed) == boxes.MOST_DIM
    for each in boxed:
        assert each.name.removesuffix(" boxes") in names and each.archs == (boxes.LEAST,)
        assert each.constants["BLOCK_SIZE"] % each.constants["BLOCK_N"] == 0 and "boxes" not in each.constants


@pytest.mark.long
@pytest.mark.parametrize("arch", [90, 100])
def test_boxes_compile(arch):
    assert compiles(paged, "llama-8b bf16 boxes", arch)
