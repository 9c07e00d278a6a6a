"""The block pool, each promise on the smallest case that shows it; `test_block_pool_walk.py` takes them all at random."""

import pytest

from scheduler.kv.block_pool import BlockPool, IntegrityError, OutOfBlocks
from scheduler.types.block_hash import block_hash, root_hash


def test_runs_are_consecutive_and_grow_in_place():
    pool = BlockPool(8, 4)
    first = pool.allocate(3)
    assert first == [0, 1, 2]
    assert pool.allocate(2, after=2) == [3, 4]
    pool.release([1])
    assert pool.allocate(1, after=4) == [5]
    pool.check_integrity([[0, 2, 3, 4, 5]])


def test_out_of_blocks_takes_nothing():
    pool = BlockPool(4, 4)
    pool.allocate(3)
    with pytest.raises(OutOfBlocks, match="2 blocks asked for, 1 available"):
        pool.allocate(2)
    assert pool.available == 1


def fill(pool, tokens, salt=""):
    keys, parent = [], root_hash("m", salt)
    for i in range(0, len(tokens), pool.block_size):
        parent = block_hash(parent, tokens[i : i + pool.block_size])
        keys.append(parent)
    table = pool.allocate(len(keys))
    for i, (block, key) in enumerate(zip(table, keys, strict=True)):
        pool.publish(block, key, tokens[i * pool.block_size : (i + 1) * pool.block_size])
    return keys, table


def test_the_tail_of_the_least_recently_used_prefix_goes_first():
    pool = BlockPool(4, 2)
    keys, table = fill(pool, [1, 2, 3, 4])
    pool.release(table)
    other, table2 = fill(pool, [5, 6, 7, 8])
    pool.release(table2)
    pool.allocate(1)
    assert [pool.resident(k) for k in keys] == [True, False]
    assert all(pool.resident(k) for k in other)
    hits = pool.match(keys, [1, 2, 3, 4])
    pool.share(hits)
    pool.release(hits)
    pool.allocate(2)
    assert pool.resident(keys[0]), "its use made it recent"


def test_forgetting_spares_what_others_read():
    pool = BlockPool(4, 2)
    keys, table = fill(pool, [1, 2, 3, 4])
    pool.share(table[:1])
    pool.forget(table)
    assert [pool.resident(key) for key in keys] == [True, False]
    pool.check_integrity([table, table[:1]])
    pool.release(table)
    pool.check_integrity([table[:1]])
    assert (pool.used, pool.cached) == (1, 0)


def test_a_hash_collision_is_a_miss():
    pool = BlockPool(4, 2)
    keys, _ = fill(pool, [1, 2])
    assert pool.match(keys, [1, 2]) == [0]
    assert pool.match(keys, [1, 3]) == []


def test_integrity_check_sees_what_is_wrong():
    pool = BlockPool(4, 2)
    _, table = fill(pool, [1, 2, 3, 4])
    pool.check_integrity([table])
    for wrong in ([], [table, table], [[0, 0]], [[0, 1, 2]]):
        with pytest.raises(IntegrityError):
            pool.check_integrity(wrong)
    pool._tokens[1] = ()
    with pytest.raises(IntegrityError):
        pool.check_integrity([table])


def test_keys_depend_on_parent_tokens_model_and_salt():
    roots = {root_hash("m"), root_hash("m", "s"), root_hash("ms"), root_hash("n")}
    assert len(roots) == 4
    root = root_hash("m")
    keys = {block_hash(root, [1, 2]), block_hash(root, [2, 1]), block_hash(block_hash(root, [1, 2]), [1, 2])}
    assert len(keys) == 3
