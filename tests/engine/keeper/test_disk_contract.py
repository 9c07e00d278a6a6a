"""The keeper's disk tier: what engines write through the slab, and what they find after keepers have come and gone."""

import errno
import os

import pytest

from engine.kv_store.disk.record import size_of
from engine.kv_store.store import Rows, StoreLost, StoreRefused
from tests.engine.keeper.keepers import SIZE, KeeperThread
from tests.engine.kv_store.test_host import block_key, drop, get, pool_of, put

TAKES = size_of(SIZE)


@pytest.fixture
def keeper(tmp_path):
    thread = KeeperThread(tmp_path, blocks=0, disk=5)
    yield thread
    thread.check_integrity()
    thread.close()


@pytest.fixture
def store(keeper):
    """The disk tier of one engine."""
    store = keeper.disk()
    yield store
    keeper.check_integrity()
    store.close()


def numbers(contents):
    return sorted(block_key.token_ids[0] for block_key, _ in contents)


def test_there_and_back(store):
    assert put(store, 1, 2, 3) == [TAKES] * 3
    assert get(store, 3, 9, 1) == [3, 1]
    assert put(store, 1) == [TAKES]
    drop(store, 1, 9)
    assert get(store, 1, 2, 3) == [2, 3]
    assert put(store, 4, 4) == [TAKES] * 2


def test_equal_keys_of_other_tokens_are_a_miss(store):
    put(store, 1)
    assert store.put([block_key(1, 5, 6)], Rows(pool_of([8]), [0])) == [0]
    assert store.get([block_key(1, 5, 6), block_key(1)], Rows(pool_of([], 2), [0, 1])) == [False, True]


def test_what_was_used_least_recently_goes_first(store):
    put(store, 1, 2, 3, 4, 5)
    assert get(store, 1, 2) == [1, 2], "from the slab, which tells the disk"
    assert put(store, 6, 7) == [TAKES] * 2
    assert numbers(store.kept()) == [1, 2, 3, 6, 7]


def test_another_keeper_finds_it_and_another_engine_reads_it_through_the_slab(keeper, store):
    put(store, 1, 2, 3)
    drop(keeper.host(), 1, 2, 3)
    keeper.kill()
    keeper.start()
    with pytest.raises(StoreLost):
        get(store, 1)
    with pytest.raises(StoreLost, match="was lost"):
        store.check()
        store.changes()
    assert numbers(store.kept()) == [1, 2, 3]
    assert get(store, 2, 3, 9) == [2, 3]
    other = keeper.host()
    assert get(other, 1, 2, 3) == [2, 3], "what was read is in memory for all"
    other.close()


def test_engines_are_told_of_what_others_wrote(keeper, store):
    other = keeper.disk()
    put(store, 1, 2)
    keeper.wait_until(lambda: other._client._tiers["disk"].came)
    assert numbers(other.changes().came) == [1, 2]
    drop(store, 2)
    keeper.wait_until(lambda: other._client._tiers["disk"].went)
    assert other.changes().went == [block_key(2).hash]
    other.close()


def test_blocks_of_the_slab_are_written_where_they_lie(keeper, store):
    """As the transfer worker passes from one tier to the next."""
    host = keeper.host()
    put(host, 1, 2)
    with host.lend([block_key(2), block_key(9), block_key(1)]) as lent:
        rows = Rows(store._slab.rows, lent.rows.ids)
        assert store.put(lent.block_keys, rows) == [TAKES] * 2 and store.save_copies == 0
    host.close()
    assert numbers(store.kept()) == [1, 2]


def test_a_folder_that_goes_away_takes_the_disk_tier_with_it_and_nothing_else(keeper, store, tmp_path):
    host = keeper.host()
    put(store, 1)
    os.rename(tmp_path / "kv", tmp_path / "elsewhere")
    with pytest.raises(StoreLost, match="deleted or replaced"):
        store.check()
    with pytest.raises(StoreLost, match="deleted or replaced"):
        put(store, 2)
    assert get(host, 1) == [1]
    keeper.kill()
    keeper.start()
    for each in (host, store):
        each.check()
    assert put(store, 3) == [TAKES], "the next keeper makes it again"
    host.close()


def test_a_disk_that_is_full_is_lost(keeper, store, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    put(store, 1)
    monkeypatch.setattr("engine.kv_store.disk.filesystem.Filesystem.write_all", full)
    with pytest.raises(StoreLost, match="No space left"):
        put(store, 2)
    assert get(keeper.host(), 1) == [1]


def test_a_folder_that_another_server_holds_is_refused(keeper, store, tmp_path):
    (tmp_path / "other").mkdir()
    other = KeeperThread(tmp_path / "other", disk=5)
    os.rmdir(tmp_path / "other" / "kv") if (tmp_path / "other" / "kv").exists() else None
    (tmp_path / "other" / "kv").symlink_to(tmp_path / "kv")
    with pytest.raises(StoreRefused, match="another process"):
        other.disk()
    other.close()


def test_an_engine_with_other_blocks_is_refused_by_a_sentence(keeper, store):
    for other, reason in (
        ({"fingerprint": "another"}, "of model, not of another"),
        ({"block_tokens": 8}, "of model, not of model"),
    ):
        with pytest.raises(StoreLost, match=f"keeps KV blocks of another kind: {reason}"):
            keeper.disk(**other)
    assert put(store, 1) == [TAKES]


def test_when_the_others_have_gone_another_kind_of_blocks_is_taken(keeper, store):
    put(store, 1)
    store.close()
    keeper.wait_until(lambda: keeper.keeper._connections == 0)
    other = keeper.disk(fingerprint="another")
    assert not list(other.kept()) and put(other, 1) == [TAKES]
    other.close()


def flushed(keeper, seconds=10.0):
    keeper.run(lambda: keeper.keeper.flush(seconds))


def test_a_stop_writes_what_only_memory_has_and_the_newest_first(tmp_path, caplog):
    caplog.set_level("INFO")
    keeper = KeeperThread(tmp_path, blocks=70, disk=20)
    host, disk = keeper.host(), keeper.disk()
    for number in range(30):
        put(host, number)
    put(disk, 28, 3)
    flushed(keeper)
    assert numbers(disk.kept()) == [3, *range(11, 30)]
    assert "wrote 18 of 28 KV blocks that were nowhere else to tier disk" in caplog.text
    assert "10 KV blocks are lost: the disk has no room for them" in caplog.text
    host.close()
    disk.close()
    keeper.close()


def test_a_stop_writes_no_longer_than_it_may(tmp_path, caplog):
    keeper = KeeperThread(tmp_path, blocks=70, disk=100)
    host = keeper.host()
    put(host, *range(40))
    ticks = iter(range(100))
    keeper.keeper._clock = lambda: next(ticks)
    flushed(keeper, 2.5)
    assert len(keeper.keeper.shelf) == 32 and "8 KV blocks are lost: drain_seconds are over" in caplog.text
    host.close()
    keeper.close()
