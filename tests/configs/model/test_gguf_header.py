"""The header reader against the gguf package's writer, and against damaged files."""

import re
import struct

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from configs.model import gguf_header
from configs.model.gguf_file import GgufTexts
from configs.model.gguf_header import keeping_gguf_headers, read_gguf_header
from configs.model.source import ModelError
from tests.drawn import drawn

SCALARS = {
    "a.u8": ("uint8", 200),
    "a.i8": ("int8", -100),
    "a.u16": ("uint16", 60000),
    "a.i16": ("int16", -30000),
    "a.u32": ("uint32", 4_000_000_000),
    "a.i32": ("int32", -2_000_000_000),
    "a.f32": ("float32", 0.5),
    "a.f64": ("float64", 0.1),
    "a.u64": ("uint64", 2**63),
    "a.i64": ("int64", -(2**62)),
    "a.yes": ("bool", True),
    "a.text": ("string", "naïve ☕"),
}
ARRAYS = {"b.ints": [1, 2, 3], "b.floats": [0.5, -1.0], "b.texts": ["", "a", "é"], "b.flags": [True, False]}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "a.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for key, (kind, value) in SCALARS.items():
        getattr(writer, f"add_{kind}")(key, value)
    for key, values in ARRAYS.items():
        writer.add_array(key, values)
    writer.add_tensor("first", np.arange(6, dtype=np.float32).reshape(2, 3))
    writer.add_tensor("second", np.arange(5, dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_reads_every_type_of_value(written):
    metadata = read_gguf_header(written).metadata
    assert metadata["general.architecture"] == "llama"
    for key, (_, value) in SCALARS.items():
        assert metadata[key] == value
        assert type(metadata[key]) is type(value)
    assert {key: metadata[key] for key in ARRAYS} == ARRAYS


def test_texts_are_a_list_of_strings_that_are_decoded_when_they_are_asked_for(written):
    texts = read_gguf_header(written).metadata["b.texts"]
    assert isinstance(texts, GgufTexts)
    assert (len(texts), texts[2], texts[-1], list(texts)) == (3, "é", "é", ["", "a", "é"])
    assert texts == ["", "a", "é"] and texts != ["", "a"] and texts[1:] == ["a", "é"] and "a" in texts
    assert isinstance(texts[:2], GgufTexts) and repr(texts) == "['', 'a', 'é']"
    assert GgufTexts([b"\xff"])[0] == "\ufffd"


def test_places_tensors(written):
    tensors = read_gguf_header(written).tensors
    data = written.read_bytes()
    first, second = tensors["first"], tensors["second"]
    assert (first.shape, first.ggml_type, first.elements) == ((2, 3), gguf.GGMLQuantizationType.F32, 6)
    assert np.frombuffer(data, np.float32, 6, first.offset).tolist() == [0, 1, 2, 3, 4, 5]
    assert np.frombuffer(data, np.float16, 5, second.offset).tolist() == [0, 1, 2, 3, 4]


def test_agrees_with_the_gguf_package_on_the_embedded_model(smollm2_source):
    header = read_gguf_header(smollm2_source.path)
    assert len(header.metadata["tokenizer.ggml.tokens"]) == 49152
    assert len(header.metadata["tokenizer.ggml.merges"]) == 48900
    assert header.metadata["llama.attention.head_count_kv"] == 3
    assert len(header.tensors) == 272
    last = max(header.tensors.values(), key=lambda info: info.offset)
    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(last.ggml_type)]
    assert last.offset + last.elements // block * size == smollm2_source.path.stat().st_size


def refused(tmp_path, content):
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelError) as caught:
        read_gguf_header(path)
    assert "bad.gguf" in str(caught.value)
    return str(caught.value)


HUGE = struct.pack("<Q", 2**62)


def head(tensors=0, values=0, version=3):
    return b"GGUF" + struct.pack("<IQQ", version, tensors, values)


def entry(key, kind):
    return struct.pack("<Q", len(key)) + key + struct.pack("<I", kind)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a GGUF file"),
        (b"GGUF", "damaged"),
        (b"PK\x03\x04" + bytes(100), "not a GGUF file"),
        (head(version=1), "version 1"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
        (head(values=2**60), "metadata entries"),
        (head(tensors=2**60), "tensors"),
        (head(values=1) + HUGE + bytes(64), "characters"),
        (head(values=1) + entry(b"key", 77) + bytes(64), "unknown value type 77"),
        (head(values=1) + entry(b"key", 8) + HUGE + bytes(64), "characters"),
        (head(values=1) + entry(b"key", 9) + struct.pack("<I", 4) + HUGE + bytes(64), "values"),
        (head(values=1) + entry(b"key", 9) + struct.pack("<I", 8) + HUGE + bytes(64), "strings"),
        (head(values=1) + entry(b"key", 9) + struct.pack("<IQ", 8, 1) + HUGE, "cut off"),
        (head(values=1) + entry(b"key", 9) + struct.pack("<IQ", 9, 1) * 50 + bytes(64), "array type"),
        (head(values=1) + entry(b"general.alignment", 4) + struct.pack("<I", 33), "power of two"),
        (head(values=1) + entry(b"split.count", 2) + struct.pack("<H", 3) + bytes(32), "one of 3 parts"),
        (head(tensors=1) + struct.pack("<Q", 1) + b"t" + struct.pack("<I", 10**9) + bytes(64), "dimensions"),
        (head(tensors=1) + struct.pack("<Q", 1) + b"t" + struct.pack("<IQIQ", 1, 0, 0, 0) + bytes(64), "empty"),
        (head(tensors=1) + struct.pack("<Q", 1) + b"t" + struct.pack("<IQIQ", 1, 8, 0, 2**50) + bytes(64), "end"),
    ],
)
def test_refuses_damage_with_a_reason(tmp_path, content, message):
    assert re.search(message, refused(tmp_path, content))


def test_a_tensor_listed_twice_is_refused(tmp_path):
    one = struct.pack("<Q", 1) + b"t" + struct.pack("<IQIQ", 1, 8, 0, 0)
    assert "twice" in refused(tmp_path, head(tensors=2) + one * 2 + bytes(128))


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ModelError, match="No such file"):
        read_gguf_header(tmp_path / "none.gguf")


@settings(max_examples=drawn(200), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_damaged_header_is_read_or_refused(tmp_path, written, data):
    """Any cut and any flipped byte: a header or a ModelError, nothing else, at once."""
    content = bytearray(written.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)))]
    path = tmp_path / "bad.gguf"
    path.write_bytes(bytes(content))
    try:
        read_gguf_header(path)
    except ModelError as error:
        assert str(path) in str(error)


def test_a_header_is_parsed_once_while_it_is_kept_and_again_when_the_file_changes(tmp_path, monkeypatch):
    path, parsed = tmp_path / "m.gguf", []
    parse = gguf_header.read_gguf_file
    monkeypatch.setattr(gguf_header, "read_gguf_file", lambda path, data: parsed.append(path) or parse(path, data))

    def write(name: str) -> None:
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_name(name)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()

    write("one")
    with keeping_gguf_headers():
        first = read_gguf_header(path)
        assert read_gguf_header(path) is first and len(parsed) == 1
        write("another")
        assert read_gguf_header(path).metadata["general.name"] == "another" and len(parsed) == 2
    assert read_gguf_header(path) is not read_gguf_header(path) and len(parsed) == 4
    with keeping_gguf_headers():
        read_gguf_header(path)
    assert len(parsed) == 5


def test_what_is_refused_is_not_kept(tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(b"nonsense")
    with keeping_gguf_headers():
        for _ in range(2):
            with pytest.raises(ModelError, match="not a GGUF file"):
                read_gguf_header(path)
