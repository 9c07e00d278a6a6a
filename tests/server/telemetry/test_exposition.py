"""Which format `/metrics` is written in, for every `Accept`."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.telemetry.exposition import OPEN_METRICS, TEXT, accepted

OM = "application/openmetrics-text"
PROMETHEUS_3 = (
    f"{OM};version=1.0.0;escaping=allow-utf-8;q=0.6,{OM};version=0.0.1;q=0.5,"
    "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)


@pytest.mark.parametrize(
    "accept",
    [
        OM,
        OM.upper(),
        f"{OM}; version=1.0.0",
        f'{OM}; version="1.0.0"',
        f'{OM};version="1.0.0";charset="utf-8",text/plain;q=0.5',
        f"{OM};version=1.0.0,{OM};version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
        PROMETHEUS_3,
        f"text/plain, {OM}",
        f"*/*, {OM}; Q=1.000",
        f"text/plain;q=0.3, {OM};q=0.4",
        f'{OM};note="a, b; q=0"',
        f"text/plain;q=0, {OM};q=0.001",
        "text/plain;q=0, */*",
        "application/*",
        f"{OM};q=0, {OM};version=1.0.0",
    ],
)
def test_openmetrics_where_it_is_liked(accept):
    assert accepted(accept) is OPEN_METRICS


@pytest.mark.parametrize(
    "accept",
    [
        "",
        "*/*",
        "text/plain",
        "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
        f"{OM};q=0",
        f"{OM};version=1.0.0;q=0.000, */*",
        f"{OM};q=0, text/plain;q=0",
        f"{OM};q=0.4, text/plain;q=0.5",
        f"{OM};version=0.0.1, text/plain;version=0.0.4;q=0.5, */*;q=0.1",
        f"{OM};version=2.0.0",
        f"{OM};version=1.x",
        f"{OM};version=",
        f"{OM};version=1.0.0\u0661",
        f"{OM};q=x, text/plain;q=0.1",
        f"{OM};q=-1",
        f"{OM};q=2",
        f"{OM};q=nan",
        f"{OM};q=",
        f"x{OM}",
        '"',
        '"\\',
        ";;,;q=;,=,",
        "\x00\xff\u0661",
        "*",
        "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited",
    ],
)
def test_plain_text_else(accept):
    assert accepted(accept) is TEXT


@given(
    st.lists(st.sampled_from([OM, "text/plain", "*/*", ";", ",", "q", "=", "0.5", '"', "\\", "version", " ", "é"])).map(
        "".join
    )
)
def test_whatever_it_says_there_is_a_format(accept):
    assert accepted(accept) in (TEXT, OPEN_METRICS)
