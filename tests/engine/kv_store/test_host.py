"""The host store: what goes in comes out whole, whoever drops what meanwhile, and neighbours travel together."""

import threading
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from engine.kv_store.host import HostStore
from engine.kv_store.row_copy import GpuLink, RowCopy
from engine.kv_store.store import BlockStore, Rows, StoreLost, StoreRefused
from scheduler.types.block_hash import BlockKey
from tests.drawn import drawn

SIZE = 96  # bytes of a block


def block_key(number, *ids):
    return BlockKey(number.to_bytes(8, "big"), ids or (number, number + 1))


def content(number):
    """The bytes of a block: a pattern that shows whose they are, wherever it is cut."""
    return (torch.arange(SIZE) * 7 + number * 31).to(torch.uint8)


def pool_of(numbers, rows=None):
    """A pool with these contents in its first rows; others are 0xEE."""
    pool = torch.full((rows or max(1, len(numbers)), SIZE), 0xEE, dtype=torch.uint8)
    for row, number in enumerate(numbers):
        pool[row] = content(number)
    return pool


def put(store, *numbers):
    pool = pool_of(numbers)
    sizes = store.put([block_key(number) for number in numbers], Rows(pool, range(len(numbers))))
    assert torch.equal(pool, pool_of(numbers)), "rows that were passed are only read"
    return sizes


def get(store, *numbers):
    """Which of them are there; their bytes are checked."""
    pool = pool_of([], len(numbers))
    found = store.get([block_key(number) for number in numbers], Rows(pool, range(len(numbers))))
    for number, row, there in zip(numbers, pool[: len(numbers)], found, strict=True):
        assert not there or torch.equal(row, content(number)), number
    return [number for number, there in zip(numbers, found, strict=True) if there]


def drop(store, *numbers):
    store.drop([block_key(number).hash for number in numbers])


@pytest.fixture
def store():
    store: BlockStore = HostStore(4, SIZE)
    yield store
    store.check_integrity()
    store.close()


def test_there_and_back(store):
    assert put(store, 1, 2, 3) == [SIZE] * 3
    assert get(store, 3, 9, 1) == [3, 1]
    assert list(store.kept()) == []
    drop(store, 1, 9)
    assert get(store, 1, 2, 3) == [2, 3]


def test_what_is_there_is_kept_as_it_is(store):
    put(store, 1)
    other = torch.zeros(2, SIZE, dtype=torch.uint8)
    assert store.put([block_key(1), block_key(1)], Rows(other, [0, 1])) == [SIZE] * 2
    assert get(store, 1) == [1]
    assert put(store, 2, 2) == [SIZE] * 2, "twice in one call takes one slot"
    assert put(store, 3, 4) == [SIZE] * 2


def test_equal_keys_of_other_tokens_are_a_miss(store):
    """Also within one call: the content that is kept is the first one's."""
    pool = pool_of([1, 8])
    assert store.put([block_key(1), block_key(1, 5, 6)], Rows(pool, [0, 1])) == [SIZE, 0]
    assert store.get([block_key(1, 5, 6), block_key(1)], Rows(pool_of([], 2), [0, 1])) == [False, True]
    assert get(store, 1) == [1]
    with store.lend([block_key(1, 5, 6)]) as lent:
        assert lent.block_keys == []


def test_more_than_there_is_room_for_is_not_kept(store):
    assert put(store, 1, 2, 3, 4, 5, 6) == [SIZE] * 4 + [0, 0]
    assert get(store, 1, 2, 3, 4, 5, 6) == [1, 2, 3, 4]


def test_rows_are_those_named(store):
    pool = pool_of([5, 6, 7])
    store.put([block_key(7), block_key(5)], Rows(pool, [2, 0]))
    back = pool_of([], 5)
    assert store.get([block_key(5), block_key(7)], Rows(back, [4, 1])) == [True, True]
    assert torch.equal(back[[4, 1]], pool_of([5, 7])) and (back[[0, 2, 3]] == 0xEE).all()


def test_neighbours_are_one_copy(store):
    put(store, 1, 2, 3, 4)
    assert (store.blocks_copied, store.copies) == (4, 1)
    get(store, 1, 2, 3, 4)
    assert (store.blocks_copied, store.copies) == (8, 2)
    get(store, 4, 3, 9)
    assert (store.blocks_copied, store.copies) == (10, 4)


class AgainstDict(RuleBasedStateMachine):
    """Random calls against a set of what must be there, with contents lent meanwhile."""

    def __init__(self):
        super().__init__()
        self.store = HostStore(6, SIZE)
        self.there = set()
        self.lent = []

    numbers = st.lists(st.integers(0, 9), max_size=6)

    @rule(numbers=numbers)
    def put(self, numbers):
        sizes = put(self.store, *numbers)
        kept = {number for number, size in zip(numbers, sizes, strict=True) if size}
        assert self.there & set(numbers) <= kept
        if not self.lent:
            assert len(self.there | set(numbers)) > 6 or kept == set(numbers), "there was room"
        self.there |= kept

    @rule(numbers=numbers)
    def get(self, numbers):
        assert get(self.store, *numbers) == [number for number in numbers if number in self.there]

    @rule(numbers=numbers)
    def drop(self, numbers):
        drop(self.store, *numbers)
        self.there -= set(numbers)

    @rule(numbers=numbers)
    def lend(self, numbers):
        loan = self.store.lend([block_key(number) for number in numbers])
        lent = loan.__enter__()
        assert lent.block_keys == [block_key(number) for number in numbers if number in self.there]
        self.lent.append((loan, lent))

    @rule(data=st.data())
    def take_back(self, data):
        if self.lent:
            loan, _ = self.lent.pop(data.draw(st.integers(0, len(self.lent) - 1)))
            loan.__exit__(None, None, None)

    @invariant()
    def nothing_moves_under_a_reader(self):
        self.store.check_integrity()
        for _, lent in self.lent:
            for asked, row in zip(lent.block_keys, lent.rows.ids, strict=True):
                assert torch.equal(lent.rows.pool[row], content(asked.token_ids[0]))


TestAgainstDict = AgainstDict.TestCase
TestAgainstDict.settings = settings(max_examples=drawn(50), stateful_step_count=30)


@settings(max_examples=drawn(150))
@given(st.lists(st.integers(0, 11), unique=True, max_size=12), st.integers(1, 12))
def test_a_put_takes_one_run_where_there_is_one(dropped, count):
    """However fragmented: contiguous blocks of the device and a free run that is long enough are one copy, both ways."""
    store = HostStore(12, SIZE)
    put(store, *range(12))
    drop(store, *dropped)
    free = sorted(dropped)
    has_run = any(set(range(slot, slot + count)) <= set(free) for slot in free)
    numbers = range(100, 100 + min(count, len(free)))
    before = store.copies
    put(store, *numbers)
    put_copies = store.copies - before
    assert get(store, *numbers) == list(numbers)
    assert store.copies - before == 2 * put_copies
    assert put_copies == 1 if has_run else put_copies <= len(free)
    store.check_integrity()


def test_what_is_lent_outlives_its_drop(store):
    put(store, 1, 2, 3, 4)
    with store.lend([block_key(2), block_key(7), block_key(1)]) as lent, store.lend([block_key(2)]):
        assert lent.block_keys == [block_key(2), block_key(1)]
        drop(store, 1, 2, 3)
        store.check_integrity()
        assert get(store, 1, 2, 3, 4) == [4], "gone at once for everybody else"
        assert put(store, 5, 2, 6) == [SIZE, 0, 0], "only one slot is free"
        assert torch.equal(lent.rows.pool[lent.rows.ids], pool_of([2, 1]))
    assert put(store, 2, 1) == [SIZE] * 2
    assert get(store, 5, 2, 1) == [5, 2, 1]


def test_what_is_put_again_while_its_old_copy_is_lent(store):
    put(store, 1)
    with store.lend([block_key(1)]) as lent:
        drop(store, 1)
        put(store, 1)
        drop(store, 1)
        put(store, 1)
        assert torch.equal(lent.rows.pool[lent.rows.ids], pool_of([1]))
    assert get(store, 1) == [1]
    assert put(store, 2, 3, 4) == [SIZE] * 3


def test_a_reader_that_fails_gives_back_what_it_was_lent(store):
    put(store, 1, 2, 3, 4)
    with pytest.raises(KeyError), store.lend([block_key(1)]):
        drop(store, 1)
        raise KeyError
    assert put(store, 5) == [SIZE]


def test_what_is_being_filled_is_not_there_until_it_is_whole(store):
    """Nor are those that did not arrive, or that nobody asked for."""
    put(store, 1)
    with store.fill([block_key(1), block_key(2), block_key(3), block_key(2)]) as room:
        assert room.block_keys == [block_key(2), block_key(3)], (
            "what is there needs no room, and nothing needs it twice"
        )
        for asked, row, index in zip(room.block_keys, room.rows.ids, range(2), strict=True):
            room.rows.pool[row] = content(asked.token_ids[0])
            room.arrived[index] = asked == block_key(2)
            assert get(store, 1, 2, 3) == [1]
        store.check_integrity()
    assert get(store, 1, 2, 3) == [1, 2]
    assert put(store, 5, 6) == [SIZE] * 2, "the other's slot is free again"


def test_a_writer_that_fails_leaves_nothing(store):
    with pytest.raises(KeyError), store.fill([block_key(1), block_key(2)]) as room:
        room.arrived[:] = [True, True]
        raise KeyError
    assert get(store, 1, 2) == []
    assert put(store, 1, 2, 3, 4) == [SIZE] * 4


def test_who_comes_second_with_a_content_keeps_the_first(store):
    with store.fill([block_key(1)]) as room:
        put(store, 1)
        room.rows.pool[room.rows.ids] = 0
        room.arrived[:] = [True]
    assert get(store, 1) == [1]
    assert put(store, 2, 3, 4) == [SIZE] * 3


def test_room_is_given_to_the_first(store):
    with store.fill([block_key(number) for number in range(6)]) as room:
        assert room.block_keys == [block_key(number) for number in range(4)]
        assert put(store, 9) == [0]


def work(store, seed, begin):
    """A thread's contents are its own; slots are everybody's. Returns the contents it left."""
    chosen = torch.Generator().manual_seed(seed)
    there = set()
    begin.wait()
    for _ in range(150):
        numbers = [seed * 100 + int(n) for n in torch.randperm(8, generator=chosen)[:3]]
        kind = int(torch.randint(4, (), generator=chosen))
        if kind == 0:
            there |= {number for number, size in zip(numbers, put(store, *numbers), strict=True) if size}
        elif kind == 1:
            drop(store, *numbers)
            there -= set(numbers)
        elif kind == 2:
            assert get(store, *numbers) == [number for number in numbers if number in there]
        else:
            with store.lend([block_key(number) for number in numbers]) as lent:
                drop(store, numbers[0])
                there.discard(numbers[0])
                put(store, numbers[0] + 50)  # wants a slot, not that one
                drop(store, numbers[0] + 50)
                for asked, row in zip(lent.block_keys, lent.rows.ids, strict=True):
                    assert torch.equal(lent.rows.pool[row], content(asked.token_ids[0]))
    return there


def test_several_threads():
    store, threads = HostStore(14, SIZE), 4
    begin = threading.Barrier(threads)
    with ThreadPoolExecutor(threads) as pool:
        left = [number for there in pool.map(lambda seed: work(store, seed, begin), range(threads)) for number in there]
    store.check_integrity()
    assert sorted(get(store, *range(threads * 100))) == sorted(left)
    drop(store, *left)
    assert put(store, *range(14)) == [SIZE] * 14, "no slot was lost"


@pytest.mark.parametrize(
    ("pool", "ids", "message"),
    [
        (torch.zeros(2, SIZE), [0], "as bytes"),
        (torch.zeros(2, SIZE + 1, dtype=torch.uint8), [0], "as bytes"),
        (torch.zeros(2 * SIZE, dtype=torch.uint8), [0], "as bytes"),
        (torch.zeros(4, SIZE, dtype=torch.uint8)[::2], [0], "contiguous"),
        (torch.zeros(2, SIZE, dtype=torch.uint8), [2], r"rows 2\.\.2 of a pool that has 0\.\.1"),
        (torch.zeros(2, SIZE, dtype=torch.uint8), [-1], "rows -1"),
        (torch.zeros(2, SIZE, dtype=torch.uint8), [0, 1], "longer"),
    ],
)
def test_rows_that_are_none_are_refused_and_nothing_is_lost(store, pool, ids, message):
    put(store, 1, 2)
    for call, number in ((store.put, 3), (store.get, 1)):
        with pytest.raises(ValueError, match=message):
            call([block_key(number)], Rows(pool, ids))
    store.check_integrity()
    assert get(store, 1, 2, 3) == [1, 2] and put(store, 3, 4) == [SIZE] * 2


def test_a_closed_store_is_lost_but_for_what_is_lent(store):
    put(store, 1, 2)
    with store.lend([block_key(1)]) as lent, store.fill([block_key(3)]) as room:
        store.close()
        assert torch.equal(lent.rows.pool[lent.rows.ids], pool_of([1]))
        room.rows.pool[room.rows.ids] = content(3)
        room.arrived[:] = [True]
    for call in (put, get):
        with pytest.raises(StoreLost, match="closed"):
            call(store, 1)
    drop(store, 1, 3)
    store.close()


def test_a_device_that_fails_loses_the_store(store, monkeypatch):
    def fails(*_):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    put(store, 1)
    monkeypatch.setattr(RowCopy, "from_slab", fails)
    with pytest.raises(StoreLost, match="illegal memory access"):
        get(store, 1)
    with pytest.raises(StoreLost, match="illegal memory access"):
        put(store, 2)


def test_memory_is_taken_as_it_is_written():
    process = psutil.Process()
    before = process.memory_info().rss
    store = HostStore(1024, 2**20)
    store.put([block_key(1)], Rows(torch.ones(1, 2**20, dtype=torch.uint8), [0]))
    assert process.memory_info().rss - before < 2**28, "of 1 GiB"
    store.close()


@pytest.mark.parametrize(("blocks", "size"), [(0, 8), (8, 0), (2**40, 2**20)])
def test_memory_that_cannot_be_had_is_refused(blocks, size):
    with pytest.raises(StoreRefused, match="--kv-host-gib"):
        HostStore(blocks, size)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to pin memory for")
def test_pinned_memory_needs_a_gpu():
    with pytest.raises(StoreRefused, match="torch finds none"):
        HostStore(4, SIZE, pinned=True)


pairs = st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), max_size=8, unique_by=lambda pair: pair[1])


@given(pairs)
def test_the_link_to_a_gpu_does_what_numpy_does(pairs):
    """On host tensors, which its copier takes as well."""
    pool, slab = pool_of(range(8)), pool_of([], 8)
    others = slab.clone()
    assert GpuLink(pool, slab).to_slab(pairs) == RowCopy(others).to_slab(pool, pairs)
    assert torch.equal(slab, others)
    back, also = pool_of([], 8), pool_of([], 8)
    assert GpuLink(back, slab).from_slab(pairs) == RowCopy(slab).from_slab(also, pairs)
    assert torch.equal(back, also)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_and_pinned_memory():
    store = HostStore(16, SIZE, pinned=True)
    pool = pool_of(range(8), 12).cuda()
    assert store.put([block_key(number) for number in range(8)], Rows(pool, range(8))) == [SIZE] * 8
    back = torch.zeros_like(pool)
    assert store.get([block_key(number) for number in range(8)], Rows(back, [*range(4, 12)])) == [True] * 8
    assert torch.equal(back[4:], pool[:8]) and (store.blocks_copied, store.copies) == (16, 2)
    store.close()
