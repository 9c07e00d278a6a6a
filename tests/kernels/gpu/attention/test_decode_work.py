"""The list of parts that decode attention works through, against the rule that it follows."""

import pytest
import torch

from kernels.gpu.attention import decode_work as module
from kernels.gpu.attention.decode_work import PROGRAMS, SHORTEST, most_parts, plan_decode, split_length
from tests.kernels.gpu.attention.cases import compiles


def whole(values):
    return torch.tensor(values, dtype=torch.int32)


def plan(lengths, window=0, kv_heads=2, longest=None):
    starts = [7 * index for index in range(len(lengths))]
    return plan_decode(
        whole(lengths),
        whole(starts),
        whole([0] * 9),
        kv_heads=kv_heads,
        longest_kv=longest or max(lengths),
        window=window,
    )


def wanted(lengths, window, kv_heads):
    """Each sequence's entries, those with longer parts first."""
    spans = [split_length(min(max(keys, 0), window or max(keys, 0)), kv_heads) for keys in lengths]
    entries = []
    for index in sorted(range(len(lengths)), key=lambda index: -spans[index]):
        keys, first = lengths[index], len(entries)
        if keys < 0:
            continue
        low = max(keys - window, 0) if window else 0
        begins = range(low, keys, spans[index]) or [0]
        entries += [[index, 7 * index, begin, min(begin + spans[index], keys), first, len(begins)] for begin in begins]
    return entries


@pytest.mark.parametrize(
    ("lengths", "window"),
    [
        ([0, 5, 40_000, 256, 257, 9000, 130_000, 0, 17_000], 0),
        ([1], 0),
        ([0, 0], 0),
        ([100_000, 3, 20_000, 4096], 9000),
        ([3, 1, 700] * 4, 0),
        ([33_000], 0),
        ([-1, 300, -1, -1, 0, 9000], 0),  # rows that are none of decode attention's
        ([-1, 300, -1], 100),
        ([-1], 0),
    ],
)
def test_every_part_has_its_entry(monkeypatch, lengths, window):
    monkeypatch.setattr(module, "SEQUENCES_EACH", 2)
    monkeypatch.setattr(module, "_AT_ONCE", 4)
    for kv_heads in (8, 1):
        work = plan(lengths, window, kv_heads, longest=131_072)
        entries = wanted(lengths, window, kv_heads)
        assert work.count.tolist() == [len(entries)]
        assert work.items[: len(entries)].tolist() == entries
        assert len(work.items) == len(lengths) * most_parts(window or 131_072, kv_heads)
        assert work.arrived.shape == (len(lengths), kv_heads) and not work.arrived.any()


@pytest.mark.parametrize("kv_heads", [1, 2, 3, 8, 32, 100])
def test_there_is_room_for_every_length(kv_heads):
    most = 0
    for keys in range(1, 80000, 97):
        parts = -(-keys // split_length(keys, kv_heads))
        most = max(most, parts)
        assert parts <= most_parts(keys, kv_heads)
        assert parts * kv_heads <= max(PROGRAMS, 2 * kv_heads) or split_length(keys, kv_heads) == 8 * SHORTEST
    assert most_parts(80000, kv_heads) <= max(most, -(-80000 // (8 * SHORTEST)), PROGRAMS // kv_heads)
    assert most_parts(0, kv_heads) == most_parts(1, kv_heads) == 1


def test_one_sequence_fills_a_chip():
    """Of Llama 3 8B: 8192 keys make 256 pieces of work, 131,072 no more than 512, however many sequences are beside it."""
    assert 8 * most_parts(8192, 8) == 256
    assert 8 * most_parts(131_072, 8) == 512
    assert plan([40_000] + 9 * [100], kv_heads=8, longest=131_072).count.item() == 20 + 9


def test_what_does_not_belong_together_is_refused():
    with pytest.raises(ValueError, match="2 kv_lengths, 1 table_starts"):
        plan_decode(whole([1, 2]), whole([0]), whole([0]), kv_heads=1, longest_kv=2)
    with pytest.raises(ValueError, match="int32"):
        plan_decode(whole([1]), whole([0]), torch.zeros(1, dtype=torch.int64), kv_heads=1, longest_kv=2)


def test_a_variant_compiles():
    assert compiles(module, "window", 90)
