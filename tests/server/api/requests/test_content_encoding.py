"""Bodies that are sent compressed: read as what they were, in bounded memory, or refused by a 4xx that says why."""

import gzip
import json
import zlib

import pytest
import zstandard
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from server.api.requests import content_encoding
from server.api.requests.content_encoding import MAX_CODINGS, MAX_MEMBERS, codings_of, decoded, decoded_size
from server.errors import ApiError, BodyTooLarge, InvalidRequest, UnsupportedMediaType
from tests.drawn import drawn
from tests.server.api.scripted import Server, run

BODY = json.dumps({"prompt": "a", "max_tokens": 1}).encode()
LIMIT = 64 * 1024


def bare(data):
    compressor = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return compressor.compress(data) + compressor.flush()


def zstd(data):
    return zstandard.ZstdCompressor().compress(data)


def gz(data: bytes) -> bytes:
    """The same at any time."""
    return gzip.compress(data, mtime=0)


ENCODE = {"gzip": gz, "deflate": zlib.compress, "zstd": zstd}
SKIPPABLE = b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd"


def posted(body, *encodings, **settings):
    headers = [("content-type", "application/json"), *(("content-encoding", value) for value in encodings)]

    async def ask():
        server = Server(**settings)
        answers = [
            await server.client.post(path, content=body, headers=headers)
            for path in ("/v1/completions", "/tokenize")  # one reads the body for all of them
        ]
        assert server.engine.open_count == 0
        return answers

    return run(ask)


@pytest.mark.parametrize(
    ("encodings", "body"),
    [
        (["gzip"], gz(BODY)),
        (["GZip"], gz(BODY)),
        (["x-gzip"], gz(BODY)),
        (["gzip"], gz(BODY[:9]) + gz(b"") + gz(BODY[9:])),
        (["deflate"], zlib.compress(BODY)),
        (["deflate"], zlib.compress(BODY, level=0)),
        (["deflate"], bare(BODY)),
        (["zstd"], zstd(BODY)),
        (["zstd"], zstd(BODY[:9]) + SKIPPABLE + zstd(BODY[9:])),
        (["identity"], BODY),
        ([""], BODY),
        ([" gzip ,, Identity"], gz(BODY)),
        (["gzip, deflate"], zlib.compress(gz(BODY))),
        (["deflate", "gzip"], gz(zlib.compress(BODY))),
        (["gzip"], gz(b"\xef\xbb\xbf" + BODY)),
    ],
)
def test_a_body_is_read_as_what_it_was(encodings, body):
    completion, tokens = posted(body, *encodings)
    assert completion.status_code == 200, completion.text
    assert tokens.status_code == 400 and tokens.json()["error"]["param"] == "max_tokens"  # it was read there too


@pytest.mark.parametrize(
    ("encoding", "body", "words"),
    [
        ("gzip", BODY, "is not gzip"),
        ("gzip", b"", "ends too early"),
        ("gzip", gz(BODY)[:-1], "ends too early"),
        ("gzip", gz(BODY)[:20], "ends too early"),
        ("gzip", gz(BODY)[:-8] + bytes(8), "is not gzip"),  # its checksum and length
        ("gzip", gz(BODY) + b"x", "ends too early"),
        ("gzip", gz(BODY) + bytes(300), "is not gzip"),
        ("gzip", zlib.compress(BODY), "is not gzip"),
        ("gzip", gz(b"") * (MAX_MEMBERS + 1), f"over {MAX_MEMBERS} parts"),
        ("deflate", BODY, "is not deflate"),
        ("deflate", zlib.compress(BODY)[:-1], "ends too early"),
        ("deflate", bare(BODY)[:-1], "ends too early"),
        ("deflate", zlib.compress(BODY) + b"x", "stands behind its end"),
        ("deflate", zlib.compress(BODY) * 2, "stands behind its end"),
        ("deflate", zlib.compressobj(zdict=b"prompt").compress(BODY) + bytes(9), "is not deflate"),
        ("zstd", BODY, "is not zstd"),
        ("zstd", zstd(BODY)[:-1], "ends too early"),
        ("zstd", zstd(BODY) + b"x" * 9, "is not zstd"),
        ("gzip, deflate", gz(zlib.compress(BODY)), "is not deflate"),
        ("identity", gz(BODY), "is not UTF-8"),
    ],
)
def test_what_is_not_what_the_header_says_is_refused(encoding, body, words):
    for answer in posted(body, encoding):
        assert answer.status_code == 400 and words in answer.json()["error"]["message"]


def test_a_zstd_frame_may_not_ask_for_any_window_it_likes():
    parameters = zstandard.ZstdCompressionParameters(window_log=27)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    assert "too much memory" in posted(compressor.compress(BODY) + compressor.flush(), "zstd")[0].text


@pytest.mark.parametrize("encoding", ["br", "compress", "gzip, br", "gzip;q=1", "gzip gzip", "*", "\x01é"])
def test_another_coding_is_refused_by_name(encoding):
    for answer in posted(BODY, encoding.encode("latin-1")):
        assert answer.status_code == 415
        assert answer.headers["accept-encoding"] == "gzip, deflate, zstd"
        assert "gzip, deflate, zstd" in answer.json()["error"]["message"]


def test_codings_do_not_pile_up():
    assert codings_of(["gzip,gzip", "gzip"]) == ["gzip"] * MAX_CODINGS
    with pytest.raises(UnsupportedMediaType, match="at most 3 codings, got 1000"):
        codings_of(["gzip"] * 1000)


@pytest.mark.parametrize("name", ENCODE)
def test_the_limit_is_of_what_a_body_becomes(name):
    whole = ENCODE[name](bytes(LIMIT))
    assert decoded_size(whole, [name], LIMIT) == LIMIT and decoded(whole, [name], LIMIT) == bytes(LIMIT)
    for function in (decoded_size, decoded):
        with pytest.raises(BodyTooLarge, match=f"limit .max_body_bytes. is {LIMIT}"):
            function(ENCODE[name](bytes(LIMIT + 1)), [name], LIMIT)


@pytest.mark.parametrize("name", ENCODE)
def test_a_bomb_is_refused_at_the_limit_and_costs_no_more_than_it(name, monkeypatch):
    bomb, came_out = ENCODE[name](bytes(20 * 2**20)), 0
    members = content_encoding._members

    def counted(parts, coding):
        nonlocal came_out
        for part in members(parts, coding):
            came_out += len(part)
            yield part

    monkeypatch.setattr(content_encoding, "_members", counted)
    for answer in posted(bomb, name, max_body_bytes=2**20):
        assert answer.status_code == 413 and answer.json()["error"]["code"] == "body_too_large"
    assert came_out <= 2 * (2**20 + 4 * 2**20), "of each: the limit and a step"


def test_what_lies_between_two_codings_is_limited_too():
    between = gz(b"") * 100  # becomes nothing
    assert decoded(gz(between), ["gzip", "gzip"], len(between)) == b""
    with pytest.raises(BodyTooLarge):
        decoded(gz(between), ["gzip", "gzip"], len(between) - 1)


@given(data=st.data())
@hypothesis_settings(max_examples=drawn(60))
def test_any_bytes_are_decoded_or_refused(data):
    codings = data.draw(st.lists(st.sampled_from(sorted(ENCODE)), min_size=1, max_size=2))
    body = data.draw(st.binary(max_size=400))
    whole = body
    for name in codings:
        whole = ENCODE[name](whole)
    assert decoded(whole, codings, LIMIT) == body and decoded_size(whole, codings, LIMIT) == len(body)
    broken = bytearray(whole)
    broken[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
    for wrong in (bytes(broken), whole[: data.draw(st.integers(0, len(whole) - 1))], body):
        try:
            decoded(wrong, codings, LIMIT)
        except ApiError as error:
            assert isinstance(error, InvalidRequest | BodyTooLarge)
