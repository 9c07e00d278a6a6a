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

from engine.kv_store import disk
from engine.kv_store.disk import DiskStore
from engine.kv_store.filesystem import Filesystem
from engine.kv_store.record import PAGE, size_of
from engine.kv_store.store import Rows, StoreLost, StoreRefused
from scheduler.moves import Label
from tests.engine.kv_store.disk_parts import Faulty, Shrink, content, get, label, number_of, put, rows

ROOT = Path(__file__).parents[3]
SIZE = 2 * PAGE
SLOT = size_of(SIZE)


@pytest.fixture
def open_store(tmp_path):
    """Opens stores in one folder; each is checked and closed before the next, and at the end."""
    current: list[DiskStore] = []

    def end() -> None:
        while current:
            current[-1].check_integrity()
            current.pop().close()

    def start(*, size: int = SIZE, blocks: int = 64, fingerprint: str = "model", **other) -> DiskStore:
        end()
        limit = blocks * size_of(size)
        store = DiskStore(tmp_path / "kv", block_bytes=size, fingerprint=fingerprint, limit_bytes=limit, **other)
        current.append(store)
        store.check_integrity()
        return store

    yield start
    end()


def numbers(store: DiskStore) -> list[int]:
    return [number_of(kept.label) for kept in store.kept()]


def segments(folder: Path) -> list[Path]:
    return sorted(folder.glob("kv/kv-*/*.blocks"))


@pytest.mark.parametrize("aligned", [True, False], ids=["on pages", "off pages"])
@pytest.mark.parametrize("size", [1, 100, PAGE, 5000, 3 * PAGE])
@pytest.mark.parametrize("direct", [True, False], ids=["direct", "through the page cache"])
def test_blocks_come_back_as_they_went_in(open_store, size, aligned, direct, monkeypatch):
    if not direct:
        monkeypatch.setattr("engine.kv_store.filesystem._DIRECT", 0)
    store = open_store(size=size)
    source, target = rows(5, size, aligned=aligned), rows(5, size, aligned=aligned)
    source.pool[:] = 7
    source.pool[:, 0] += torch.arange(5, dtype=torch.uint8)
    labels = [label(number) for number in range(5)]
    assert store.put(labels, source) == [size_of(size)] * 5
    assert store.get([*reversed(labels)], Rows(target.pool, [4, 3, 2, 1, 0])) == [True] * 5
    assert target.pool.equal(source.pool)
    assert store.bytes_written == store.bytes_read == store.taken == 5 * size_of(size)


def test_only_the_named_rows_are_read_and_written(open_store):
    store = open_store()
    pool = rows(4, SIZE).pool
    pool[2] = 9
    store.put([label(1)], Rows(pool, [2]))
    assert store.get([label(1)], Rows(pool, [0])) == [True]
    assert pool[:, 0].tolist() == [9, 0, 9, 0]


def test_what_is_not_there_is_a_miss(open_store):
    store = open_store()
    put(store, [1, 2], SIZE)
    store.drop([label(1).key, b"never seen"])
    assert get(store, [1, 2, 3], SIZE) == [False, True, False]
    assert store.taken == SLOT and store.damaged == 0


def test_an_equal_key_with_other_ids_is_a_miss_and_stays(open_store):
    store = open_store()
    put(store, [1], SIZE)
    other = Label(label(1).key, (9, 9))
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
    store.drop([label(3).key])
    put(store, [7], SIZE)  # in the slot of 3
    store = open_store()
    assert numbers(store) == [5, 8, 1, 7]
    assert [kept.label for kept in store.kept()] == [label(number) for number in (5, 8, 1, 7)]
    put(store, [2], SIZE)
    assert numbers(store) == [5, 8, 1, 7], "what was there at opening, no more"
    assert get(store, [5, 8, 1, 7, 2], SIZE) == [True] * 5
    assert numbers(open_store()) == [5, 8, 1, 7, 2]


def test_a_content_written_twice_is_kept_once_the_newest(open_store, tmp_path):
    store = open_store()
    put(store, [1], SIZE)
    put(store, [2], SIZE)
    store.drop([label(1).key, label(2).key])
    put(store, [1], SIZE)  # in the slot of 2: the first copy still lies on the disk
    store = open_store()
    assert numbers(store) == [1] and store.taken == SLOT
    with segments(tmp_path)[0].open("r+b") as file:
        file.seek(PAGE)
        file.write(b"the older copy, in the first slot")
    assert get(store, [1], SIZE) == [True]


def test_slots_fill_several_files_and_are_used_again(open_store, tmp_path, monkeypatch):
    monkeypatch.setattr(disk, "_SEGMENT_BYTES", 4 * SLOT)
    store = open_store(blocks=10)
    assert put(store, range(10), SIZE) == [SLOT] * 10
    assert [path.stat().st_size // SLOT for path in segments(tmp_path)] == [4, 4, 2]
    store.drop([label(number).key for number in range(8)])
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
    store.drop([label(5).key])
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
    store.drop([label(1).key])
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
        store.drop([label(number).key for number in short])
        assert all(put(store, [300 * turn + 3 * i + 1 for i in range(6)], size))
        os.sync()
        assert refused or on_disk(tmp_path) <= 6 * size_of(size)
        assert all(get(store, [300 * turn + 3 * i + 1 for i in range(6)], size))
        store.drop([label(300 * turn + 3 * i + 1).key for i in range(6)])
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
from engine.kv_store.disk import DiskStore
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


@pytest.mark.parametrize("call", ["lock", "claim_folder", "open"])
@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EIO])
def test_a_folder_that_cannot_be_used_is_lost_and_let_go(open_store, call, code):
    put(open_store(), [1], SIZE)
    with pytest.raises(StoreLost, match=os.strerror(code)):
        open_store(filesystem=Faulty(refuse={call: code}))
    assert numbers(open_store()) == [1]


def test_a_path_that_is_no_folder_is_lost(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreLost, match="file"):
        DiskStore(tmp_path / "file" / "kv", block_bytes=SIZE, fingerprint="model", limit_bytes=2**20)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EACCES, errno.EDQUOT])
def test_a_failing_write_loses_the_store_and_nothing_that_was_kept(open_store, code):
    filesystem = Faulty()
    store = open_store(filesystem=filesystem)
    put(store, [1, 2], SIZE)
    filesystem.write_faults, filesystem.delay = [code], 0.02
    with pytest.raises(StoreLost, match=os.strerror(code)):
        put(store, range(3, 9), SIZE)
    assert not filesystem.under_way, "no request of a call outlives it"
    for call in (put, get):
        with pytest.raises(StoreLost, match=os.strerror(code)):
            call(store, [1], SIZE)
    store.check_integrity()
    assert all(get(open_store(), [1, 2], SIZE))


def test_a_new_file_that_cannot_be_created_loses_the_store(open_store):
    filesystem = Faulty()
    store = open_store(filesystem=filesystem)
    filesystem.refuse["open"] = errno.ENOSPC
    with pytest.raises(StoreLost, match="No space"):
        put(store, [1], SIZE)


def test_a_write_that_writes_nothing_loses_the_store(open_store):
    store = open_store(filesystem=Faulty(write_faults=[-PAGE, -0]))
    with pytest.raises(StoreLost, match="nothing was written"):
        put(store, [1], SIZE)
    assert not open_store().kept() or get(open_store(), [1], SIZE) == [False]


@pytest.mark.parametrize("first", [1, 100, PAGE, PAGE + 1, 2 * PAGE, SLOT - 1])
def test_short_writes_are_continued(open_store, first):
    store = open_store(filesystem=Faulty(write_faults=[-first, -1, -PAGE]))
    assert put(store, [1], SIZE) == [SLOT]
    assert get(store, [1], SIZE) == [True]
    assert get(open_store(), [1], SIZE) == [True]


@pytest.mark.parametrize("length", [0, 1, PAGE, SLOT - 1])
def test_a_short_read_is_damage(open_store, length):
    filesystem = Faulty()
    store = open_store(filesystem=filesystem)
    put(store, [1, 2], SIZE)
    filesystem.read_faults = [-length]
    assert get(store, [1], SIZE) == [False]
    assert store.damaged == 1 and store.taken == SLOT
    assert get(store, [1], SIZE) == [False], "forgotten"
    assert put(store, [1], SIZE) == [SLOT] and all(get(store, [1, 2], SIZE))


def test_a_block_that_the_disk_cannot_read_is_lost_alone_and_its_slot_rests(open_store, tmp_path):
    filesystem = Faulty()
    store = open_store(filesystem=filesystem)
    put(store, [1], SIZE)
    put(store, [2], SIZE)
    filesystem.read_faults = [errno.EIO]
    assert get(store, [1], SIZE) == [False]
    assert store.damaged == 1 and get(store, [2], SIZE) == [True]
    put(store, [1], SIZE)
    assert segments(tmp_path)[0].stat().st_size == 3 * SLOT, "the bad slot is not written again"
    store = open_store(filesystem=Faulty(read_faults=[errno.EIO]))
    assert store.taken == 2 * SLOT and sorted(numbers(store)) == [1, 2]
    put(store, [3], SIZE)
    assert segments(tmp_path)[0].stat().st_size == 4 * SLOT


@pytest.mark.parametrize("code", [errno.ENODEV, errno.ESTALE])
def test_a_disk_that_is_gone_loses_the_store(open_store, code):
    filesystem = Faulty()
    store = open_store(filesystem=filesystem)
    put(store, [1], SIZE)
    filesystem.read_faults = [code]
    with pytest.raises(StoreLost):
        get(store, [1], SIZE)
    with pytest.raises(StoreLost, match=os.strerror(code)):
        open_store(filesystem=Faulty(read_faults=[code]))


def flip(path: Path, position: int, bit: int = 0) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ 1 << bit]))


HEAD_BYTES = 8 + 8 + 52 + 16 + 16 * 4  # magic, checksum, fixed fields, key, ids


@pytest.mark.parametrize("reopened", [False, True], ids=["while open", "between"])
def test_no_flipped_bit_is_served(open_store, tmp_path, reopened):
    step = 29 if reopened else 5
    positions = [*range(0, HEAD_BYTES, step), HEAD_BYTES - 1, *range(PAGE, SLOT, 997), SLOT - 1]
    store = open_store()
    for count, position in enumerate(positions, 1):
        put(store, [1], SIZE)
        flip(segments(tmp_path)[0], position, count % 8)
        store = open_store() if reopened else store
        assert get(store, [1], SIZE) == [False], f"byte {position}"
        assert reopened or store.damaged == count
        store.check_integrity()


def test_damage_is_found_once(open_store, tmp_path):
    store = open_store()
    put(store, [1], SIZE)
    put(store, [2], SIZE)
    flip(segments(tmp_path)[0], PAGE)
    assert numbers(open_store()) == [1, 2], "only heads are read at opening"
    assert get(open_store(), [1], SIZE) == [False]
    assert numbers(open_store()) == [2]


def test_padding_is_no_part_of_a_block(open_store, tmp_path):
    store = open_store(size=100)
    put(store, [1], 100)
    for position in (HEAD_BYTES, PAGE - 1, PAGE + 100, 2 * PAGE - 1):
        flip(segments(tmp_path)[0], position)
    assert get(store, [1], 100) == [True]


def test_damage_to_a_coded_block_is_found(open_store, tmp_path):
    store = open_store(size=16 * PAGE)
    store.codec = Shrink()
    put(store, [3], 16 * PAGE)
    flip(segments(tmp_path)[0], PAGE + 500)
    assert get(store, [3], 16 * PAGE) == [False] and store.damaged == 1


def test_a_block_that_its_codec_refuses_is_forgotten(open_store):
    class Broken(Shrink):
        def decode(self, data, out):
            super().decode(data[:-1], out)

    store = open_store(size=16 * PAGE, codecs=[Broken()])
    store.codec = Shrink()
    assert put(store, [3], 16 * PAGE)[0] < size_of(16 * PAGE)
    assert get(store, [3], 16 * PAGE) == [False] and store.damaged == 1


@pytest.mark.parametrize("left", [0, 100, PAGE, SLOT + 1, 2 * SLOT, 3 * SLOT - 1])
def test_a_truncated_file_loses_what_was_behind(open_store, tmp_path, left):
    store = open_store(depth=1)
    put(store, range(3), SIZE)
    os.truncate(segments(tmp_path)[0], left)
    store = open_store(depth=1)
    assert get(store, range(3), SIZE) == [number < left // SLOT for number in range(3)]
    assert put(store, range(3, 9), SIZE) == [SLOT] * 6 and all(get(store, range(3, 9), SIZE))


def test_garbage_in_the_folder_is_no_block_and_no_obstacle(open_store, tmp_path):
    put(open_store(), [1], SIZE)
    path = segments(tmp_path)[0]
    garbage = content(1, 3 * SLOT + 77).tobytes()
    path.with_name("000001.blocks").write_bytes(garbage)
    path.with_name("000007.blocks").write_bytes(b"")
    path.with_name("README").write_bytes(garbage)
    path.with_name("000001.blocks.bak").write_bytes(garbage)
    path.with_name("folder").mkdir()
    (tmp_path / "kv" / ("kv-" + "0" * 32)).mkdir()
    with path.open("ab") as file:
        file.write(garbage)
    store = open_store()
    assert numbers(store) == [1] and get(store, [1], SIZE) == [True]
    assert not path.with_name("000001.blocks").exists(), "a file without a block is not worth keeping"
    assert path.with_name("README").read_bytes() == garbage
    assert put(store, range(2, 20), SIZE) == [SLOT] * 18 and all(get(store, range(1, 20), SIZE))


def test_a_link_is_not_followed(open_store, tmp_path):
    put(open_store(), [1], SIZE)
    path = segments(tmp_path)[0]
    (tmp_path / "elsewhere").write_text("precious")
    path.unlink()
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreLost):
        open_store()
    assert (tmp_path / "elsewhere").read_text() == "precious"
    path.unlink()


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
            store.drop([label(number).key for number in mine[turn % 2 :]])
            store.check_integrity()
        return served

    with ThreadPoolExecutor(4) as threads:
        assert min(threads.map(work, range(4))) > 0
    assert store.damaged == 0


def test_rows_of_another_size_are_a_mistake_of_the_caller(open_store):
    store = open_store()
    with pytest.raises(ValueError, match=f"uint8 .*{SIZE}"):
        store.put([label(1)], rows(1, SIZE + 1))
    with pytest.raises(ValueError):
        store.put([label(1), label(2)], rows(1, SIZE))
    with pytest.raises(ValueError, match="at most"):
        store.put([Label(b"k", tuple(range(2000)))], rows(1, SIZE))
    store.check_integrity()


def test_a_closed_store_says_so_and_closes_again(open_store):
    store = open_store()
    put(store, [1], SIZE)
    store.close()
    store.close()
    with pytest.raises(StoreLost, match="closed"):
        get(store, [1], SIZE)


def test_direct_access_ends_where_a_request_is_not_of_pages(tmp_path):
    filesystem = Filesystem()
    file = filesystem.open(tmp_path / "file")
    data = memoryview(bytearray(b"abcdefg"))
    filesystem.write_all(file, [data[:3], data[3:]], 5)
    back = memoryview(bytearray(20))
    assert filesystem.read(file, [back[:6], back[6:]], 4) == 8
    assert bytes(back) == b"\0abcdefg".ljust(20, b"\0")
    filesystem.close(file)
