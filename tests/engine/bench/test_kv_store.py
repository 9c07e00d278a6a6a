"""The benchmark's bookkeeping. What it measures is time, and no test asserts on that."""

import random
from itertools import pairwise

import numpy as np
import pytest
import torch

from configs.model.source import resolve_model
from engine.bench.kv_store import OwnText, PlainZstd, codec_rate, copy_rate, ids_in_runs, main, print_copies, seconds
from engine.cpu.decoder import Decoder
from engine.cpu.kv_pool import KvPool
from engine.cpu.model import ExactModel
from engine.cpu.weights import load_weights
from engine.kv_store.disk.codec import PlanesCodec
from engine.kv_store.host import HostStore
from engine.models.registry import read_config


@pytest.mark.parametrize(("run", "runs"), [(1, 24), (8, 3), (10, 3), (24, 1), (99, 1)])
def test_ids_lie_in_runs(run, runs):
    ids = ids_in_runs(24, run, random.Random(5))
    assert sorted(ids) == list(range(24))
    assert sum(1 for before, after in zip([-2, *ids], ids, strict=False) if after != before + 1) <= runs
    assert all(after == before + 1 for before, after in pairwise(ids) if after % run)


@pytest.mark.parametrize(
    ("run", "fragments", "blocks_per_copy"), [(32, 0, 16), (4, 0, 4), (32, 2, 2), (4, 4, 4), (1, 4, 1)]
)
def test_blocks_a_copy_are_the_shorter_of_both_sides_runs(run, fragments, blocks_per_copy):
    rate = copy_rate(torch.zeros(32, 64, dtype=torch.uint8), run, fragments=fragments, rounds=1)
    assert rate.blocks_per_copy == pytest.approx(blocks_per_copy, rel=0.15), "runs meet by chance"
    assert rate.out > 0 and rate.back > 0


@pytest.mark.parametrize("blocks", [2, 3, 22, 80])
@pytest.mark.parametrize("fragments", [0, 4, 32])
def test_all_of_half_a_pool_is_copied_however_small_it_is(blocks, fragments, monkeypatch):
    copied = []
    get = HostStore.get
    monkeypatch.setattr(HostStore, "get", lambda *arguments: copied.append(get(*arguments)) or copied[-1])
    copy_rate(torch.zeros(blocks, 64, dtype=torch.uint8), 8, fragments=fragments, rounds=1)
    assert copied == [[True] * (blocks // 2)]


@pytest.mark.parametrize("arguments", [["--mib", "0"], ["--mib", "1"], ["--rounds", "0"]], ids=" ".join)
def test_a_pool_of_no_blocks_is_refused(arguments, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["kv_store", *arguments])
    with pytest.raises(SystemExit):
        main()
    assert "nothing to measure" in capsys.readouterr().err


@pytest.mark.parametrize("codec", [PlainZstd(), PlanesCodec(2)])
def test_the_ratio_is_of_all_blocks(codec):
    blocks = [np.zeros(4096, np.uint8), np.random.default_rng(0).integers(0, 256, 4096, np.uint8)]
    rate = codec_rate(codec, blocks, 1)
    assert rate.ratio == sum(len(codec.encode(block)) for block in blocks) / 8192
    assert 0.5 < rate.ratio < 0.52 and rate.encode > 0 and rate.decode > 0


def test_a_codec_that_loses_something_is_found():
    class Loses(PlainZstd):
        def decode(self, data, out):
            super().decode(data, out)
            out[-1] ^= 1

    with pytest.raises(ValueError, match="changed a block"):
        codec_rate(Loses(), [np.zeros(64, np.uint8)], 1)


def test_text_is_written_token_by_token_and_read_again(tiny_model):
    """The same keys and values come of one token at a time as of all at once, and no block stays empty."""
    source = resolve_model(str(tiny_model("llama")[1]))
    config = read_config(source)
    decoder, text = Decoder(config, load_weights(source, config, "auto")), OwnText(config, 64)
    pools = [KvPool(config, text.blocks, 32) for _ in range(2)]
    text.write(ExactModel(decoder, pools[0]))
    assert [len(ids) for ids in text.ids] == [65] * 8 and len({tuple(ids) for ids in text.ids}) == 8
    text.read(ExactModel(decoder, pools[1]))
    torch.testing.assert_close(pools[0].storage, pools[1].storage, rtol=1e-4, atol=1e-5)
    assert (pools[0].storage.flatten(2).abs().sum(2) > 0).all()


def test_every_layout_of_pool_and_store_is_printed(capsys):
    print_copies(torch.zeros(128, 64, dtype=torch.uint8), rounds=1)
    head, *lines = capsys.readouterr().out.splitlines()
    assert head == "copies of blocks of 64 bytes, cpu; GB/s"
    assert len(lines) == 12 and len(set(lines)) == 12
    assert sum("empty store" in line for line in lines) == 4
    assert all(float(line.split()[-1]) >= 1 for line in lines), "blocks a copy"


def test_the_fastest_of_all_rounds_counts():
    calls = []
    assert seconds(lambda: calls.append(1), 5) >= 0
    assert len(calls) == 5


def test_what_is_copied_comes_back_as_it_went():
    pool = torch.arange(16, dtype=torch.uint8)[:, None].repeat(1, 8)
    before = pool.clone()
    for run, fragments in ((16, 0), (1, 2)):
        copy_rate(pool, run, fragments=fragments, rounds=2)
        assert torch.equal(pool, before)
