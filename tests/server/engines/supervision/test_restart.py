"""When a dead engine is started again: time is passed in, so whole days are walked through."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.engines.supervision.restart import MAX_FAILED_STARTS, RESTART_DELAYS, WINDOW_SECONDS, RestartPolicy

DEATHS = st.lists(st.tuples(st.floats(0, 400, allow_nan=False), st.booleans()), max_size=30)


@given(deaths=DEATHS)
def test_the_delay_follows_from_the_deaths_of_the_window_and_failed_starts_end_it(deaths):
    policy, now, past = RestartPolicy(), 0.0, []
    for gap, was_ready in deaths:
        now += gap
        past = [(stamp, ready) for stamp, ready in [*past, (now, was_ready)] if now - stamp <= WINDOW_SECONDS]
        failed = sum(not ready for _, ready in past)
        delay = policy.after_death(now, was_ready=was_ready)
        if not was_ready and failed >= MAX_FAILED_STARTS:
            assert delay is None
        else:
            assert delay == RESTART_DELAYS[min(len(past), len(RESTART_DELAYS)) - 1]


def test_deaths_in_service_alone_are_never_given_up():
    policy = RestartPolicy()
    delays = [policy.after_death(float(second), was_ready=True) for second in range(100)]
    assert delays == [*RESTART_DELAYS, *[RESTART_DELAYS[-1]] * (100 - len(RESTART_DELAYS))]


@pytest.mark.parametrize(("gap", "given_up"), [(0.0, True), (WINDOW_SECONDS / 3 + 1, False)])
def test_failed_starts_count_within_the_window_only(gap, given_up):
    policy = RestartPolicy()
    delays = [policy.after_death(gap * number, was_ready=False) for number in range(MAX_FAILED_STARTS)]
    assert (delays[-1] is None) == given_up and None not in delays[:-1]
