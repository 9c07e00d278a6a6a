from argparse import ArgumentTypeError

import pytest

from loadtest.report.objectives import parse_objectives, slo
from loadtest.report.records import Objective
from loadtest.report.rows import objective_text


def test_objectives_by_class():
    assert parse_objectives("ttft=500ms,tpot=0.05s") == {"default": Objective(ttft=0.5, tpot=0.05)}
    assert parse_objectives("chat:ttft=1s;e2e=60s;a:b:tpot=9ms") == {
        "chat": Objective(ttft=1),
        "default": Objective(e2e=60),
        "a:b": Objective(tpot=0.009),
    }
    assert parse_objectives("") == {}


@pytest.mark.parametrize("text", ["ttft", "ttft=", "ttft=-1s", "ttft=nan", "itl=5ms", "ttft=1s,ttft=2s", "chat:"])
def test_what_is_no_objective_is_refused(text):
    with pytest.raises(ValueError, match=r"ttft=500ms|500ms, 0\.5s"):
        parse_objectives(text)


@pytest.mark.parametrize(
    ("text", "readings"), [("tpot=50", ("tpot=50ms", "tpot=50s")), ("chat:ttft=0.5", ("ttft=0.5ms",))]
)
def test_a_bound_without_a_unit_is_refused_with_both_readings(text, readings):
    with pytest.raises(ArgumentTypeError, match="no unit") as caught:
        slo(text)
    assert all(reading in str(caught.value) for reading in readings)


@pytest.mark.parametrize(
    "text", ["ttft:500 tpot:50 e2el:2000", "ttft:500,tpot:50,e2el:2000", " ttft:500  tpot:50, e2el:2000 "]
)
def test_what_vllm_is_told_in_milliseconds_means_the_same(text):
    (found,) = parse_objectives(text).values()
    assert found == Objective(ttft=0.5, tpot=0.05, e2e=2.0)
    assert objective_text(found) == "ttft ≤ 500 ms, tpot ≤ 50 ms, e2e ≤ 2000 ms"


def test_a_class_may_have_the_name_of_a_bound():
    assert parse_objectives("ttft:ttft=5ms") == {"ttft": Objective(ttft=0.005)}
