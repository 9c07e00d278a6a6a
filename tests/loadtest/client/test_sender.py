"""What the client says of itself: quantiles, lateness, whether its run can be trusted."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.client.sender import ClientHealth, Live
from loadtest.report.quantiles import quantile

SECONDS = st.lists(st.floats(0, 100), max_size=300)
BOUND = 0.02


@given(SECONDS, st.floats(0, 1))
def test_a_quantile_is_that_of_the_report(values, share):
    assert quantile(values, share) == (pytest.approx(np.quantile(values, share)) if values else 0.0)


@pytest.mark.parametrize(
    ("late", "of", "doubted"),
    [(0, 200, False), (2, 200, False), (3, 200, True), (200, 200, True), (1, 10, False), (2, 10, True), (1, 1, False)],
)
def test_a_run_is_doubted_when_more_than_one_in_a_hundred_is_late_and_not_for_a_single_hiccup(late, of, doubted):
    times = [2 * BOUND] * late + [0.0] * (of - late)
    for health, words in (
        (ClientHealth(lateness=times), "sent requests"),
        (ClientHealth(lags=times), "came to read answers"),
    ):
        said = f"{late} times of {of} it {words} more than 20 ms late, 40 ms at the most"
        assert [said in doubt for doubt in health.doubts(BOUND)] == ([True] if doubted else [])


def test_both_ways_of_being_late_are_told():
    assert len(ClientHealth(lateness=[1.0] * 2, lags=[1.0] * 2).doubts(BOUND)) == 2


def test_a_client_that_did_nothing_has_a_summary():
    assert set(ClientHealth().summary().values()) == {0.0}
    assert ClientHealth().doubts(BOUND) == []


@given(SECONDS.filter(bool), SECONDS.filter(bool))
def test_the_summary_is_in_order(lateness, lags):
    summary = ClientHealth(lateness=lateness, lags=lags).summary()
    assert summary["lateness_p50"] <= summary["lateness_p99"] <= summary["lateness_max"] == max(lateness)
    assert summary["loop_lag_p99"] <= summary["loop_lag_max"] == max(lags)


def test_live_counts_what_is_under_way_and_forgets_old_times():
    live = Live(planned=3000, sent=7, done=4)
    assert live.running == 3
    live.ttfts.extend(float(number) for number in range(3000))
    assert len(live.ttfts) == 1000 and live.ttfts[0] == 2000.0
    assert quantile(live.ttfts, 0.5) == pytest.approx(2499.5)
    assert quantile(live.lateness, 0.5) == 0.0
