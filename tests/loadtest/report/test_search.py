"""The search for the highest sustained rate, against servers that are functions."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtest.search import PATIENCE, Attained, End, RateSearch, Trial, in_turn


def server(capacity: float):
    """All requests meet their objective up to the capacity, none above."""
    return lambda rate: 1.0 if rate <= capacity else 0.0


def run(search: RateSearch, attainment) -> int:
    """Drive a search to its end. Returns how many measurements it took."""
    for steps in range(1000):
        rate = search.next_rate
        if rate is None:
            return steps
        share = attainment(rate)
        search.absorb(share if share is None else Attained(share))
    raise AssertionError("the search does not end")


@settings(deadline=None)
@given(st.floats(0.02, 5000), st.floats(0.02, 5000), st.sampled_from([0.01, 0.05, 0.3]), st.sampled_from([1, 3, 5]))
def test_the_capacity_is_bracketed_to_the_precision(capacity, start, precision, repeats):
    search = RateSearch(start=start, precision=precision, repeats=repeats)
    run(search, server(capacity))
    found = search.found
    assert found.end is End.FOUND
    assert found.rate <= capacity < found.above <= found.rate * (1 + precision)


def test_a_search_is_short():
    search = RateSearch(start=1, repeats=1)
    assert run(search, server(37.0)) <= 7 + 4  # doublings past 37, then halvings of a ratio of 2 down to 1.05
    assert len(search.trials) == len({trial.rate for trial in search.trials})


def test_runs_that_agree_are_not_repeated_more_than_a_majority_needs():
    search = RateSearch(start=8, repeats=5)
    run(search, server(10))
    assert {len(trial.attainments) for trial in search.trials} == {3}


def test_one_bad_run_does_not_decide():
    answers = iter([0.2, 0.95, 0.9, 0.3, 0.95, 0.3])
    search = RateSearch(start=4, highest=8, precision=2, repeats=3)
    run(search, lambda rate: next(answers))
    assert [trial.attainments for trial in search.trials] == [[0.2, 0.95, 0.9], [0.3, 0.95, 0.3]]
    assert search.found.rate == 4 and search.found.above == 8


def test_exactly_the_goal_is_enough():
    search = RateSearch(start=1, highest=1, repeats=1, goal=0.9)
    search.absorb(Attained(0.9))
    assert search.found.end is End.HIGHEST and search.found.rate == 1 and search.found.above is None


def test_the_highest_rate_ends_the_search():
    search = RateSearch(start=3, highest=10, repeats=1)
    run(search, server(1e9))
    assert [trial.rate for trial in search.trials] == [3, 6, 10]
    assert (search.found.rate, search.found.end) == (10, End.HIGHEST)


def test_a_server_that_sustains_nothing():
    search = RateSearch(start=1, lowest=0.3, repeats=1)
    run(search, server(0))
    assert [trial.rate for trial in search.trials] == [1, 0.5, 0.3]
    assert (search.found.rate, search.found.above, search.found.end) == (None, 0.3, End.NONE)


def test_a_rate_the_client_cannot_drive_is_no_failure_of_the_server():
    search = RateSearch(start=1, repeats=3)
    run(search, lambda rate: None if rate > 20 else 1.0)
    found = search.found
    assert found.end is End.CLIENT and found.rate <= 20 < found.above
    assert all(trial.undriven == (trial.rate > 20) for trial in search.trials)


def test_the_nearer_limit_is_named():
    search = RateSearch(start=1, repeats=1)
    run(search, lambda rate: None if rate > 20 else server(5)(rate))
    assert search.found.end is End.FOUND and search.found.rate <= 5


def test_noise_of_the_runs_moves_the_result_little():
    rng = random.Random(0)
    results = []
    for _ in range(50):
        search = RateSearch(start=1, repeats=3, precision=0.05)
        run(search, lambda rate: 1 / (1 + (rate / 20) ** 8 / 9) + rng.gauss(0, 0.01))  # 0.9 at 20
        results.append(search.found.rate)
    assert sum(17 < rate < 22.5 for rate in results) == 50


def test_a_search_that_is_over_takes_nothing_more():
    search = RateSearch(start=1, highest=1, repeats=1)
    assert search.found is None
    search.absorb(Attained(1.0))
    with pytest.raises(RuntimeError, match="has ended"):
        search.absorb(Attained(1.0))


WRONG = [
    {"start": 0},
    {"lowest": 2},
    {"highest": 0.5},
    {"highest": float("inf")},
    {"goal": 0},
    {"goal": 1.1},
    {"precision": 0},
    {"repeats": 2},
]


@pytest.mark.parametrize("wrong", WRONG, ids=str)
def test_searches_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValueError):
        RateSearch(**{"start": 1} | wrong)


def test_two_servers_take_turns():
    searches = {"a": RateSearch(start=1, repeats=3), "b": RateSearch(start=1, repeats=3)}
    capacities, asked = {"a": 4.0, "b": 100.0}, []

    def measure(name, rate, before):
        asked.append((name, rate, before))
        return Attained(server(capacities[name])(rate))

    in_turn(searches, measure)
    names = "".join(name for name, _, _ in asked)
    both = 2 * names.count("a")
    assert names[:both] == "ab" * (both // 2) and set(names[both:]) == {"b"}
    assert asked[:4] == [("a", 1, 0), ("b", 1, 0), ("a", 1, 1), ("b", 1, 1)]
    assert searches["a"].found.rate <= 4 < searches["a"].found.above
    assert searches["b"].found.rate <= 100 < searches["b"].found.above


def test_one_hiccup_of_the_client_is_not_its_limit():
    search, answers = RateSearch(start=4, highest=4, repeats=1), iter([None, 1.0])
    run(search, lambda rate: next(answers))
    assert search.found.end is End.HIGHEST and search.trials[0].attainments == [1.0]
    search, tries = RateSearch(start=4, highest=4, lowest=4, repeats=1), []
    run(search, tries.append)
    assert search.found.end is End.CLIENT and len(tries) == PATIENCE
    assert not search.found.end.told and End.FOUND.told


@pytest.mark.parametrize(
    ("met", "share", "requests"),
    [([True] * 50, 1.0, 50), ([True, False] * 25, 0.5, 50), ([True] * 25 + [False] * 25, 0.5, 1.0), ([True], 1.0, 1)],
)
def test_verdicts_that_follow_each_other_tell_less(met, share, requests):
    found = Attained.of(met)
    assert found.share == share and found.requests == pytest.approx(requests, rel=0.1)


@pytest.mark.parametrize(
    ("runs", "low", "high"),
    [
        ([Attained(1.0, 35)], 0.901, 1.0),
        ([Attained(1.0, 10)], 0.722, 1.0),  # ten of ten do not make sure of 90 %
        ([Attained(0.9, 100), Attained(0.9, 100)], 0.8506, 0.9342),
        ([Attained(0.5)], 0.5, 0.5),
        ([], 0.0, 1.0),
    ],
)
def test_intervals_are_wilsons_over_all_runs_of_a_rate(runs, low, high):
    assert Trial(1.0, runs).interval == (pytest.approx(low, abs=1e-3), pytest.approx(high, abs=1e-3))


def test_a_search_says_how_sure_it_is_and_where_more_requests_would_help():
    search = RateSearch(start=1, repeats=1)
    for requests in (100, 100, 20, 20, 20, 20, 20, 20, 20):
        if search.next_rate is None:
            break
        share = 1.0 if search.next_rate < 1.5 else 0.85
        search.absorb(Attained(share, requests))
    assert search.found.sure == (1.0, None), "85 of 100 may still be 90 %"
    assert search.near(2.0) and not search.near(1.0) and not search.near(77.0)


def test_what_is_known_is_there_before_the_end():
    search = RateSearch(start=1, repeats=1)
    assert search.so_far.end is End.INTERRUPTED and search.so_far.rate is None
    search.absorb(Attained(1.0))
    assert (search.so_far.rate, search.so_far.end, search.found) == (1, End.INTERRUPTED, None)


@pytest.mark.parametrize("requests", [50, 400])
def test_the_capacity_is_where_a_search_with_noise_is_sure_that_it_is(requests):
    """Requests meet their objective by chance, 90 % of them at the capacity; 95 % intervals at some ten rates each."""
    misses = near = 0
    for seed in range(40):
        rng, capacity = random.Random(seed), 5 * 1.1**seed
        search = RateSearch(start=20, repeats=1)
        while (rate := search.next_rate) is not None:
            likely = 1 / (1 + (rate / capacity) ** 8 / 9)
            search.absorb(Attained(sum(rng.random() < likely for _ in range(requests)) / requests, requests))
        held, failed = search.found.sure
        misses += (held is not None and held > capacity) + (failed is not None and failed < capacity)
        near += any(search.near(trial.rate) for trial in search.trials)
        assert held is None or held <= search.found.rate or search.found.above < held, (
            "a sure rate is one that was held"
        )
    assert misses <= 8 and near >= 36, "close to the capacity no such number of requests can tell"


def test_a_few_requests_are_sure_of_nothing():
    search = RateSearch(start=1, highest=4, repeats=1)
    while search.next_rate is not None:
        search.absorb(Attained(1.0, 5))
    assert search.found.end is End.HIGHEST and search.found.sure == (None, None)
    assert all(search.near(trial.rate) for trial in search.trials)
