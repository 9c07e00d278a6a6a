"""TransferPlanner below the device: nothing may be noticed of them but that less is computed."""

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule

from scheduler.kv.block_pool import BlockPool
from scheduler.kv.eviction import eviction_of
from scheduler.kv.tiers.load_or_recompute import LoadOrRecompute
from scheduler.kv.tiers.tier_index import TierIndex
from scheduler.kv.tiers.transfer_planner import TransferPlanner
from scheduler.types.transfers import DEVICE
from tests.drawn import drawn
from tests.scheduler.sim import Engine
from tests.scheduler.sim_worker import SimTransferWorker
from tests.scheduler.test_random_walk import ADAPTERS, SchedulerWalk

PROMPT = list(range(1, 25))  # six blocks of four


class TieredWalk(SchedulerWalk):
    """The same walk over tiers that are slow, too small, lossy, and fail."""

    @initialize(
        blocks=st.integers(4, 14),
        budget=st.sampled_from([1, 2, 3, 7, 16, 64]),
        running=st.integers(1, 6),
        preemptions=st.integers(0, 3),
        host=st.sampled_from([0, 1, 3, 8, 30]),
        disk=st.sampled_from([0, 1, 3, 8, 60]),
        loss=st.sampled_from([0.0, 0.0, 0.2]),
        refusal=st.sampled_from([0.0, 0.0, 0.2]),
        scheduling=st.sampled_from(["priority", "fair"]),
        seed=st.integers(0, 2**16),
        depth=st.sampled_from([1, 2]),
    )
    def start_tiers(self, blocks, budget, running, preemptions, host, disk, loss, refusal, scheduling, seed, depth):
        sizes = {"host": host, "disk": disk}
        self.engine = Engine(
            blocks=blocks,
            max_step_tokens=budget,
            max_running=running,
            max_preemptions=preemptions,
            tiers={tier: size for tier, size in sizes.items() if size},
            scheduling=scheduling,
            seed=seed,
            depth=depth,
            adapters=ADAPTERS,
        )
        self.engine.transfer_worker.loss, self.engine.transfer_worker.refusal = loss, refusal
        self.count = 0

    def start(self):
        """The tiers' own `initialize` does it."""

    @rule(speed=st.sampled_from([0.05, 0.3, 0.5, 1.0]))
    def speed_changes(self, speed):
        self.engine.transfer_worker.speed = speed

    @precondition(lambda self: self.engine.transfer_worker.stores)
    @rule(which=st.integers(0, 20))
    def a_tier_fails(self, which):
        if which < len(self.engine.transfer_worker.stores):  # rarely
            self.engine.transfer_worker.broken.add(list(self.engine.transfer_worker.stores)[which])

    def teardown(self):
        if hasattr(self, "engine"):
            self.engine.transfer_worker.speed = 0.7
        super().teardown()


TieredWalk.TestCase.settings = settings(
    max_examples=drawn(80), stateful_step_count=30, suppress_health_check=list(HealthCheck)
)
TestTieredWalk = TieredWalk.TestCase


def run(engine: Engine, request_id: str, prompt: list[int], **sampling: object) -> int:
    """Tokens of the prompt that were not computed."""
    engine.add(request_id, prompt, **sampling)
    engine.drain()
    engine.check_outputs()
    return engine.ends[request_id].times.cached_tokens


def fill(engine: Engine, name: str) -> None:
    """Push everything else out of the pool."""
    run(engine, name, [30 + ord(name[-1]) % 19] * (engine.config.context - 5), max_tokens=4, ignore_eos=True)


@pytest.mark.parametrize("tiers", [{"host": 40}, {"disk": 40}, {"host": 40, "disk": 40}])
def test_what_the_pool_had_no_room_for_is_loaded(tiers):
    engine = Engine(blocks=9, tiers=tiers)
    assert run(engine, "a", PROMPT) == 0
    fill(engine, "b")
    assert run(engine, "c", PROMPT) == 20  # all but the block of the last token
    assert engine.transfer_worker.blocks_loaded == 5


def test_a_load_that_is_cancelled_before_it_starts_did_not_fail():
    engine = Engine(blocks=20, tiers={"host": 40}, context=36)
    run(engine, "a", PROMPT)
    for name in "bcd":
        fill(engine, name)
    engine.add("running", [1, 2], max_tokens=9, ignore_eos=True)
    step = engine.next_step()
    engine.add("e", PROMPT)
    planned = engine.scheduler.schedule(engine.now)
    assert any(transfer.target == DEVICE for transfer in planned.transfers)
    for output in engine.scheduler.fail([step], planned, "injected", engine.now):
        del engine.requests[output.request_id]
    engine.planned = None
    assert engine.scheduler.snapshot().tiers["host"].failed == 0
    engine.drain()
    engine.check_outputs()
    assert engine.ends["e"].times.cached_tokens == 20, "what was to be loaded is still there"
    assert engine.scheduler.snapshot().tiers["host"].failed == 0


def test_a_host_that_is_too_small_spills_to_disk():
    engine = Engine(blocks=9, tiers={"host": 7, "disk": 40})
    run(engine, "a", PROMPT)
    fill(engine, "b")
    assert engine.scheduler.snapshot().tiers["host"].evicted > 0
    assert run(engine, "c", PROMPT) == 20
    assert engine.scheduler.snapshot().tiers["disk"].loaded > 0


def test_a_request_swapped_out_and_back_computes_nothing_again():
    engine = Engine(blocks=8, tiers={"host": 40}, decode_watermark=0.0)
    for name, first in (("a", 1), ("b", 2)):
        engine.add(name, [first] * 9, max_tokens=20, ignore_eos=True)
    engine.drain()
    engine.check_outputs()
    stats = engine.scheduler.snapshot()
    assert stats.preemptions == stats.swapped_out > 0
    assert stats.recomputed_tokens == 0


def test_recompute_saves_nothing_of_a_preempted_request():
    engine = Engine(blocks=8, tiers={"host": 40}, decode_watermark=0.0, preemption="recompute")
    for name, first in (("a", 1), ("b", 2)):
        engine.add(name, [first] * 9, max_tokens=20, ignore_eos=True)
    engine.drain()
    engine.check_outputs()
    stats = engine.scheduler.snapshot()
    assert stats.preemptions > 0 == stats.swapped_out
    assert stats.recomputed_tokens > 0


def test_others_run_while_a_request_waits_for_its_blocks():
    engine = Engine(blocks=20, tiers={"host": 40})
    run(engine, "a", PROMPT)
    fill(engine, "b")
    engine.transfer_worker.speed = 0.0
    engine.add("c", PROMPT, max_tokens=3, ignore_eos=True)
    engine.add("d", [3, 4, 5], max_tokens=3, ignore_eos=True)
    for _ in range(8):
        engine.tick()
    assert "d" in engine.ends and "c" not in engine.ends
    engine.transfer_worker.speed = 1.0
    engine.drain()
    engine.check_outputs()


def test_equal_prompts_are_loaded_once():
    engine = Engine(blocks=20, tiers={"host": 40})
    run(engine, "a", PROMPT)
    fill(engine, "b")
    for name in "cdef":
        engine.add(name, PROMPT, max_tokens=2, ignore_eos=True)
    engine.drain()
    engine.check_outputs()
    assert engine.transfer_worker.blocks_loaded == 5


@pytest.mark.parametrize("leave", ["abort", "fail"])
def test_blocks_that_are_being_filled_are_given_to_nobody(leave):
    engine = Engine(blocks=9, tiers={"host": 40})
    run(engine, "a", PROMPT)
    fill(engine, "b")
    engine.transfer_worker.speed = 0.0
    engine.add("c", PROMPT)
    engine.tick()
    assert engine.transfer_worker.under_way
    engine.abort("c") if leave == "abort" else engine.fail_step()
    engine.add("d", [9] * 12)
    for _ in range(10):
        engine.tick()  # the transfer worker checks that nobody writes to them
    engine.transfer_worker.speed = 1.0
    engine.drain()
    engine.check_outputs()
    assert engine.scheduler.pool.used == 0


def test_a_copy_that_is_still_valid_is_not_made_again():
    engine = Engine(blocks=9, tiers={"host": 40})
    run(engine, "a", PROMPT)
    saved = engine.scheduler.snapshot().tiers["host"].saved
    run(engine, "b", [*PROMPT, 7])
    stats = engine.scheduler.snapshot().tiers["host"]
    assert stats.saved - saved <= 2 and stats.spared >= 5


def test_another_salt_finds_nothing_in_any_tier():
    engine = Engine(blocks=9, tiers={"host": 40, "disk": 40})
    engine.add("a", PROMPT, salt="one")
    engine.drain()
    fill(engine, "b")
    engine.add("c", PROMPT, salt="two")
    engine.drain()
    assert engine.ends["c"].times.cached_tokens == 0 == engine.transfer_worker.blocks_loaded
    fill(engine, "d")
    engine.add("e", PROMPT, salt="one")
    engine.drain()
    assert engine.ends["e"].times.cached_tokens == 20


def test_contents_of_a_request_that_failed_are_served_by_no_tier():
    engine = Engine(blocks=9, tiers={"host": 40})
    run(engine, "a", PROMPT)
    engine.add("b", PROMPT, max_tokens=9, ignore_eos=True)
    engine.tick()
    request = engine.scheduler._table.open["b"]
    keys = request.block_hashes[:5]
    index = engine.scheduler.transfers.tiers.get("host")
    assert all(index.readable(key) for key in keys)
    engine.worker.fails = "b"
    engine.drain()
    assert not any(index.readable(key) for key in keys)
    assert not engine.transfer_worker.stores["host"].contents.keys() & set(keys)


def test_a_damaged_block_is_computed_and_so_is_what_follows_it():
    engine = Engine(blocks=9, tiers={"host": 40})
    run(engine, "a", PROMPT)
    fill(engine, "b")
    keys = list(engine.transfer_worker.stores["host"].contents)
    del engine.transfer_worker.stores["host"].contents[keys[2]]
    assert run(engine, "c", PROMPT) == 8
    assert engine.scheduler.snapshot().tiers["host"].failed == 1


def test_a_pinned_prompt_stays_while_others_go():
    engine = Engine(blocks=12, tiers={"host": 40})
    pool = engine.scheduler.pool
    engine.add("a", PROMPT, pin_seconds=1000.0)
    engine.drain()
    pinned = pool.eviction.pinned
    assert 0 < pinned <= pool.eviction.pinned_limit
    for name in "bcd":
        run(engine, name, [30 + ord(name)] * 4 + [9] * 20)
    engine.add("e", PROMPT)
    engine.tick()
    assert engine.scheduler._table.open["e"].times.cached_tokens >= 4 * pinned
    engine.drain()
    engine.now += 2000.0
    run(engine, "f", [1])
    assert pool.eviction.pinned == 0


# --- load or recompute ---


def estimate(*, bandwidth: float, token_seconds: float, tier: str = "host") -> LoadOrRecompute:
    """Of blocks of 2 MiB that hold 32 tokens, having seen these speeds."""
    found = LoadOrRecompute(2**21, 32, telling_tokens=32)
    for _ in range(60):
        found.on_transfer(tier, 10, 10 * 2**21 / bandwidth)
        found.on_step(64, 64, 64 * token_seconds)
    return found


def test_a_fast_tier_is_loaded_from_whole_and_a_slow_one_not_at_all():
    assert estimate(bandwidth=4e9, token_seconds=1e-3).to_load(["host"] * 9) == 9
    assert estimate(bandwidth=4e6, token_seconds=1e-3).to_load(["host"] * 9) == 0


def test_before_a_prompt_was_computed_everything_is_loaded():
    assert LoadOrRecompute(2**21, 32, telling_tokens=32).to_load(["disk"] * 3) == 3


def test_a_part_is_loaded_where_the_rest_lies_in_a_tier_that_is_slower_than_computing():
    found = estimate(bandwidth=4e9, token_seconds=1e-4)
    for _ in range(60):
        found.on_transfer("disk", 10, 10.0)
    assert found.to_load(["host"] * 4 + ["disk"] * 4) == 4
    assert found.pays("host") and not found.pays("disk")


def test_a_queue_before_the_tier_counts():
    found = estimate(bandwidth=2**21 * 100, token_seconds=1e-3)  # 10 ms to load a block, 32 ms to compute it
    assert found.to_load(["host"] * 4) == 4
    found.queued("host", 50)  # half a second
    assert found.to_load(["host"] * 4) == 0
    found.queued("host", -50)
    assert found.to_load(["host"] * 4) == 4


def test_a_tier_that_was_busy_once_is_tried_again():
    found = estimate(bandwidth=4e6, token_seconds=1e-3)
    assert not found.pays("host")
    assert sum(not found.pays("host") for _ in range(1000)) < 300


def test_a_tier_that_was_never_loaded_from_gets_its_chance():
    found = LoadOrRecompute(2**21, 32, telling_tokens=32)
    for _ in range(60):
        found.on_step(64, 64, 64e-9)
    assert found.pays("disk") and found.to_load(["disk"] * 4) == 4
    found.on_transfer("disk", 10, 1.0)
    assert not found.pays("disk") and found.to_load(["disk"] * 4) == 0


def test_a_newcomer_of_a_higher_class_does_not_wait_for_saves_nobody_waits_for():
    engine = Engine(blocks=24, tiers={"host": 200}, max_running=2)
    engine.transfer_worker.speed = 0.0  # saves never end
    for i in range(6):
        engine.add(f"low{i}", [i + 1] * 9, max_tokens=12, priority=1, ignore_eos=True)
    for _ in range(30):
        engine.tick()
    assert engine.transfer_worker.under_way and not engine.scheduler.transfers.frees_soon
    engine.add("high", [40] * 9, max_tokens=2, ignore_eos=True)
    for _ in range(4):
        engine.tick()
    assert "high" in engine.ends or engine.scheduler._table.open["high"].started
    engine.transfer_worker.speed = 1.0
    engine.drain()
    engine.check_outputs()


def test_steps_of_few_prompt_tokens_and_small_transfers_tell_nothing():
    found = LoadOrRecompute(2**10, 32, telling_tokens=32)
    found.on_step(8, 8, 1.0)
    found.on_step(40, 100, 1.0)
    found.on_transfer("host", 3, 100.0)
    assert found.recompute_seconds(1) is None
    assert found.block_seconds("host") < 1e-5


def test_how_long_a_block_takes_to_load_is_reported_as_measured():
    estimate = LoadOrRecompute(2**21, 32, telling_tokens=32, bandwidth={"host": 2**31, "disk": 2**25})
    tiers = [TierIndex(name, 2**30, 2**21, eviction_of("lru", 512)) for name in ("host", "disk")]
    planner = TransferPlanner(BlockPool(4, 32), tiers, estimate)
    estimate.on_transfer("host", 8, 8 * 0.004)
    reported = {name: stats.block_load_seconds for name, stats in planner.snapshot().items()}
    assert reported == {"host": pytest.approx(0.004), "disk": pytest.approx(1 / 16)}, "the disk's is a guess"


def test_swapping_pays_twice_the_way():
    found = estimate(bandwidth=2**21 / 0.02, token_seconds=1e-3)  # 20 ms a block one way, 32 ms to compute it
    assert found.pays("host") and not found.swap_pays("host")


def test_the_transfer_worker_of_these_tests_notices_a_write_to_a_block_that_is_saved():
    engine = Engine(blocks=9, tiers={"host": 40})
    engine.transfer_worker.speed = 0.0
    engine.add("a", PROMPT)
    for _ in range(20):
        engine.tick()
    assert isinstance(engine.transfer_worker, SimTransferWorker)
    [(transfer, _)] = [flight for flight in engine.transfer_worker.under_way if flight[0].source == DEVICE]
    engine.worker.kv[transfer.blocks[0]][0] = -5
    engine.transfer_worker.speed = 1.0
    with pytest.raises(AssertionError, match="wrote to a block"):
        engine.drain()
