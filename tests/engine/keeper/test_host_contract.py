"""The keeper's host tier keeps the contract that the host store of one process keeps, by the same tests, over a real socket."""

import torch

from engine.kv_store.store import StoreLost
from tests.engine.keeper.keepers import SIZE
from tests.engine.kv_store.test_host import (
    block_key,
    content,
    drop,
    get,
    pool_of,
    put,
    test_a_reader_that_fails_gives_back_what_it_was_lent,
    test_equal_keys_of_other_tokens_are_a_miss,
    test_more_than_there_is_room_for_is_not_kept,
    test_rows_are_those_named,
    test_rows_that_are_none_are_refused_and_nothing_is_lost,
    test_what_is_there_is_kept_as_it_is,
)

__all__ = [
    "test_a_reader_that_fails_gives_back_what_it_was_lent",
    "test_equal_keys_of_other_tokens_are_a_miss",
    "test_more_than_there_is_room_for_is_not_kept",
    "test_rows_are_those_named",
    "test_rows_that_are_none_are_refused_and_nothing_is_lost",
    "test_what_is_there_is_kept_as_it_is",
]


def numbers(kept):
    return [each.block_key.token_ids[0] for each in kept]


def test_there_and_back(store):
    assert put(store, 1, 2, 3) == [SIZE] * 3
    assert get(store, 3, 9, 1) == [3, 1]
    drop(store, 1, 9)
    assert get(store, 1, 2, 3) == [2, 3]


def test_neighbours_are_one_copy(store):
    put(store, 1, 2, 3, 4)
    get(store, 1, 2, 3, 4)
    assert (store.save_copies, store.load_copies) == (1, 1)
    get(store, 4, 3, 9)
    assert store.load_copies == 3


def test_what_was_used_least_recently_goes_first(store):
    put(store, 1, 2, 3, 4)
    get(store, 1)
    assert put(store, 5, 6) == [SIZE] * 2
    assert get(store, 1, 2, 3, 4, 5, 6) == [1, 2, 5, 6], "of a prefix the tail first"


def test_what_is_lent_outlives_its_drop(store):
    put(store, 1, 2, 3, 4)
    with store.lend([block_key(2), block_key(7), block_key(1)]) as lent, store.lend([block_key(2)]):
        assert lent.block_keys == [block_key(2), block_key(1)]
        drop(store, 1, 2, 3)
        assert get(store, 1, 2, 3, 4) == [4], "gone at once for everybody else"
        assert put(store, 5, 2, 6, 7) == [SIZE, 0, SIZE, 0], "the free slot, and that of the content nobody reads"
        assert torch.equal(lent.rows.pool[lent.rows.ids], pool_of([2, 1]))
    assert put(store, 2, 1) == [SIZE] * 2
    assert get(store, 5, 6, 2, 1) == [5, 6, 2, 1]


def test_what_is_lent_is_not_evicted(keeper, store):
    put(store, 1, 2, 3, 4)
    other = keeper.host()
    with store.lend([block_key(1)]) as lent:
        assert put(other, 5, 6, 7, 8) == [SIZE] * 3 + [0]
        assert torch.equal(lent.rows.pool[lent.rows.ids[0]], content(1))
    other.close()


def test_a_closed_store_is_lost_and_what_it_kept_is_not(keeper, store):
    put(store, 1, 2)
    closed = keeper.host()
    closed.close()
    for call in (put, get):
        try:
            call(closed, 1)
        except StoreLost as error:
            assert "closed" in str(error)
        else:
            raise AssertionError("it answers")
    drop(closed, 1)
    closed.close()
    assert get(store, 1, 2) == [1, 2]


def test_what_is_pinned_by_one_engine_is_kept_from_all(keeper, store):
    now = [0.0]
    put(store, 1)
    keeper.keeper.books._clock = lambda: now[0]
    other = keeper.host()
    other.pin([block_key(1).hash, block_key(9).hash], 10.0)
    for number in range(2, 8):
        assert put(store, number) == [SIZE]
    assert [each.token_ids[0] for each in (kept.block_key for kept in store.kept())][-1] == 1, "evicted last"
    now[0] = 11.0
    for number in range(10, 15):
        put(store, number)
    assert get(store, 1) == []
    other.close()


def test_what_one_engine_puts_the_others_are_told_of_at_once(keeper, store):
    other, told = keeper.host(), []
    other.on_changes(lambda: told.append(other.changes()))
    put(store, 1, 2)
    keeper.wait_until(lambda: told)
    assert numbers_of(told[0].came) == [1, 2] and not store.changes().came, "but not of its own"
    put(other, 3, 4, 5)
    keeper.wait_until(lambda: len(told) > 1)
    assert told[1].went == [block_key(2).hash] and not told[1].came
    drop(store, 1)
    keeper.wait_until(lambda: len(told) > 2)
    assert told[2].went == [block_key(1).hash]
    assert numbers(other.kept()) == [5, 4, 3]
    other.close()


def numbers_of(came):
    return [block_key.token_ids[0] for block_key, _ in came]
