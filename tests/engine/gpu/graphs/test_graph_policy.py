"""Which numbers of rows get CUDA graphs, and in which order: plain data."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.gpu.graph_policy import MOST_FAILURES, STAND_IN_SECONDS, GraphPlan, row_steps


def test_steps_of_rows():
    assert row_steps(1) == [1]
    assert row_steps(6) == [1, 2, 4, 6]
    assert row_steps(64) == [1, 2, 4, *range(8, 65, 8)]
    assert row_steps(256)[-5:] == [192, 208, 224, 240, 256]


@given(st.integers(1, 1000), st.data())
def test_padding_is_at_most_the_gap_and_every_step_has_a_bucket(most, data):
    plan = GraphPlan(most)
    rows = data.draw(st.integers(1, most))
    assert 0 <= plan.bucket(rows) - rows < max(8, rows / 4)
    assert plan.size == len(row_steps(most))


def test_a_step_beyond_all_buckets_is_refused():
    with pytest.raises(ValueError, match="5 rows"):
        GraphPlan(4).bucket(5)


def test_the_costliest_comes_first_and_only_once_it_has_cost_a_recording():
    plan = GraphPlan(16)
    assert plan.next() is None
    plan.ran_eagerly(3, 0.2)
    plan.ran_eagerly(16, 0.3)
    plan.ran_eagerly(4, 0.2)
    assert plan.next() == 4
    plan.was_recorded(4, seconds=1.0)
    assert plan.recorded(3) == 4
    assert plan.next() is None  # 0.3 s so far, and a recording takes 1 s
    plan.ran_eagerly(16, 0.8)
    assert plan.next() == 16


def test_what_could_not_be_recorded_is_tried_again_when_it_has_cost_more_and_not_for_ever():
    plan = GraphPlan(16)
    for number in range(1, MOST_FAILURES + 1):
        plan.ran_eagerly(16, 20.0**number)
        assert plan.next() == 16
        plan.failed(16, seconds=0.1)
        assert plan.failures == number and plan.next() is None
        plan.ran_eagerly(16, 0.5)
        assert plan.next() is None and plan.recorded(16) is None
    plan.ran_eagerly(16, 1e9)
    assert plan.next() is None


def test_a_recorded_graph_stands_in_for_one_not_much_smaller():
    plan = GraphPlan(64)
    plan.was_recorded(16, 0.1)
    assert plan.recorded(9) == plan.recorded(8) == 16
    assert plan.recorded(3) is None  # four times the rows
    assert plan.recorded(17) is None
    plan.was_recorded(8, 0.1)
    assert plan.recorded(8) == 8


def test_a_graph_that_another_stands_in_for_is_recorded_when_that_has_cost_a_recording():
    plan = GraphPlan(64)
    plan.was_recorded(64, 10.5 * STAND_IN_SECONDS)
    for _ in range(11):
        assert plan.next() is None
        assert plan.recorded(33) == 64
        plan.ran_on(64, 33)
    assert plan.next() == 40
    plan.was_recorded(40, 0.1)
    plan.ran_on(40, 33)
    assert plan.next() is None


def test_a_start_records_the_widest_first_so_that_it_holds_all_others_memory():
    assert GraphPlan(64).first == [64, 1]
    assert GraphPlan(1).first == [1]
    assert GraphPlan(64, recording=False).first == []
    assert GraphPlan(6).row_counts == [1, 2, 4, 6]
