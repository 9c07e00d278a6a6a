"""A simulation with the guesses of a recorded run has the steps of that run."""

import pytest

from loadtest.simulate.cluster import Cluster, ServerShape
from loadtest.simulate.guesses.recorded import RecordedAnswers
from scheduler.drafting import DraftCandidate
from scheduler.router.round_robin import RoundRobin
from scheduler.types.sampling_params import SamplingParams
from tests.loadtest.simulate.guesses.test_repeating import cost, simulate, traffic


@pytest.mark.parametrize("rate", [0.3, 20.0])
def test_each_step_brings_as_many_tokens_as_it_did(rate):
    requests = traffic(30, rate)
    records, _ = simulate(requests, 0.2, 0.05)
    answers = [record.tokens for record in records]
    shape = ServerShape(max_step_tokens=128)
    cluster = Cluster(cost(0.0, 0.0), shape, RoundRobin(), guesses=lambda: RecordedAnswers(answers))
    again = cluster.run(requests)
    assert [[count for _, count in each.tokens] for each in again] == [[count for _, count in each] for each in answers]
    for old, new in zip(records, again, strict=True):
        assert abs(new.e2e / old.e2e - 1) < 0.15, "only wrong guesses are missing"


def test_an_event_that_a_step_has_no_room_for_goes_on_in_the_next():
    drafter = RecordedAnswers([[(1.0, 1), (2.0, 5), (3.0, 1)]])

    def proposed(known: int, most: int) -> int:
        ask = DraftCandidate("0", [7] * (3 + known), SamplingParams(max_tokens=9), most, prompt_length=3)
        return len(drafter.propose([ask])[0])

    assert [proposed(known, 16) for known in range(8)] == [0, 4, 3, 2, 1, 0, 0, 0]
    assert proposed(1, 2) == 2 and drafter.accepted("0", 1, 2) == 2
