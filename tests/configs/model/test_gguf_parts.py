"""Parts of a split model: their names, what they make together, and what is refused, by the gguf package's own writer."""

import re
import shutil
import struct

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.model import gguf_header
from configs.model.gguf_header import keeping_gguf_headers, read_gguf_header
from configs.model.gguf_parts import PartName, first_part, model_stem
from configs.model.source import ModelError, resolve_model

TENSORS = {f"blk.{layer}.w": np.full((4, 32), layer, np.float32) for layer in range(5)}


def write(path, tensors=None, **split):
    writer = gguf.GGUFWriter(path, "llama", **split)
    writer.add_name("a model")
    writer.add_array("tokenizer.ggml.tokens", ["a", "b"])
    for name, values in (TENSORS if tensors is None else tensors).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def parts(tmp_path):
    """Three parts of two, two and one tensors."""
    write(tmp_path / "m.gguf", split_max_tensors=2)
    return [tmp_path / f"m-{number:05d}-of-00003.gguf" for number in (1, 2, 3)]


def refused(path):
    with pytest.raises(ModelError) as caught:
        read_gguf_header(path)
    sentence = str(caught.value)
    assert sentence.endswith(".") and "\n" not in sentence
    return sentence


def changed(path, key, value):
    """The file with another number of 16 or 32 bits under this key."""
    content = bytearray(path.read_bytes())
    place = content.index(key.encode()) + len(key)
    size = 2 if content[place] in (2, 3) else 4
    content[place + 4 : place + 4 + size] = value.to_bytes(size, "little")
    path.write_bytes(content)


@given(st.text(min_size=1).filter(lambda text: "/" not in text and "\0" not in text), st.data())
def test_a_name_says_which_part_a_file_is(stem, data):
    count = data.draw(st.integers(1, 99_999))
    number = data.draw(st.integers(1, count))
    part = PartName(stem, number, count)
    assert PartName.of(gguf_header.Path(part.file(number))) == part
    assert part.file(1).endswith(f"-00001-of-{count:05d}.gguf")


@pytest.mark.parametrize(
    "name",
    ["m.gguf", "m-1-of-3.gguf", "m-00004-of-00003.gguf", "m-00000-of-00003.gguf", "-00001-of-00003.gguf", "m-00001-of-00003.bin"],
)  # fmt: skip
def test_other_names_are_of_no_part(name, tmp_path):
    path = tmp_path / name
    assert PartName.of(path) is None
    assert first_part(path) == path and model_stem(path) == path.stem


@pytest.mark.parametrize("split", [{"split_max_tensors": 2}, {"split_max_size": 600}])
def test_all_parts_make_one_header_whichever_is_named(tmp_path, split):
    whole = read_gguf_header(write(tmp_path / "whole.gguf"))
    write(tmp_path / "m.gguf", **split)
    places = sorted(tmp_path.glob("m-*.gguf"))
    assert len(places) >= 3
    for place in places:
        header = read_gguf_header(place)
        assert header.path == places[0]
        assert {key: header.metadata[key] for key in whole.metadata} == whole.metadata
        assert header.tensors.keys() == TENSORS.keys()
        assert {info.path for info in header.tensors.values()} == set(places)
        for name, values in TENSORS.items():
            info = header.tensors[name]
            assert np.array_equal(np.fromfile(info.path, np.float32, 128, offset=info.offset).reshape(4, 32), values)


def test_a_first_part_without_tensors(tmp_path):
    write(tmp_path / "m.gguf", split_max_tensors=3, small_first_shard=True)
    header = read_gguf_header(tmp_path / "m-00002-of-00003.gguf")
    assert header.path.name == "m-00001-of-00003.gguf" and header.tensors.keys() == TENSORS.keys()
    assert header.path not in {info.path for info in header.tensors.values()}


def test_each_part_is_the_model_of_one_name(parts):
    for part in parts:
        source = resolve_model(str(part))
        assert (source.path, source.name, source.kind) == (parts[0], "m", "gguf")


def test_a_whole_model_may_be_named_like_a_part(tmp_path):
    path = write(tmp_path / "m-00002-of-00003.gguf")
    assert resolve_model(str(path)).path == path
    assert read_gguf_header(path).tensors.keys() == TENSORS.keys()


def test_missing_parts_are_named(parts):
    parts[1].unlink()
    assert "m-00002-of-00003.gguf cannot be found" in refused(parts[0])
    parts[0].unlink()
    assert "m-00001-of-00003.gguf, m-00002-of-00003.gguf cannot be found" in refused(resolve_model(str(parts[2])).path)


def test_of_many_missing_parts_three_are_named(tmp_path, parts):
    lonely = tmp_path / "m-00001-of-65535.gguf"
    shutil.copy(parts[0], lonely)
    changed(lonely, "split.count", 65535)
    assert "m-00004-of-65535.gguf and 65531 more cannot be found" in refused(lonely)


def test_a_part_under_another_name_is_refused(tmp_path, parts):
    for name in ("other.gguf", "m-00001-of-00002.gguf"):
        shutil.copy(parts[0], tmp_path / name)
        assert "-00001-of-00003.gguf and so on" in refused(tmp_path / name)


@pytest.mark.parametrize("named", [0, 2])
def test_parts_that_have_changed_places_are_refused(parts, named):
    aside = parts[1].rename(parts[1].with_suffix(".aside"))
    parts[2].rename(parts[1])
    aside.rename(parts[2])
    assert re.search(
        r"m-00002-of-00003\.gguf says that it is part 3 of 3 .* not part 2 of 3.*mixed up", refused(parts[named])
    )


def test_a_part_that_is_there_twice_is_refused(parts):
    shutil.copy(parts[1], parts[2])
    assert re.search(r"m-00003-of-00003\.gguf says that it is part 2 of 3", refused(parts[0]))


def test_the_part_of_another_count_is_refused(parts):
    changed(parts[2], "split.count", 4)
    assert re.search(r"m-00003-of-00003\.gguf says that it is part 3 of 4", refused(parts[0]))


def test_a_whole_model_in_the_place_of_a_part_is_refused(parts):
    write(parts[1])
    assert re.search(r"m-00002-of-00003\.gguf is no part", refused(parts[0]))


def test_a_part_of_another_model_is_refused(tmp_path, parts):
    """By its tensors: it has one that is there already, or there are fewer or more than were announced."""
    names = list(TENSORS)
    other = dict(zip(["blk.0.w", *names[1:]], TENSORS.values(), strict=True))
    write(tmp_path / "n.gguf", other, split_max_tensors=2)
    shutil.copy(tmp_path / "n-00001-of-00003.gguf", parts[1])
    changed(parts[1], "split.no", 1)
    assert re.search(
        r"m-00001-of-00003\.gguf and m-00002-of-00003\.gguf both have the tensor blk\.0\.w", refused(parts[0])
    )


def test_parts_that_announce_another_number_of_tensors_are_refused(tmp_path, parts):
    changed(parts[1], "split.tensors.count", 6)
    assert re.search(r"m-00002-of-00003\.gguf has another split\.tensors\.count", refused(parts[0]))
    for part in parts:
        changed(part, "split.tensors.count", 6)
    assert "have 5 tensors, not the 6" in refused(parts[0])


def test_a_part_that_is_damaged_or_of_no_header_is_refused_by_its_name(parts):
    parts[2].write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 1, 0))
    assert re.search(r"m-00003-of-00003\.gguf is damaged", refused(parts[0]))
    parts[2].write_bytes(b"nonsense")
    assert re.search(r"m-00003-of-00003\.gguf is not a GGUF file", refused(parts[0]))


def test_each_part_is_parsed_once_while_headers_are_kept(parts, monkeypatch):
    parsed, parse = [], gguf_header.read_gguf_file
    monkeypatch.setattr(gguf_header, "read_gguf_file", lambda path, data: parsed.append(path) or parse(path, data))
    with keeping_gguf_headers():
        for part in (*parts, parts[0]):
            read_gguf_header(part)
    assert sorted(parsed) == parts
