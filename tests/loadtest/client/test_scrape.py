"""Samples are read as Prometheus and OpenMetrics write them; what is no sample is passed over."""

import asyncio
import math

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.client.scrape import parse_metrics, scrape

NAMES = st.from_regex(r"[a-zA-Z_:][a-zA-Z0-9_:]{0,8}", fullmatch=True).filter(lambda name: not name.endswith("_bucket"))
VALUES = st.floats(allow_nan=False, allow_infinity=False)
LABEL = st.text(st.characters(exclude_categories=["Cs"]), max_size=10)
EXEMPLARS = ["", ' # {trace_id="a b"} 1', ' # {trace_id="}"} 0.5 1790000000.25', " # {} 1"]


def escaped(text):
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


@given(
    st.dictionaries(st.tuples(NAMES, st.none() | LABEL), VALUES, max_size=6),
    st.sampled_from(["", " 1790000000", " 1790000000.125", " -1"]),
    st.sampled_from(EXEMPLARS),
    st.sampled_from([" ", "\t", "  "]),
)
def test_whatever_a_label_holds_every_sample_is_found(samples, stamp, exemplar, blank):
    written, expected = ["# HELP x y", "# TYPE x counter"], {}
    for (name, label), value in samples.items():
        labels = "" if label is None else f'{{a="{escaped(label)}",b="2"}}'
        written.append(f"{name}{labels}{blank}{value!r}{stamp}{exemplar}")
        expected[name + labels] = value
    assert parse_metrics("\n".join([*written, "# EOF", ""])) == expected


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ('a_total{x="1"} 3 # {id="7"} 1.0 1790000000.5', {'a_total{x="1"}': 3}),
        ('a_total 3 # {id="7"} 1.0', {"a_total": 3}),
        ('a{x="\u2028y\u2029\x85\x0b\x0c\x1c"} 4', {'a{x="\u2028y\u2029\x85\x0b\x0c\x1c"}': 4}),
        ('a{x="} 9"} 4', {'a{x="} 9"}': 4}),
        ('a{x="\\"} 9"} 4', {'a{x="\\"} 9"}': 4}),
        ('a{x="# 5"} 4', {'a{x="# 5"}': 4}),
        ('{"http.requests",x="1"} 4', {'{"http.requests",x="1"}': 4}),
        ("a{} 4", {"a{}": 4}),
        ("a 4\r", {"a": 4}),
        ("  a 4", {"a": 4}),
        ("a +4.5e-3", {"a": 0.0045}),
        ('a_bucket{le="1"} 4', {}),
        ('a_bucket{x="1",le="+Inf"} 4 # {id="7"} 1', {}),
        ("leaky_bucket 4", {"leaky_bucket": 4}),  # a gauge of that name is no histogram
        ('leaky_bucket{role="x"} 4', {'leaky_bucket{role="x"}': 4}),
        ('a_count{le="1"} 4', {'a_count{le="1"}': 4}),
        ("a NaN", {}),
        ("a +Inf", {}),
        ("a 1_000", {}),
        ("a", {}),
        ("a b c", {}),
        ("4", {}),
        (" 4", {}),
        ("1a 4", {}),
        ("a{x=1 4", {}),
        ('a{x="1} 4', {}),
        ("# a 4", {}),
        ("<html><body>not found</body></html>", {}),
    ],
)
def test_line_by_line(line, found):
    assert parse_metrics(line) == found
    assert parse_metrics(f"first 1\n{line}\nlast 2\n") == {"first": 1.0, **found, "last": 2.0}


@given(st.text(max_size=80))
def test_any_text_is_read_without_an_error(text):
    assert all(math.isfinite(value) for value in parse_metrics(text).values())


@pytest.mark.parametrize(
    ("status", "body", "found"), [(200, "a 1\n", {"a": 1}), (404, "a 1\n", {}), (500, "", {}), (200, "", {})]
)
def test_a_target_without_metrics_has_none(status, body, found):
    async def ask():
        transport = httpx.MockTransport(lambda request: httpx.Response(status, text=f"{body}"))
        async with httpx.AsyncClient(transport=transport) as client:
            return await scrape(client, "http://h")

    assert asyncio.run(ask()) == found


def test_a_target_that_does_not_answer_has_none():
    def refuse(request):
        raise httpx.ConnectError("refused")

    async def ask():
        async with httpx.AsyncClient(transport=httpx.MockTransport(refuse)) as client:
            return await scrape(client, "http://h")

    assert asyncio.run(ask()) == {}
