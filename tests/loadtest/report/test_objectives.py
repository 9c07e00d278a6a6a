import pytest

from loadtest.report.objectives import parse_objectives
from loadtest.report.records import Objective


def test_objectives_by_class():
    assert parse_objectives("ttft=500ms,tpot=0.05s") == {"default": Objective(ttft=0.5, tpot=0.05)}
    assert parse_objectives("chat:ttft=1s;e2e=60;a:b:tpot=9ms") == {
        "chat": Objective(ttft=1),
        "default": Objective(e2e=60),
        "a:b": Objective(tpot=0.009),
    }
    assert parse_objectives("") == {}


@pytest.mark.parametrize("text", ["ttft", "ttft=", "ttft=-1s", "ttft=nan", "itl=5ms", "ttft=1s,ttft=2s", "chat:"])
def test_what_is_no_objective_is_refused(text):
    with pytest.raises(ValueError, match=r"ttft=500ms|500ms, 0\.5s"):
        parse_objectives(text)
