"""Requests without a file."""

from statistics import mean, stdev

import pytest

from loadtest.workload.arrivals import ArrivalError, Poisson
from loadtest.workload.plan import LoadShape, make_plan
from loadtest.workload.sharing import Shared
from loadtest.workload.traces.problems import TraceError
from loadtest.workload.traces.synthetic import synthetic


def lengths(text: str, many: int = 4000) -> list[tuple[int, int]]:
    return [(each.prompt_tokens, each.output_tokens) for each in synthetic(text, many).requests]


def test_lengths_are_drawn_as_described():
    assert set(lengths("prompt=256,output=128", 20)) == {(256, 128)}
    prompts, outputs = zip(*lengths("prompt=256±64,output=10-20"), strict=True)
    assert mean(prompts) == pytest.approx(256, rel=0.02) and stdev(prompts) == pytest.approx(64, rel=0.05)
    assert set(outputs) == set(range(10, 21))
    assert lengths("output=10-20, prompt=256+-64") == list(zip(prompts, outputs, strict=True))
    assert min(lengths("prompt=2±50,output=1"))[0] == 1, "no prompt is empty"


def test_the_same_seed_draws_the_same():
    assert synthetic("prompt=99±9,output=1-9", 50, 3) == synthetic("prompt=99±9,output=1-9", 50, 3)
    assert synthetic("prompt=99±9,output=1-9", 50, 3) != synthetic("prompt=99±9,output=1-9", 50, 4)


def test_a_prefix_is_shared_and_nothing_else():
    trace = synthetic("prompt=50-90,output=1,prefix=64", 30)
    assert all(64 + 50 <= each.prompt_tokens <= 64 + 90 for each in trace.requests)
    plan, shared = make_plan(trace, LoadShape(arrivals=Poisson())), Shared(0)
    assert [shared.tokens(each, each.prompt_tokens) for each in plan.requests] == [0] + [64] * 29


def test_arrivals_are_drawn_and_go_on_as_long_as_is_asked():
    trace = synthetic("prompt=5,output=1", 10)
    with pytest.raises(ArrivalError, match="--arrivals poisson:rate=5"):
        make_plan(trace)
    assert len(make_plan(trace, LoadShape(arrivals=Poisson(10), duration=20)).requests) > 100


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "none of prompt, output, prefix"),
        ("prompt=5", "has no output"),
        ("prompt=5,output=0", "output=0 is no length"),
        ("prompt=5,output=9-3", "no length"),
        ("prompt=5,prompt=6,output=1", "twice"),
        ("prompt=1e3,output=1", "no length"),
        ("prompt=99999999999,output=1", "no length"),
        ("input=5,output=1", "none of"),
    ],
)
def test_what_describes_nothing_is_refused(text, said):
    with pytest.raises(TraceError, match="--synthetic") as caught:
        synthetic(text)
    assert said in str(caught.value)
