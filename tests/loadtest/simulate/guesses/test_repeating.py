"""Answers that repeat themselves, and what a simulated server guesses of them."""

from dataclasses import asdict, replace
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.report.records import RequestRecord
from loadtest.report.token_times import tokens_in
from loadtest.simulate.cluster import Cluster, ServerShape
from loadtest.simulate.cost import CostModel
from loadtest.simulate.guesses.repeating import RepeatingAnswers
from loadtest.simulate.specs import load_hardware, load_model
from loadtest.workload.plan import Planned
from scheduler.drafting import DraftCandidate
from scheduler.router.round_robin import RoundRobin
from scheduler.types.messages import EngineStats
from scheduler.types.sampling_params import SamplingParams

ANY = SamplingParams(max_tokens=1000)


def cost(begins: float, ends: float) -> CostModel:
    hardware = load_hardware("cpu-2core")
    costs = replace(hardware.costs, repeat_begins=begins, repeat_ends=ends)
    return CostModel(hardware.with_costs(costs), load_model("smollm2-135m"))


def traffic(many: int, rate: float, output: int = 60) -> list[Planned]:
    rng, at, found = Random(5), 0.0, []
    for index in range(many):
        at += rng.expovariate(rate)
        prompt, answer = rng.randint(1, 300), rng.randint(1, output)
        found.append(Planned(index=index, intended=at, prompt_tokens=prompt, output_tokens=answer))
    return found


def simulate(
    requests: list[Planned], begins: float, ends: float, **shape: int
) -> tuple[list[RequestRecord], EngineStats]:
    cluster = Cluster(cost(begins, ends), ServerShape(max_step_tokens=128, **shape), RoundRobin())  # type: ignore[arg-type]
    records = cluster.run(requests)
    (replica,) = cluster.replicas
    assert replica.scheduler.idle and not replica.open
    replica.scheduler.check_integrity()
    return records, next(iter(cluster.stats()))


@pytest.mark.parametrize("shape", [{}, {"max_running": 3}, {"kv_blocks": 40}])
@pytest.mark.parametrize("chances", [(0.03, 0.02), (0.5, 0.5), (1.0, 1e-9)])
def test_every_answer_keeps_its_length_whatever_is_guessed(shape, chances):
    requests = traffic(40, 4.0)
    records, stats = simulate(requests, *chances, **shape)
    assert [tokens_in(record.tokens) for record in records] == [each.output_tokens for each in requests]
    assert 0 < stats.drafts_accepted <= stats.drafts_proposed
    guessed = sum(count - 1 for record in records for _, count in record.tokens)
    assert guessed == stats.drafts_accepted
    assert all(before < after for each in records for (before, _), (after, _) in pairwise(each.tokens))


def test_where_nothing_repeats_all_is_as_without_guesses():
    requests = traffic(40, 4.0)
    plain, guessing = (simulate(requests, begins, 1.0) for begins in (0.0, 1e-12))
    assert guessing[1].drafts_proposed == 0
    assert [asdict(record) for record in guessing[0]] == [asdict(record) for record in plain[0]]


def test_guesses_bring_answers_sooner_and_fewer_are_made_where_rows_are_dear():
    shares = []
    for rate in (0.2, 50.0):
        requests = traffic(40, rate)
        records, stats = simulate(requests, 1.0, 0.001)
        plain, _ = simulate(requests, 0.0, 0.0)
        shares.append(stats.drafts_accepted / stats.generation_tokens)
        assert records[-1].finished < plain[-1].finished
    assert shares[0] > 1.2 * shares[1]


@given(st.floats(0.01, 0.99), st.floats(0.01, 0.99), st.lists(st.tuples(st.integers(0, 80), st.integers(1, 16))))
def test_what_is_found_does_not_depend_on_when_it_is_asked(begins, ends, looks):
    def drafter() -> RepeatingAnswers:
        made = RepeatingAnswers(begins, ends)
        made.propose([DraftCandidate("a", [1, 2], ANY, 9, prompt_length=2)])
        return made

    asked, straight = drafter(), drafter()
    found = [straight.accepted("a", place, 1) for place in range(100)]
    for place, proposed in looks:
        ahead = [*found[place : place + proposed], 0]
        assert asked.accepted("a", place, proposed) == ahead.index(0)


def test_stretches_are_as_often_and_as_long_as_is_said():
    drafter = RepeatingAnswers(0.05, 0.2)
    drafter.propose([DraftCandidate("a", [1], ANY, 9, prompt_length=1)])
    found = [drafter.accepted("a", place, 1) for place in range(20_000)]
    begun = sum(now > before for before, now in pairwise(found))
    assert begun / found.count(0) == pytest.approx(0.05, rel=0.15)
    assert sum(found) / begun == pytest.approx(1 / 0.2, rel=0.15)


def test_who_has_ended_is_forgotten_and_late_news_of_it_is_nothing():
    drafter = RepeatingAnswers(1.0, 0.01)
    ask = [DraftCandidate("a", [1], ANY, 9, prompt_length=1)]
    (first,) = drafter.propose(ask)
    drafter.forget("a")
    drafter.verified("a", len(first), 0)
    assert drafter.propose(ask) == [first]
