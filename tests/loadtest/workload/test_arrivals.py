"""Every process yields times that never decrease, whatever its numbers; numbers that make none are refused by name."""

from itertools import islice, pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.workload.arrivals import (
    KINDS,
    ArrivalError,
    Closed,
    Constant,
    Gamma,
    OnOff,
    Poisson,
    Ramp,
    RateSteps,
    parse_arrivals,
    spread,
)

RATE = st.floats(1e-6, 1e6)
NAN, INF = float("nan"), float("inf")
PROCESSES = st.one_of(
    st.builds(Poisson, RATE),
    st.builds(Constant, RATE),
    st.builds(Gamma, RATE, st.floats(1e-3, 1e3)),
    st.builds(OnOff, st.floats(1, 1e6), st.just(0.0) | RATE, st.floats(1, 1e3), st.floats(0.1, 1e3)),
    st.builds(Ramp, st.just(0.0) | RATE, RATE, st.floats(0.1, 1e3)),
    st.builds(
        lambda rates, last, each: RateSteps((*rates, last), each), st.lists(RATE, max_size=3), RATE, st.floats(0.1, 1e3)
    ),
)


@given(PROCESSES, st.integers(0, 99))
def test_times_are_finite_and_never_decrease_and_a_seed_gives_the_same(process, seed):
    times = list(islice(process.times(Random(seed)), 40))
    assert len(times) == 40
    assert all(0 <= at < INF for at in times)
    assert all(before <= after for before, after in pairwise(times))
    assert times == list(islice(process.times(Random(seed)), 40))


@given(RATE, RATE, st.floats(1e-3, 1e3), st.integers(0, 99))
def test_twice_the_rate_is_half_the_time(rate, other, cv, seed):
    for process in (Poisson(rate), Constant(rate), Gamma(rate, cv)):
        times = islice(process.times(Random(seed)), 20)
        faster = islice(process.with_rate(other).times(Random(seed)), 20)
        assert [at * rate for at in times] == pytest.approx([at * other for at in faster], rel=1e-6)


@given(RATE, st.integers(0, 99))
def test_constant_arrivals_have_equal_gaps_whatever_the_seed(rate, seed):
    times = list(islice(Constant(rate).times(Random(seed)), 50))
    assert [at * rate for at in times] == pytest.approx(list(range(50)))


@given(RATE, st.just(0.0) | RATE, st.floats(0.1, 1e3), st.floats(0.1, 1e3), RATE)
def test_a_scaled_on_off_process_has_the_mean_asked_for(high, low, on, off, rate):
    scaled = OnOff(high, low, on, off).with_rate(rate)
    assert (scaled.high * on + scaled.low * off) / (on + off) == pytest.approx(rate)
    assert scaled.low * high == pytest.approx(scaled.high * low)


@given(st.floats(0, 100), st.floats(0.01, 100), st.floats(0.1, 100), st.integers(0, 99))
def test_a_ramp_is_a_poisson_process_in_its_own_time(start, end, over, seed):
    """The integral of the rate up to the n-th arrival is the n-th arrival at unit rate (the time-rescaling theorem)."""
    rng, passed = Random(seed), 0.0
    for at in islice(Ramp(start, end, over).times(Random(seed)), 60):
        passed += rng.expovariate(1)
        inside = min(at, over)
        integral = start * inside + (end - start) / over * inside**2 / 2 + end * max(0.0, at - over)
        assert integral == pytest.approx(passed, rel=1e-6)


@pytest.mark.parametrize("step", [0.0, 1e-17, 1e-15, -1e-15, 1e-9, -1e-9])
def test_a_ramp_that_hardly_rises_is_a_constant_rate(step):
    times = list(islice(Ramp(1.0, 1.0 + step, 1000.0).times(Random(3)), 500))
    constant = list(islice(Poisson(1.0).times(Random(3)), 500))
    assert times == pytest.approx(constant, rel=1e-5)


@pytest.mark.parametrize("rates", [(0.0, 5.0), (5.0, 0.0, 5.0)])
def test_at_a_rate_of_0_nothing_arrives(rates):
    times = list(islice(RateSteps(rates, 10.0).times(Random(0)), 300))
    pause = rates.index(0.0)
    assert not [at for at in times if 10 * pause <= at < 10 * (pause + 1)]
    assert times[-1] > 10 * len(rates)


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        (Poisson, {"rate": 0}),
        (Poisson, {"rate": NAN}),
        (Poisson, {"rate": INF}),
        (Gamma, {"cv": 0}),
        (Gamma, {"cv": 1e-200}),
        (Gamma, {"cv": 1e200}),
        (Gamma, {"rate": -1}),
        (OnOff, {"low": NAN}),
        (OnOff, {"low": INF}),
        (OnOff, {"low": -1}),
        (OnOff, {"high": 0}),
        (OnOff, {"on": 0}),
        (OnOff, {"off": INF}),
        (Ramp, {"start": NAN}),
        (Ramp, {"start": INF}),
        (Ramp, {"start": -1}),
        (Ramp, {"end": 0}),
        (Ramp, {"over": 0}),
        (RateSteps, {"rates": ()}),
        (RateSteps, {"rates": (1.0, NAN, 2.0)}),
        (RateSteps, {"rates": (INF, 2.0)}),
        (RateSteps, {"rates": (1.0, 0.0)}),
        (RateSteps, {"rates": (-1.0, 2.0)}),
        (RateSteps, {"each": 0}),
        (Closed, {"users": 0}),
        (Closed, {"users": NAN}),
        (Closed, {"users": INF}),
        (Closed, {"users": 1.5}),
        (Closed, {"think": NAN}),
        (Closed, {"think": INF}),
        (Closed, {"think": -1}),
    ],
)
def test_a_number_that_makes_no_process_is_refused_by_name(kind, wrong):
    (name,) = wrong
    with pytest.raises(ArrivalError, match=f"{name}|{kind.__name__.lower()[-5:]}"):
        kind(**wrong)


@given(PROCESSES)
def test_a_process_comes_back_from_its_text(process):
    kind = next(name for name, each in KINDS.items() if each is type(process))
    values = {name: getattr(process, name) for name in process.__dataclass_fields__}
    words = {name: "/".join(map(repr, value)) if name == "rates" else repr(value) for name, value in values.items()}
    assert parse_arrivals(f"{kind}:{','.join(f'{name}={word}' for name, word in words.items())}") == process


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_defaults_and_names_its_fields(kind):
    assert parse_arrivals(kind) == parse_arrivals(f"{kind}:") == KINDS[kind]()
    with pytest.raises(ArrivalError, match=f"{kind} arrivals have no 'speed'"):
        parse_arrivals(f"{kind}:speed=1")


@given(st.lists(st.integers(0, 20), max_size=30).map(sorted), st.floats(0, 3), st.integers(0, 9))
def test_spreading_moves_no_time_out_of_its_tick(stamps, tick, seed):
    times = [float(stamp) * 3 for stamp in stamps]
    found = spread(times, tick, Random(seed))
    assert len(found) == len(times) and found == sorted(found)
    assert all(before <= after <= before + tick for before, after in zip(times, found, strict=True))
