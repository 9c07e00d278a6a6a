"""A run cut into windows."""

import numpy as np
import pytest

from loadtest.report.columns import Columns
from loadtest.report.series import Series, percentiles, thinned, width_for


def test_windows_by_hand(make):
    run = make.run_of(
        [
            make.answered(0, 0.5, ttft=1.0, gaps=(1.0,)),  # tokens at 1.5 and 2.5
            make.answered(1, 0.9, ttft=0.05),
            make.refused(2, 1.2),
        ]
    )
    series = Series.of(run, Columns.of(run), width=1.0)
    assert series.start.tolist() == [0, 1, 2]
    assert series.arrivals.tolist() == [2, 1, 0]
    assert series.completions.tolist() == [1, 0, 1]
    assert series.failures.tolist() == [0, 1, 0]
    assert series.output_rate.tolist() == [1, 1, 1]
    assert series.prompt_rate.tolist() == [10, 10, 0]
    assert series.ttft[50][0] == pytest.approx(np.median([1.0, 0.05]))
    assert np.isnan(series.ttft[50][1:]).all()
    assert series.itl[99][2] == pytest.approx(1.0)


def test_nothing_is_lost_between_windows(make):
    run = make.drawn_run(3)
    columns = Columns.of(run)
    series = Series.of(run, columns)
    assert series.arrivals.sum() * series.width == pytest.approx(len(run.records))
    tokens = sum(len(record.tokens) for record in run.records)
    assert series.output_rate.sum() * series.width == pytest.approx(tokens)
    assert (series.completions + series.failures).sum() * series.width == pytest.approx(len(run.records))
    assert series.good.sum() * series.width == pytest.approx((columns.needed <= 1).sum())


def test_percentiles_of_each_window_are_numpys():
    rng = np.random.default_rng(0)
    times, values, edges = rng.uniform(0, 10, 500), rng.normal(size=500), np.arange(0.0, 12.0)
    found = percentiles(times, values, edges)
    for place in range(10):
        inside = values[(times >= edges[place]) & (times < edges[place + 1])]
        assert found[95][place] == np.percentile(inside, 95)
    assert np.isnan(found[95][10])


@pytest.mark.parametrize(("duration", "width"), [(0, 0.1), (9, 0.1), (9.1, 0.2), (600, 10), (7200, 120)])
def test_widths_are_round(duration, width):
    assert width_for(duration) == width


def test_a_run_longer_than_all_steps_is_still_cut():
    assert width_for(1e6) == pytest.approx(1e6 / 90)


@pytest.mark.parametrize("size", [0, 1, 10, 11, 1000])
def test_thinning_keeps_at_most_so_many(size):
    kept = np.arange(size)[thinned(size, 10)]
    assert kept.size <= 10 and (size == 0) == (kept.size == 0)
