"""The disk store over a disk that fails: what is lost, what stays, and that nothing wrong is served."""

import errno
import os
import shutil
from contextlib import suppress
from pathlib import Path

import pytest

from engine.kv_store.disk.disk_store import DiskStore
from engine.kv_store.disk.filesystem import Filesystem
from engine.kv_store.disk.record import PAGE, size_of
from engine.kv_store.store import StoreLost
from tests.engine.kv_store.disk.disk_parts import (
    SIZE,
    SLOT,
    Faulty,
    Shrink,
    content,
    flip,
    get,
    numbers,
    put,
    segments,
)


@pytest.mark.parametrize("call", ["lock", "claim_folder", "open"])
@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EIO])
def test_a_folder_that_cannot_be_used_is_lost_and_let_go(open_store, call, code):
    put(open_store(), [1], SIZE)
    with pytest.raises(StoreLost, match=os.strerror(code)):
        open_store(filesystem=Faulty(refuse={call: code}))
    assert numbers(open_store()) == [1]


def replace(folder):
    """By an empty one, as a mount or a deployment does."""
    folder.rename(folder.with_name("moved"))
    folder.mkdir()


def make_again(folder):
    shutil.rmtree(folder)
    folder.mkdir()


def put_copy(folder):
    """The same files by name, others by content."""
    shutil.copytree(folder, folder.with_name("copy"))
    replace(folder)
    folder.rmdir()
    folder.with_name("copy").rename(folder)


def remove_inside(folder):
    for path in folder.rglob("*.blocks"):
        path.unlink()


def put_file(folder):
    shutil.rmtree(folder)
    folder.write_text("")


GONE = [
    shutil.rmtree,
    make_again,
    replace,
    put_copy,
    put_file,
    remove_inside,
    lambda folder: folder.rename(folder.with_name("moved")),
    lambda folder: shutil.rmtree(next(folder.glob("kv-*"))),
    lambda folder: (folder / "headrace.lock").unlink(),
]
NAMES = ["deleted", "made again", "replaced", "a copy", "a file", "emptied", "moved", "its subfolder", "its lock"]


@pytest.mark.parametrize("change", GONE, ids=NAMES)
@pytest.mark.parametrize("call", ["put", "get", "check"])
def test_a_folder_that_is_no_longer_the_one_that_was_opened_loses_the_store(tmp_path, change, call):
    store = DiskStore(tmp_path / "kv", block_bytes=SIZE, fingerprint="model", limit_bytes=64 * SLOT)
    put(store, [1, 2], SIZE)
    change(tmp_path / "kv")
    calls = {"put": lambda: put(store, [3], SIZE), "get": lambda: get(store, [1, 2], SIZE), "check": store.check}
    for each in (call, *calls):
        with pytest.raises(StoreLost, match=r"cannot be reached: .* was deleted or replaced"):
            calls[each]()
    for held in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            assert tmp_path not in held.readlink().parents, "deleted files take space as long as they are open"
    store.check_integrity()
    store.close()


def test_a_folder_that_cannot_be_looked_at_loses_the_store(open_store, tmp_path):
    class Shut(Filesystem):
        shut = False

        def is_at(self, file, path):
            if self.shut:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            return super().is_at(file, path)

    filesystem = Shut()
    store = open_store(filesystem=filesystem)
    put(store, [1], SIZE)
    store.check()
    filesystem.shut = True
    with pytest.raises(StoreLost, match="cannot be reached: Permission denied"):
        store.check()
    assert get(open_store(), [1], SIZE) == [True]


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


def test_direct_access_ends_where_a_request_is_not_of_pages(tmp_path):
    filesystem = Filesystem()
    file = filesystem.open(tmp_path / "file")
    data = memoryview(bytearray(b"abcdefg"))
    filesystem.write_all(file, [data[:3], data[3:]], 5)
    back = memoryview(bytearray(20))
    assert filesystem.read(file, [back[:6], back[6:]], 4) == 8
    assert bytes(back) == b"\0abcdefg".ljust(20, b"\0")
    filesystem.close(file)
