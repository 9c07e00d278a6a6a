"""Greedy output is the same, token by token, whatever way KV has gone: over the host, over a disk and a restart, in part, coded.

With the real stores and the real transfer worker, on the fast path, whose rows are the same bits in any batch, and in fp32
with few prompts.
"""

import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from configs.model.source import ModelError
from configs.settings import Settings
from engine.kv_store.disk.codec import PlanesCodec
from engine.kv_store.disk.coded_disk import CodedDisk, TimedCodec
from engine.kv_store.opening import open_tiers
from engine.kv_store.tiers import DeviceBlocks, tiers_of
from scheduler.kv.tiers.load_or_recompute import LoadOrRecompute
from tests.engine.cpu.test_fast_exact import build as build_fast
from tests.engine.cpu.test_fast_exact import pytestmark as needs_kernels
from tests.engine.test_token_exact import COUNT, LONG, OUTPUT, WHOLE, generate, prompts
from tests.engine.test_token_exact import build as build_exact
from tests.engine.token_suite import BLOCK

__all__ = ["build_fast", "prompts"]  # fixtures
SMALL = 60 if WHOLE else 8  # blocks: less than the prompts take
LOADED = 10 if WHOLE else 3
KEPT = 50 if WHOLE else 8  # blocks that are full at the end, at least


class Half(LoadOrRecompute):
    """Loads only the first half of what it could."""

    def to_load(self, sources):
        """The first half, whatever the speeds."""
        return -(-len(sources) // 2)


@contextmanager
def tiered(make, *, estimate=None, codec=None, element_bytes=2, settings, **config):
    """An engine by `make` with the tiers that the settings ask for; its stores are closed at the end."""
    woken = threading.Event()
    opened = []

    def tiers(pool, worker):
        rows = worker.blocks
        device = DeviceBlocks(rows, element_bytes, 2, "test")
        below, transfer_worker = open_tiers(tiers_of(settings), pool, device, settings, woken.set)
        if estimate is not None:
            below._loads._estimate = estimate(rows.shape[1], BLOCK, telling_tokens=BLOCK)
        coded = transfer_worker._stores.get("disk")
        if isinstance(coded, CodedDisk) and codec is not None:
            coded.disk.codec = codec
            coded._choice.decide = lambda: True
            coded._codec = codec
        opened.append(transfer_worker)
        return below, transfer_worker

    engine = make(tiers=tiers, **config)

    def wait():
        assert woken.wait(30), "a transfer that never ends"
        woken.clear()

    engine.stalled = wait
    try:
        yield engine
        engine.scheduler.check_integrity()
        for store in opened[0]._stores.values():
            store.check_integrity()
    finally:
        opened[0].close()


def tier(engine, name):
    return engine.scheduler.snapshot().tiers[name]


@pytest.fixture(scope="module")
def plain(build_fast, prompts):
    """Without tiers. That these are the answers of each prompt alone shows `test_fast_exact.py`."""
    return generate(build_fast(), prompts)


@dataclass(frozen=True)
class Pair:
    """Two long prompts that share no block, and what is answered without tiers."""

    prompts: list[list[int]]
    answers: list[list[int]]
    full: int  # blocks of one that can be loaded


@pytest.fixture(scope="module")
def pair(build_fast, prompts):
    long = prompts[-1]
    both = [long, long[50:] + long[:50]]
    return Pair(both, generate(build_fast(), both, output=8), (len(long) - 1) // BLOCK)


def loaded_over(pair, make, **options):
    """Ask for the first, the second and the first again in a pool that forgets one over the other. Returns blocks loaded."""
    blocks = -(-(len(pair.prompts[0]) + 8) // BLOCK)
    with tiered(make, settings=Settings(kv_host_gib=0.5), blocks=blocks, **options) as engine:
        for name, which in (("cold", 0), ("other", 1), ("warm", 0)):
            assert generate(engine, [pair.prompts[which]], name, 8) == [pair.answers[which]]
        loaded = tier(engine, "host").loaded
        assert engine.ends["warm0"].times.cached_tokens == loaded * BLOCK
    return loaded


@needs_kernels
class TestFast:
    """All prompts, on the fast path."""

    def test_swapped_out_and_back(self, build_fast, prompts, plain):
        longest = max(len(prompt) for prompt in prompts) + OUTPUT
        blocks = -(-longest // BLOCK) + (14 if WHOLE else 0)
        settings = Settings(kv_host_gib=0.5, preemption="swap")
        with tiered(build_fast, settings=settings, blocks=blocks, decode_watermark=0.0) as engine:
            assert generate(engine, prompts) == plain
            stats = engine.scheduler.snapshot()
            assert stats.swapped_out == stats.preemptions > 0 == stats.recomputed_tokens

    def test_from_the_host(self, build_fast, pair):
        assert loaded_over(pair, build_fast) == pair.full

    @pytest.mark.parametrize("coded", [False, True], ids=["raw", "coded"])
    def test_from_disk_after_a_restart(self, build_fast, prompts, plain, tmp_path, coded):
        settings = Settings(kv_disk_path=str(tmp_path / "kv"), kv_host_gib=0.1)
        codec = TimedCodec(PlanesCodec(2), time.perf_counter) if coded else None
        with tiered(build_fast, settings=settings, codec=codec) as engine:
            assert generate(engine, prompts) == plain
            kept = tier(engine, "disk").blocks
        with tiered(build_fast, settings=settings) as engine:
            assert tier(engine, "disk").blocks == kept > KEPT
            assert generate(engine, prompts) == plain
            assert tier(engine, "disk").loaded > LOADED
            assert tier(engine, "disk").failed == 0

    def test_a_part_loaded_and_the_rest_computed(self, build_fast, pair):
        assert loaded_over(pair, build_fast, estimate=Half) == -(-pair.full // 2)

    def test_a_disk_that_fails_is_done_without(self, build_fast, prompts, plain, tmp_path, caplog):
        settings = Settings(kv_disk_path=str(tmp_path / "kv"))
        with tiered(build_fast, settings=settings, blocks=SMALL) as engine:
            assert generate(engine, prompts[:4], "a") == plain[:4]
            engine.transfer_worker._stores["disk"].disk._lose("cannot be written", OSError(5, "Input/output error"))
            assert generate(engine, prompts, "b") == plain
            assert not tier(engine, "disk").up
        assert sum("serving goes on without it" in record.message for record in caplog.records) == 1


@pytest.mark.long
def test_in_fp32(smollm2_decoder, prompts, tmp_path):
    """Swap, host, disk, part and codec in one go; the reference is the same engine without tiers, which transformers agrees to."""
    some, output = prompts[COUNT // 2 : -LONG][:3], 32  # the first that fill a block

    def make(**config):
        return build_exact(smollm2_decoder, **config)

    plain = generate(make(), some, output=output)
    settings = Settings(kv_host_gib=0.02, kv_disk_path=str(tmp_path / "kv"), preemption="swap")
    with tiered(
        make,
        settings=settings,
        codec=TimedCodec(PlanesCodec(4), time.perf_counter),
        element_bytes=4,
        blocks=2 * len(some) + 1,
        decode_watermark=0.0,
    ) as engine:
        assert generate(engine, some, "a", output) == plain
        generate(engine, prompts[: COUNT // 2], "others", 4)
        assert generate(engine, some, "b", 8) == [tokens[:8] for tokens in plain]
        assert engine.scheduler.snapshot().swapped_out > 0
        assert tier(engine, "host").loaded > 0
    with tiered(make, settings=settings, estimate=Half, element_bytes=4) as engine:
        assert generate(engine, some, output=8) == [tokens[:8] for tokens in plain]
        assert tier(engine, "disk").loaded > 0


def test_a_folder_that_another_server_holds_is_refused(smollm2_decoder, tmp_path):
    settings = Settings(kv_disk_path=str(tmp_path / "kv"))

    def small(**config):
        return build_exact(smollm2_decoder, blocks=8, **config)

    with (
        tiered(small, settings=settings),
        pytest.raises(ModelError, match="kv"),
        tiered(small, settings=settings),
    ):
        pass


def test_a_folder_that_cannot_be_used_costs_the_tier_and_not_the_server(smollm2_decoder, prompts, tmp_path, caplog):
    (tmp_path / "kv").write_text("a file")
    settings = Settings(kv_disk_path=str(tmp_path / "kv"), kv_host_gib=0.1)
    with tiered(lambda **config: build_exact(smollm2_decoder, blocks=64, **config), settings=settings) as engine:
        generate(engine, prompts[:1], output=2)
        assert not tier(engine, "disk").up and tier(engine, "host").up
    assert "serving goes on without it" in caplog.text
