"""The disk store: what it keeps, over what kinds of end, and what it never serves."""

import errno
import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from engine.kv_store.disk import disk_store
from engine.kv_store.disk.disk_store import DiskStore
from engine.kv_store.disk.record import PAGE, size_of
from engine.kv_store.store import Rows, StoreLost, StoreRefused
from scheduler.types.block_hash import BlockKey
from tests.engine.kv_store.disk.disk_parts import (
    SIZE,
    SLOT,
    Faulty,
    Shrink,
    block_key,
    get,
    numbers,
    put,
    rows,
    segments,
)

pytestmark = pytest.mark.processes

ROOT = Path(__file__).parents[4]


@pytest.mark.parametrize("aligned", [True, False], ids=["on pages", "off pages"])
@pytest.mark.parametrize("size", [1, 100, PAGE, 5000, 3 * PAGE])
@pytest.mark.parametrize("direct", [True, False], ids=["direct", "through the page cache"])
def test_blocks_come_back_as_they_went_in(open_store, size, aligned, direct, monkeypatch):
    if not direct:
        monkeypatch.setattr("engine.kv_store.disk.filesystem._DIRECT", 0)
    store = open_store(size=size)
    source, target = rows(5, size, aligned=aligned), rows(5, size, aligned=aligned)
    source.pool[:] = 7
    source.pool[:, 0] += torch.arange(5, dtype=torch.uint8)
    block_keys = [block_key(number) for number in range(5)]
    assert store.put(block_keys, source) == [size_of(size)] * 5
    assert store.get([*reversed(block_keys)], Rows(target.pool, [4, 3, 2, 1, 0])) == [True] * 5
    assert target.pool.equal(source.pool)
    assert store.bytes_written == store.bytes_read == store.taken == 5 * size_of(size)


def test_only_the_named_rows_are_read_and_written(open_store):
    store = open_store()
    pool = rows(4, SIZE).pool
    pool[2] = 9
    store.put([block_key(1)], Rows(pool, [2]))
    assert store.get([block_key(1)], Rows(pool, [0])) == [True]
    assert pool[:, 0].tolist() == [9, 0, 9, 0]


def test_what_is_not_there_is_a_miss(open_store):
    store = open_store()
    put(store, [1, 2], SIZE)
    store.drop([block_key(1).hash, b"never seen"])
    assert get(store, [1, 2, 3], SIZE) == [False, True, False]
    assert store.taken == SLOT and store.damaged == 0


def test_an_equal_key_with_other_ids_is_a_miss_and_stays(open_store):
    store = open_store()
    put(store, [1], SIZE)
    other = BlockKey(block_key(1).hash, (9, 9))
    assert store.put([other], rows(1, SIZE)) == [0]
    assert store.get([other], rows(1, SIZE)) == [False]
    assert get(store, [1], SIZE) == [True]


def test_a_block_that_is_there_is_not_written_again(open_store):
    store = open_store()
    assert put(store, [1], SIZE) == put(store, [1, 1], SIZE)[:1] == [SLOT]
    assert store.bytes_written == SLOT


def test_blocks_outlive_the_process_in_the_order_of_writing(open_store):
    store = open_store()
    for number in (5, 3, 8, 1):
        put(store, [number], SIZE)
    store.drop([block_key(3).hash])
    put(store, [7], SIZE)  # in the slot of 3
    store = open_store()
    assert numbers(store) == [5, 8, 1, 7]
    assert [kept.block_key for kept in store.kept()] == [block_key(number) for number in (5, 8, 1, 7)]
    put(store, [2], SIZE)
    assert numbers(store) == [5, 8, 1, 7], "what was there at opening, no more"
    assert get(store, [5, 8, 1, 7, 2], SIZE) == [True] * 5
    assert numbers(open_store()) == [5, 8, 1, 7, 2]


def test_a_content_written_twice_is_kept_once_the_newest(open_store, tmp_path):
    store = open_store()
    put(store, [1], SIZE)
    put(store, [2], SIZE)
    store.drop([block_key(1).hash, block_key(2).hash])
    put(store, [1], SIZE)  # in the slot of 2: the first copy still lies on the disk
    store = open_store()
    assert numbers(store) == [1] and store.taken == SLOT
    with segments(tmp_path)[0].open("r+b") as file:
        file.seek(PAGE)
        file.write(b"the older copy, in the first slot")
    assert get(store, [1], SIZE) == [True]


def test_slots_fill_several_files_and_are_used_again(open_store, tmp_path, monkeypatch):
    monkeypatch.setattr(disk_store, "_SEGMENT_BYTES", 4 * SLOT)
    store = open_store(blocks=10)
    assert put(store, range(10), SIZE) == [SLOT] * 10
    assert [path.stat().st_size // SLOT for path in segments(tmp_path)] == [4, 4, 2]
    store.drop([block_key(number).hash for number in range(8)])
    assert put(store, range(20, 28), SIZE) == [SLOT] * 8
    assert sum(path.stat().st_size for path in segments(tmp_path)) == 10 * SLOT
    store = open_store(blocks=10)
    assert sorted(numbers(store)) == [8, 9, *range(20, 28)]
    assert all(get(store, [8, 9, *range(20, 28)], SIZE))


def test_beyond_its_limit_it_keeps_nothing(open_store):
    store = open_store(blocks=3)
    assert put(store, range(2), SIZE) == [SLOT] * 2
    assert sorted(put(store, range(2, 5), SIZE)) == [0, 0, SLOT]
    assert sum(get(store, range(5), SIZE)) == 3


def test_a_lower_limit_drops_what_was_written_first(open_store, tmp_path):
    store = open_store(blocks=8)
    for number in range(8):
        put(store, [number], SIZE)
    store = open_store(blocks=3)
    assert numbers(store) == [5, 6, 7]
    store.drop([block_key(5).hash])
    put(store, [9], SIZE)
    os.sync()
    assert on_disk(tmp_path) <= 3 * SLOT, "the pages of free slots were given back"


def on_disk(folder: Path) -> int:
    """Bytes of all files; a page that some file systems take for a file's own map of holes is left out."""
    return sum(path.stat().st_blocks * 512 - PAGE for path in segments(folder))


def test_coded_blocks_take_fewer_pages_and_mix_with_others(open_store, tmp_path):
    store = open_store(size=16 * PAGE, codecs=[Shrink()])
    store.codec = Shrink()
    sizes = put(store, range(6), 16 * PAGE)
    assert [size < size_of(16 * PAGE) for size in sizes] == [True, False, False] * 2, "what is not shorter is kept raw"
    store.codec = None
    sizes += put(store, [9], 16 * PAGE)
    assert store.taken == sum(sizes) and sizes[-1] == size_of(16 * PAGE)
    assert get(store, [*range(6), 9], 16 * PAGE) == [True] * 7
    os.sync()
    assert on_disk(tmp_path) <= sum(sizes)
    store = open_store(size=16 * PAGE, codecs=[Shrink()])
    assert store.taken == sum(sizes)
    assert get(store, [*range(6), 9], 16 * PAGE) == [True] * 7
    assert sorted(numbers(open_store(size=16 * PAGE))) == [1, 2, 4, 5, 9], "a codec that is not at hand"


def test_a_coded_block_in_a_raw_ones_slot_leaves_a_hole(open_store, tmp_path):
    store = open_store(size=16 * PAGE, blocks=1)
    store.codec = Shrink()
    put(store, [1], 16 * PAGE)
    store.drop([block_key(1).hash])
    (size,) = put(store, [3], 16 * PAGE)
    os.sync()
    assert on_disk(tmp_path) <= size < size_of(16 * PAGE) // 2


@pytest.mark.parametrize("refused", [{}, {"punch": errno.EOPNOTSUPP}], ids=["holes", "no holes"])
def test_shorter_and_longer_blocks_take_turns_within_the_limit(open_store, tmp_path, refused):
    size = 16 * PAGE
    store = open_store(size=size, blocks=6, filesystem=Faulty(refuse=refused))
    store.codec = Shrink()
    for turn in range(4):
        short = [300 * turn + 3 * i for i in range(12)]  # every third can be coded
        assert all(put(store, short, size))
        store.drop([block_key(number).hash for number in short])
        assert all(put(store, [300 * turn + 3 * i + 1 for i in range(6)], size))
        os.sync()
        assert refused or on_disk(tmp_path) <= 6 * size_of(size)
        assert all(get(store, [300 * turn + 3 * i + 1 for i in range(6)], size))
        store.drop([block_key(300 * turn + 3 * i + 1).hash for i in range(6)])
        store.check_integrity()


def test_models_and_formats_never_mix(open_store):
    put(open_store(fingerprint="one"), [1, 2], SIZE)
    other = open_store(fingerprint="two")
    assert not other.kept() and get(other, [1, 2], SIZE) == [False, False]
    put(other, [1], SIZE)
    assert not open_store(fingerprint="one", size=SIZE + 1).kept()
    assert sorted(numbers(open_store(fingerprint="one"))) == [1, 2]


def test_other_models_make_way_the_one_used_longest_ago_first(open_store, tmp_path):
    folders = {}
    for name in ("older", "newer"):
        put(open_store(fingerprint=name, blocks=6), [1, 2], SIZE)
        (folders[name],) = {path.parent for path in segments(tmp_path)} - set(folders.values())
    (tmp_path / "kv" / "notes.txt").write_text("the operator's")
    (folders["older"] / "mine.txt").write_text("the operator's")
    for day, folder in enumerate(folders.values()):
        os.utime(folder, (day, day))
    store = open_store(fingerprint="third", blocks=6)
    assert put(store, [1, 2], SIZE) == [SLOT] * 2
    assert len(segments(tmp_path)) == 3, "there is room for all"
    put(store, [3], SIZE)
    assert not [*folders["older"].glob("*.blocks")] and [*folders["newer"].glob("*.blocks")]
    put(store, [4, 5, 6], SIZE)
    assert not folders["newer"].exists() and len(segments(tmp_path)) == 1
    assert sorted(path.name for path in tmp_path.rglob("*.txt")) == ["mine.txt", "notes.txt"]


def test_nobody_else_may_read_it(open_store, tmp_path):
    store = open_store()
    put(store, [1], SIZE)
    (subfolder,) = tmp_path.glob("kv/kv-*")
    subfolder.chmod(0o755)
    open_store()
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in [tmp_path / "kv", *tmp_path.glob("kv/**/*")]}
    assert modes == {"kv": 0o700, "headrace.lock": 0o600, subfolder.name: 0o700, "000000.blocks": 0o600}


HOLDER = """
import sys
from pathlib import Path
from engine.kv_store.disk.disk_store import DiskStore
store = DiskStore(Path(sys.argv[1]), block_bytes=8192, fingerprint="other", limit_bytes=2**20)
print("open", flush=True)
sys.stdin.read()
"""


def test_a_second_process_is_refused_until_the_first_has_ended(open_store, tmp_path):
    folder = tmp_path / "kv"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", HOLDER, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"open\n"
        with pytest.raises(StoreRefused, match=f"(?s){folder}.*pid {holder.pid}.*folder of its own"):
            open_store()
        holder.kill()
    put(open_store(), [1], SIZE)


def test_a_second_store_of_the_same_process_is_refused_too(open_store, tmp_path):
    open_store()
    with pytest.raises(StoreRefused):
        DiskStore(tmp_path / "kv", block_bytes=SIZE, fingerprint="model", limit_bytes=0)


def test_threads_work_on_different_blocks_at_once(open_store):
    store = open_store(blocks=24)
    store.codec = Shrink()

    def work(thread: int) -> int:
        served = 0
        for turn in range(12):
            mine = [thread + 4 * (turn * 4 + i) for i in range(4)]
            sizes = put(store, mine, SIZE)
            assert [size > 0 for size in sizes] == get(store, mine, SIZE)
            served += sum(size > 0 for size in sizes)
            store.drop([block_key(number).hash for number in mine[turn % 2 :]])
            store.check_integrity()
        return served

    with ThreadPoolExecutor(4) as threads:
        assert min(threads.map(work, range(4))) > 0
    assert store.damaged == 0


def test_rows_of_another_size_are_a_mistake_of_the_caller(open_store):
    store = open_store()
    with pytest.raises(ValueError, match=f"uint8 .*{SIZE}"):
        store.put([block_key(1)], rows(1, SIZE + 1))
    with pytest.raises(ValueError):
        store.put([block_key(1), block_key(2)], rows(1, SIZE))
    with pytest.raises(ValueError, match="at most"):
        store.put([BlockKey(b"k", tuple(range(2000)))], rows(1, SIZE))
    store.check_integrity()


def test_a_closed_store_says_so_and_closes_again(open_store):
    store = open_store()
    put(store, [1], SIZE)
    store.close()
    store.close()
    with pytest.raises(StoreLost, match="closed"):
        get(store, [1], SIZE)


def test_what_is_put_newest_first_is_found_in_the_order_of_use(open_store):
    store = open_store()
    put(store, [1], SIZE)
    store.expect_newest_first()
    for number in (2, 3, 4):
        put(store, [number], SIZE)
    store = open_store()
    assert numbers(store) == [1, 4, 3, 2]
    put(store, [5], SIZE)
    assert numbers(open_store()) == [1, 4, 3, 2, 5]
