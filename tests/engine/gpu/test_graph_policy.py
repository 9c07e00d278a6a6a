"""Which shapes get CUDA graphs, and in which order: plain data."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.gpu.graph_policy import MOST_FAILURES, STAND_IN_SECONDS, GraphPlan, key_steps, row_steps
from engine.tensor_parallel.commands import Bucket


def test_steps_of_rows_and_keys():
    assert row_steps(1) == [1]
    assert row_steps(6) == [1, 2, 4, 6]
    assert row_steps(64) == [1, 2, 4, *range(8, 65, 8)]
    assert row_steps(256)[-5:] == [192, 208, 224, 240, 256]
    assert key_steps(512) == [512]
    assert key_steps(8192) == [8192]
    assert key_steps(100_000) == [8192, 32768, 100_000]


@given(st.integers(1, 1000), st.data())
def test_padding_is_at_most_the_gap_and_every_step_has_a_bucket(most, data):
    plan = GraphPlan(most, 40_000)
    rows, keys = data.draw(st.integers(1, most)), data.draw(st.integers(1, 40_000))
    bucket = plan.bucket(rows, keys)
    assert bucket.covers(rows, keys)
    assert bucket.rows - rows < max(8, rows / 4)
    assert plan.size == len(row_steps(most)) * 3


def test_a_step_beyond_all_buckets_is_refused():
    with pytest.raises(ValueError, match="5 rows"):
        GraphPlan(4, 512).bucket(5, 1)


def test_the_costliest_comes_first_and_only_once_it_has_cost_a_recording():
    plan = GraphPlan(16, 512)
    assert plan.next() is None
    plan.ran_eagerly(3, 100, 0.2)
    plan.ran_eagerly(16, 100, 0.3)
    plan.ran_eagerly(4, 10, 0.2)
    assert plan.next() == Bucket(4, 512)
    plan.was_recorded(Bucket(4, 512), seconds=1.0)
    assert plan.recorded(3, 512) == Bucket(4, 512)
    assert plan.next() is None  # 0.3 s so far, and a recording takes 1 s
    plan.ran_eagerly(16, 1, 0.8)
    assert plan.next() == Bucket(16, 512)


def test_what_could_not_be_recorded_is_tried_again_when_it_has_cost_more_and_not_for_ever():
    plan = GraphPlan(16, 512)
    for number in range(1, MOST_FAILURES + 1):
        plan.ran_eagerly(16, 1, 20.0**number)
        assert plan.next() == Bucket(16, 512)
        plan.failed(Bucket(16, 512), seconds=0.1)
        assert plan.failures == number and plan.next() is None
        plan.ran_eagerly(16, 1, 0.5)
        assert plan.next() is None and plan.recorded(16, 1) is None
    plan.ran_eagerly(16, 1, 1e9)
    assert plan.next() is None


def test_a_recorded_shape_stands_in_for_one_not_much_smaller():
    plan = GraphPlan(64, 100_000)
    plan.was_recorded(Bucket(16, 32768), 0.1)
    assert plan.recorded(9, 20_000) == Bucket(16, 32768)
    assert plan.recorded(8, 100) == Bucket(16, 32768)
    assert plan.recorded(3, 100) is None  # four times the rows
    assert plan.recorded(9, 40_000) is None
    plan.was_recorded(Bucket(8, 8192), 0.1)
    assert plan.recorded(8, 100) == Bucket(8, 8192)


def test_a_shape_that_another_stands_in_for_is_recorded_when_that_has_cost_a_recording():
    plan = GraphPlan(64, 512)
    plan.was_recorded(Bucket(64, 512), 10.5 * STAND_IN_SECONDS)
    for _ in range(11):
        assert plan.next() is None
        bucket = plan.recorded(33, 100)
        assert bucket == Bucket(64, 512)
        plan.ran_on(bucket, 33, 100)
    assert plan.next() == Bucket(40, 512)
    plan.was_recorded(Bucket(40, 512), 0.1)
    plan.ran_on(Bucket(40, 512), 33, 100)
    assert plan.next() is None


def test_a_start_records_the_widest_first_so_that_it_holds_all_others_memory():
    assert GraphPlan(64, 100_000).first == [Bucket(64, 8192), Bucket(1, 8192)]
    assert GraphPlan(1, 512).first == [Bucket(1, 512)]
    assert GraphPlan(64, 512, recording=False).first == []
    assert GraphPlan(6, 512).row_counts == [1, 2, 4, 6]
