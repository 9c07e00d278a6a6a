"""What is known of the blocks of a replica, kept in step with its pool by what the pool's journal tells."""

import random

import pytest

from scheduler.kv.block_journal import BlockJournal
from scheduler.kv.block_pool import BlockPool
from scheduler.router.block_index import BlockIndex, HeldBlocks
from scheduler.types.block_changes import BlockChanges, RemovedBlocks, StoredBlocks
from scheduler.types.block_hash import block_names, root_hash

ROOT = root_hash("model")


def blocks(tier: str, *names: bytes, parent: bytes | None = None) -> StoredBlocks:
    """A chain that begins behind `parent`."""
    return StoredBlocks(tier=tier, names=list(names), tokens=[4] * len(names), parents=[parent, *names][: len(names)])


def stored(tier: str, *names: bytes, parent: bytes | None = None) -> BlockChanges:
    return BlockChanges(stored=[blocks(tier, *names, parent=parent)])


def test_a_prefix_ends_at_the_first_block_that_is_missing():
    index = BlockIndex()
    index.change(stored("device", b"a", b"b", b"d"))
    assert index.held([b"a", b"b", b"c", b"d"]) == HeldBlocks(2)
    assert index.held([b"x", b"a"]) == index.held([]) == HeldBlocks()
    index.change(stored("disk", b"c"))
    index.change(stored("host", b"d", b"e"))
    assert index.held([b"a", b"b", b"c", b"d", b"e", b"f"]) == HeldBlocks(2, ("disk", "host", "host"))
    index.change(BlockChanges(removed=[RemovedBlocks(tier="device", names=[b"a", b"nothing"])]))
    assert index.held([b"a", b"b"]) == HeldBlocks()


def test_what_is_about_to_be_computed_counts_as_there_until_it_ends():
    index = BlockIndex()
    index.announce([b"a", b"b"])
    index.announce([b"a"])
    assert index.held([b"a", b"b", b"c"]) == HeldBlocks(2)
    index.withdraw([b"a", b"b"])
    assert index.held([b"a", b"b"]) == HeldBlocks(1)
    index.withdraw([b"a"])
    index.withdraw([b"a"])
    assert index.held([b"a"]) == HeldBlocks() and not index._announced


def test_it_is_bounded_and_starts_anew():
    index = BlockIndex(capacity=3)
    index.change(stored("device", b"a", b"b", parent=ROOT))
    index.change(stored("device", b"a"))
    index.change(stored("device", b"c", b"d"))
    assert len(index) == 3 and index.held([b"a"]) == HeldBlocks(1), "b came first"
    assert index.held([b"b"]) == HeldBlocks()
    assert list(index.contents()) == [
        ("device", b"a", (4, None)),
        ("device", b"c", (4, None)),
        ("device", b"d", (4, b"c")),
    ]
    index.change(stored("host", b"d"))
    assert list(index.contents())[-1] == ("host", b"d", (4, b"c")), "as the device knows it"
    index.change(BlockChanges(anew=True, stored=[blocks("host", b"z")]))
    assert list(index.contents()) == [("host", b"z", (4, None))]
    index.announce([b"q"])
    index.clear()
    assert not len(index) and index.held([b"q"]) == HeldBlocks()


@pytest.mark.parametrize("seed", range(5))
def test_it_follows_a_pool_whatever_happens_there(seed):
    rng, size = random.Random(seed), 4
    pool, index, journal = BlockPool(12, size), BlockIndex(), BlockJournal()
    pool.publish_to(journal)
    tables: list[list[int]] = []
    for _ in range(300):
        action = rng.randrange(6)
        if action < 3 and pool.available >= 3:
            tokens = [rng.randrange(3)] * size + [rng.randrange(3)] * 2 * size
            table, parent = pool.allocate(3), ROOT
            for place, name in enumerate(block_names(ROOT, tokens, size)):
                pool.publish(table[place], name, tokens[place * size : (place + 1) * size], parent)
                parent = name
            tables.append(table)
        elif action < 5 and tables:
            pool.release(tables.pop(rng.randrange(len(tables))))
        elif tables and rng.random() < 0.2:
            pool.drop_contents()
        if rng.random() < 0.5 and (changes := journal.take()) is not None:
            index.change(changes)
            assert {name for _, name, _ in index.contents()} == set(pool.contents())


def test_a_journal_tells_the_last_change_of_each_content():
    journal = BlockJournal()
    first = journal.take()
    assert first == BlockChanges(anew=True) and journal.take() is None
    for name, parent in ((b"a", ROOT), (b"b", b"a"), (b"x", ROOT), (b"y", b"b")):
        journal.stored("device", name, 4, parent)
    journal.stored("host", b"b", 4, b"a")
    journal.removed("device", b"x")
    assert journal.take() == BlockChanges(
        stored=[
            blocks("device", b"a", b"b", b"y", parent=ROOT),
            blocks("host", b"b", parent=b"a"),
        ],
        removed=[RemovedBlocks(tier="device", names=[b"x"])],
    )


def test_a_journal_tells_much_in_several_parts(monkeypatch):
    monkeypatch.setattr("scheduler.kv.block_journal.MOST_AT_ONCE", 2)
    journal = BlockJournal()
    for number in range(3):
        journal.stored("device", bytes([number]), 4, ROOT)
    parts = [journal.take() for _ in range(3)]
    assert [part and [name for each in part.stored for name in each.names] for part in parts] == [
        [b"\0", b"\1"],
        [b"\2"],
        None,
    ]
    assert [part.anew for part in parts if part] == [True, False]


def test_a_journal_that_nobody_takes_stays_small():
    journal = BlockJournal(limit=3)
    for number in range(9):
        journal.stored("device", bytes([number]), 4)
    changes = journal.take()
    assert changes is not None
    assert [name for each in changes.stored for name in each.names] == [bytes([6]), bytes([7]), bytes([8])]
