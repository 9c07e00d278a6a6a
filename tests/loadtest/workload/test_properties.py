"""Sharing, columns, drawn lengths and crowds against straightforward computations."""

import json
from datetime import UTC, datetime, timedelta, timezone
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtest.workload.crowd import crowd
from loadtest.workload.plan import LoadShape, Planned
from loadtest.workload.sharing import Shared
from loadtest.workload.traces import Trace, TraceRequest
from loadtest.workload.traces.read import by_columns, read_trace
from loadtest.workload.traces.synthetic import synthetic
from tests.drawn import drawn

SIZE = 10  # tokens of a block
FEW = st.text("ab", max_size=6)


def common(one, other) -> int:
    """How many leading parts are equal."""
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(map(len, (one, other))))


def planned(index: int, kind: str, value: object) -> Planned:
    more: dict[str, object] = {"prompt_tokens": 0, "output_tokens": 1, "index": index, "intended": 0.0}
    if kind == "text":
        more |= {"prompt": value}
    elif kind == "blocks":
        more |= {"blocks": tuple(value), "block_tokens": SIZE, "prompt_tokens": SIZE * len(value)}
    elif kind == "session":
        more |= {"session": value[0], "prompt_tokens": value[1]}
    else:
        more |= {"prompt_tokens": value}
    return Planned(**more)


PROMPTS = st.lists(
    st.tuples(st.just("text"), FEW.filter(bool))
    | st.tuples(st.just("blocks"), st.lists(st.integers(0, 2), min_size=1, max_size=5))
    | st.tuples(st.just("session"), st.tuples(st.sampled_from("xy"), st.integers(1, 60)))
    | st.tuples(st.just("own"), st.integers(1, 60)),
    max_size=12,
)


@given(PROMPTS, st.integers(0, 8))
def test_what_is_shared_is_the_most_that_any_earlier_prompt_has_in_common(prompts, base):
    known = Shared(base)
    for at, (kind, value) in enumerate(prompts):
        request = planned(at, kind, value)
        length = 7 * len(value) if kind == "text" else request.prompt_tokens
        earlier = [other for same, other in prompts[:at] if same == kind]
        if kind == "text":
            most = max((7 * common(value, other) for other in earlier), default=0)
        elif kind == "blocks":
            most = max((SIZE * common(value, other) for other in earlier), default=0)
        elif kind == "session":
            most = max((tokens for name, tokens in earlier if name == value[0]), default=0)
        else:
            most = 0
        assert known.tokens(request, length) == min(length, max(most, base if at else 0))


# --- columns ---

NAMES = st.text(st.characters(exclude_categories=["Cs", "Cc", "Z"], exclude_characters=",:."), min_size=1, max_size=6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("columns")


def read(folder, rows: list[dict[str, object]], columns: str) -> list[TraceRequest]:
    path = folder / "trace"
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    return read_trace(path, by_columns(columns), strict=True).requests


@settings(max_examples=drawn(40))
@given(st.lists(NAMES, min_size=4, max_size=4, unique=True), st.booleans(), st.integers(1, 2**31 - 1))
def test_columns_may_have_any_names_and_stand_anywhere(folder, names, dotted, tokens):
    when, prompt, output, outer = names
    row = {when: 3, prompt: tokens, outer: {output: 7}}
    if dotted:  # the name itself has a dot
        row = {when: 3, prompt: tokens, f"{outer}.{output}": 7}
    (found,) = read(folder, [row], f"time={when},input={prompt},output={outer}.{output}")
    assert (found.arrival, found.prompt_tokens, found.output_tokens) == (0, tokens, 7)


STAMPS = st.datetimes(datetime(1990, 1, 1), datetime(2100, 1, 1))


@settings(max_examples=drawn(40))
@given(st.lists(st.tuples(STAMPS, st.integers(-14, 14)), min_size=1, max_size=6), st.booleans())
def test_stamps_of_any_zones_are_as_far_apart_as_they_are(folder, stamps, zoned):
    utc = [stamp.replace(tzinfo=UTC) for stamp, _ in stamps]
    texts = [
        at.astimezone(timezone(timedelta(hours=hours))).isoformat() if zoned else at.replace(tzinfo=None).isoformat(" ")
        for at, (_, hours) in zip(utc, stamps, strict=True)
    ]
    found = read(folder, [{"t": text, "i": 1, "o": 1} for text in texts], "time=t,input=i,output=o")
    wanted = sorted((at - min(utc)).total_seconds() for at in utc)
    assert [each.arrival for each in found] == pytest.approx(wanted, abs=1e-5)


def clocks(folder, times: list[float]) -> list[float]:
    texts = [f"{int(at) // 3600 % 24:02}:{int(at) // 60 % 60:02}:{int(at) % 60:02}" for at in times]
    found = read(folder, [{"t": text, "i": 1, "o": 1} for text in texts], "time=t,input=i,output=o")
    return [each.arrival for each in found]


@settings(max_examples=drawn(40))
@given(st.integers(0, 86_399), st.lists(st.integers(0, 43_199), max_size=12))
def test_times_of_day_go_on_over_every_midnight(folder, start, gaps):
    times = [start]
    for gap in gaps:
        times.append(times[-1] + gap)
    assert clocks(folder, times) == [at - start for at in times]


def test_rows_around_midnight_need_not_be_in_order(folder):
    midnight = 86_400
    times = [midnight - 2, midnight + 1, midnight - 1, midnight + 3, midnight - 1, midnight + 4]
    assert clocks(folder, times) == [0, 1, 1, 3, 5, 6]


# --- drawn lengths, crowds ---

LENGTHS = st.one_of(
    st.integers(1, 300).map(lambda n: (f"{n}", n, n)),
    st.tuples(st.integers(1, 300), st.integers(0, 300)).map(lambda p: (f"{p[0]}-{sum(p)}", p[0], sum(p))),
    st.tuples(st.integers(1, 300), st.floats(0, 99)).map(lambda p: (f"{p[0]}±{p[1]:.2f}", 1, p[0] + 8 * p[1] + 1)),
)


@settings(max_examples=drawn(40))
@given(LENGTHS, LENGTHS, st.integers(0, 50), st.integers(0, 5))
def test_drawn_lengths_are_within_what_was_described_and_blocks_fit_them(prompt, output, prefix, seed):
    text = f"prompt={prompt[0]},output={output[0]}" + (f",prefix={prefix}" if prefix else "")
    requests = synthetic(text, 30, seed).requests
    assert all(prompt[1] <= each.prompt_tokens - prefix <= prompt[2] for each in requests)
    assert all(output[1] <= each.output_tokens <= output[2] for each in requests)
    if prefix:
        assert all(len(each.blocks) == -(-each.prompt_tokens // prefix) for each in requests)
        own = [block for each in requests for block in each.blocks[1:]]
        assert {each.blocks[0] for each in requests} == {0} and len(own) == len({0, *own}) - 1


@settings(max_examples=drawn(12))
@given(st.integers(1, 5), st.integers(5, 30), st.integers(0, 20), st.data())
def test_a_crowd_has_of_each_stretch_what_a_run_of_it_alone_shares(times, length, begin, data):
    blocks = data.draw(st.lists(st.lists(st.integers(0, 3), min_size=2, max_size=2), min_size=101, max_size=101))
    rows = [
        TraceRequest(
            line=n + 1,
            arrival=float(n),
            prompt_tokens=2 * SIZE,
            output_tokens=1,
            blocks=tuple(ids),
            block_tokens=SIZE,
            session=f"s{ids[0]}",
        )
        for n, ids in enumerate(blocks)
    ]
    trace = Trace(name="t", format="own", requests=rows)
    load = LoadShape(window=(float(begin), float(begin + length)))
    together = crowd(trace, load, times).requests
    assert all(a.intended <= b.intended for a, b in pairwise(together))
    assert all(0 <= each.intended < length for each in together)
    parts: dict[str, list[Planned]] = {}
    for each in together:
        parts.setdefault(each.session.partition(" #")[2], []).append(each)
    assert len(parts) == times
    ids = [{block for each in part for block in each.blocks} for part in parts.values()]
    assert len(set().union(*ids)) == sum(map(len, ids)), "stretches share nothing"
    for part in parts.values():
        original = [rows[each.line - 1] for each in part]
        firsts = {each.blocks[0]: row.blocks[0] for each, row in zip(part, original, strict=True)}
        assert len(firsts) == len(set(firsts.values())), "and each shares what it did"
        assert [each.line for each in part] == list(range(part[0].line, part[0].line + len(part)))
