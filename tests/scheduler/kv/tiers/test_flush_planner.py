"""What is copied before a stop, in which order, and what it may push out: books without bytes."""

import pytest

from scheduler.kv.block_pool import BlockPool
from scheduler.kv.eviction import eviction_of
from scheduler.kv.tiers.load_or_recompute import LoadOrRecompute
from scheduler.kv.tiers.tier_index import TierIndex
from scheduler.kv.tiers.transfer_planner import TransferPlanner
from scheduler.types.block_hash import BlockKey, block_hash, root_hash
from scheduler.types.transfers import DEVICE, TransferResult

SIZE, BLOCK, MANY = 100, 2, 1000


def prefix(name, blocks):
    """The keys of a prompt's blocks, from its head."""
    parent, keys = root_hash(name), []
    for number in range(blocks):
        parent = block_hash(parent, [number, number])
        keys.append(BlockKey(parent, (number, number)))
    return keys


def tier(name, blocks=MANY, *, survives=True, holds=()):
    index = TierIndex(name, blocks * SIZE, SIZE, eviction_of("lru", blocks), survives=survives)
    for block_key in holds:
        index.seed(block_key, SIZE)
    return index


class Flush:
    """A pool and the tiers below it."""

    def __init__(self, *tiers, estimate=None, blocks=64):
        self.pool = BlockPool(blocks, BLOCK)
        self.tiers = {tier.name: tier for tier in tiers}
        self.planner = TransferPlanner(self.pool, tiers, estimate)
        self.moved = []

    def use(self, keys):
        """A request computes, or finds, these blocks, and ends."""
        hashes = [block_key.hash for block_key in keys]
        tokens = [token for block_key in keys for token in block_key.token_ids]
        table = self.pool.match(hashes, tokens)
        self.pool.share(table)
        table += self.pool.allocate(len(keys) - len(table))
        for block, block_key in zip(table, keys, strict=True):
            if not self.pool.resident(block_key.hash):
                self.pool.publish(block, block_key.hash, block_key.token_ids)
        self.pool.release(table)

    def run(self, refuses=()):
        """To its end. Tiers that refuse are lost with the first transfer to them."""
        flush = self.planner.flush
        flush.begin()
        while flush.busy:
            flush.plan()
            for transfer in self.planner.take():
                lost = transfer.target if transfer.target in refuses else None
                sizes = [0 if lost else SIZE for _ in transfer.block_keys]
                self.moved += [] if lost else [(transfer.source, transfer.target, each) for each in transfer.block_keys]
                self.planner.absorb(TransferResult(transfer_id=transfer.transfer_id, sizes=sizes, lost=lost))
                self.planner.check_integrity()
        self.pool.check_integrity(self.planner.held())
        return flush

    def there(self, name):
        return set(self.tiers[name].contents())


def hashes(*keys):
    return {block_key.hash for each in keys for block_key in each}


def test_the_last_prompt_goes_first_and_each_from_its_head():
    a, b, c = prefix("a", 20), prefix("b", 3), prefix("c", 20)
    flush = Flush(tier("disk"))
    for keys in (a, b, c, b):
        flush.use(keys)
    done = flush.run()
    assert flush.moved == [(DEVICE, "disk", each) for each in [*b, *c, *a]]
    assert (done.unsaved, done.written) == (43, 43)


def test_each_content_is_read_from_the_fastest_place_and_goes_past_the_tiers_between():
    a, b = prefix("a", 5), prefix("b", 5)
    flush = Flush(tier("host", survives=False, holds=[*a, *b]), tier("ram", survives=False), tier("disk"))
    flush.use(b)
    done = flush.run()
    assert flush.moved[:5] == [(DEVICE, "disk", each) for each in b]
    assert {(source, target) for source, target, _ in flush.moved[5:]} == {("host", "disk")}
    assert {block_key for _, _, block_key in flush.moved[5:]} == set(a)
    assert done.written == done.unsaved == 10


def test_what_any_surviving_tier_has_is_not_copied():
    a, b, c = prefix("a", 4), prefix("b", 4), prefix("c", 4)
    flush = Flush(tier("disk", holds=a), tier("peer", holds=b))
    for keys in (a, b, c):
        flush.use(keys)
    done = flush.run()
    assert [each for _, _, each in flush.moved] == c and done.unsaved == 4


def test_a_full_tier_gives_up_what_was_used_before_and_nothing_else():
    """`old` is only there; `a` is there and was used last; `b` is older than `a`, and half of it has room."""
    old, a, b = prefix("old", 10), prefix("a", 10), prefix("b", 20)
    flush = Flush(tier("disk", 20, holds=[*a, *old]))
    flush.use(b)
    flush.use(a)
    done = flush.run()
    assert flush.there("disk") == hashes(a, b[:10])
    assert (done.unsaved, done.written) == (20, 10)


def test_partly_filled_blocks_stay_behind():
    part = BlockKey(b"part", (1,))
    flush = Flush(tier("host", survives=False, holds=[part]), tier("disk"))
    assert flush.run().target is None and flush.moved == []


def test_a_tier_that_is_slower_than_computing_gets_nothing():
    estimate = LoadOrRecompute(2**20, BLOCK, BLOCK)
    estimate.on_transfer("disk", 4, 100.0)
    estimate.on_step(64, 64, 0.001)
    slow, fast = tier("disk"), tier("peer")
    flush = Flush(slow, fast, estimate=estimate)
    flush.use(prefix("a", 4))
    assert flush.run().target is fast
    assert len(slow) == 0


@pytest.mark.parametrize("tiers", [[], ["host"]], ids=["no tier", "a volatile one"])
def test_without_a_tier_that_survives_there_is_nothing_to_do(tiers):
    flush = Flush(*(tier(name, survives=False) for name in tiers))
    flush.use(prefix("a", 4))
    done = flush.run()
    assert done.target is None and done.unsaved == 0


def test_a_tier_that_is_lost_ends_it():
    flush = Flush(tier("disk"))
    flush.use(prefix("a", 40))
    done = flush.run(refuses=["disk"])
    assert (done.unsaved, done.written) == (40, 0)
