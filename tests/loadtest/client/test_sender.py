"""What the client says of itself: quantiles, lateness, whether its run can be trusted."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.client.sender import ClientHealth, Live, median_ms, quantile

SECONDS = st.lists(st.floats(0, 100), max_size=300)
BOUND = 0.02


@given(SECONDS, st.floats(0, 1))
def test_a_quantile_is_one_of_the_values_with_as_many_below_it(values, share):
    found = quantile(values, share)
    if not values:
        assert found == 0.0
        return
    assert found in values
    assert sum(value < found for value in values) <= share * len(values)
    assert sum(value <= found for value in values) >= min(share * len(values), len(values))


@given(SECONDS, st.floats(0, 1), st.floats(0, 1))
def test_a_larger_share_gives_no_smaller_value(values, one, other):
    assert quantile(values, min(one, other)) <= quantile(values, max(one, other))


@given(SECONDS)
def test_the_order_of_the_values_does_not_matter(values):
    assert quantile(values, 0.99) == quantile(values[::-1], 0.99)


@pytest.mark.parametrize(("late", "doubted"), [(0, False), (1, False), (2, True), (200, True)])
def test_a_run_is_doubted_when_one_in_a_hundred_is_late(late, doubted):
    times = [2 * BOUND] * late + [0.0] * (200 - late)
    for health, words in (
        (ClientHealth(lateness=times), "sent requests 40 ms late"),
        (ClientHealth(lags=times), "came to read answers 40 ms late"),
    ):
        doubts = health.doubts(BOUND)
        assert [words in doubt and "20 ms" in doubt for doubt in doubts] == ([True] if doubted else [])


def test_both_ways_of_being_late_are_told():
    assert len(ClientHealth(lateness=[1.0], lags=[1.0]).doubts(BOUND)) == 2


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
    assert median_ms(live.ttfts) == pytest.approx(2_499_500.0)
    assert median_ms(live.lateness) == 0.0
