"""Whatever dies whenever: each request is answered once or says why not, and skipped stretches change nothing."""

from dataclasses import asdict
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtest.planner.tightness import _scaled
from loadtest.report.records import ErrorClass, Objective, RequestRecord
from loadtest.simulate.cluster import Cluster, Machines, RolePool, ServerShape
from loadtest.simulate.cost import CostModel
from loadtest.simulate.faults.failure import NOTICED, Failure, parse_failure
from loadtest.simulate.hand_over import Link
from loadtest.simulate.keepers.keepers import KeeperShape
from loadtest.simulate.links import LINKS, link_rate
from loadtest.simulate.specs import load_hardware, load_model
from loadtest.workload.plan import Planned
from scheduler.router.policies import make_router
from scheduler.router.view import Role
from tests.drawn import drawn

COST = CostModel(load_hardware("h200"), load_model("llama-3-8b"))
REPLICAS, NODE = 4, 2
ROLES = RolePool(roles=(Role.PREFILL, Role.MIXED, Role.DECODE, Role.DECODE), bytes_per_second=5e10, seconds=0.001)
FAILURES = st.lists(
    st.builds(
        lambda kind, number, at, recovery: Failure(
            kind=kind,
            number=number % (REPLICAS if kind == "replica" else REPLICAS // NODE),
            at=at / 100,
            recovery=None if recovery is None else NOTICED[kind] + recovery / 100,
        ),
        st.sampled_from(["replica", "node"]),
        st.integers(0, 3),
        st.integers(0, 150),
        st.none() | st.integers(0, 100),
    ),
    max_size=4,
)
TRAFFIC = st.lists(
    st.tuples(st.integers(0, 12), st.integers(1, 20), st.integers(1, 60), st.integers(0, 2)), min_size=1, max_size=10
)


def plan(traffic: list[tuple[int, int, int, int]]) -> list[Planned]:
    at, found = 0.0, []
    for index, (gap, blocks, output, prefix) in enumerate(traffic):
        at += gap / 100
        ids = tuple(100 * prefix + place for place in range(blocks))
        own = (10_000 + index,)
        found.append(
            Planned(
                index=index,
                intended=at,
                prompt_tokens=32 * (blocks + 1),
                output_tokens=output,
                blocks=ids + own,
                block_tokens=32,
            )
        )
    return found


def run(requests: list[Planned], failures: list[Failure], kind: str, fast_forward: bool) -> Cluster:
    keeper = KeeperShape(bytes=2**30, reach=kind == "reach", rates={"host": 5e10, "peer": 4e9})
    machines = Machines(replicas=NODE, keeper=keeper if kind in ("keeper", "reach") else None, failures=failures)
    cluster = Cluster(
        COST,
        ServerShape(kv_blocks=100, max_running=4),
        make_router("round-robin"),
        ROLES if kind == "roles" else REPLICAS,
        machines=machines,
        fast_forward=fast_forward,
    )
    cluster.run(requests)
    return cluster


def check(cluster: Cluster, requests: list[Planned]) -> None:
    assert [record.index for record in cluster.records] == list(range(len(requests)))
    for record in cluster.records:
        assert record.ok != (record.error is not None), "it ended, in one way"
        assert all(before[0] <= after[0] for before, after in pairwise(record.tokens))
        if record.ok:
            assert len(record.tokens) == record.asked_output and record.finished == record.tokens[-1][0]
        else:
            assert record.detail and record.error in (ErrorClass.STREAM, ErrorClass.STATUS)
            assert len(record.tokens) < record.asked_output, "a whole answer is no failure"
    for replica in cluster.replicas:
        assert not replica.open and replica.due is None and not replica.scheduler.transferring
        replica.scheduler.check_integrity()


@settings(max_examples=drawn(16))
@given(TRAFFIC, FAILURES, st.sampled_from(["alone", "roles", "keeper", "reach"]))
def test_no_request_is_lost_or_answered_twice_and_skipping_changes_nothing(traffic, failures, kind):
    requests = plan(traffic)
    plain, skipped = (run(requests, failures, kind, fast_forward) for fast_forward in (False, True))
    for cluster in (plain, skipped):
        check(cluster, requests)
    assert [asdict(record) for record in plain.records] == [asdict(record) for record in skipped.records]
    assert plain.outages.recomputed == skipped.outages.recomputed
    assert set(plain.outages.replayed) == set(skipped.outages.replayed)


@settings(max_examples=drawn(40))
@given(st.sampled_from(["node", "replica"]), st.integers(0, 99), st.floats(0, 1e6), st.none() | st.floats(0, 1e6))
def test_a_failure_comes_back_from_its_text_or_is_too_short(kind, number, at, recovery):
    text = f"{kind}:{number}@{at:.3f}" + ("" if recovery is None else f"+{recovery:.3f}")
    wanted = None if recovery is None else round(recovery, 3)
    if wanted is not None and wanted < NOTICED[kind]:
        with pytest.raises(ValueError, match="the recovery cannot be shorter"):
            parse_failure(text)
        return
    found = parse_failure(text)
    assert (found.kind, found.number, found.at, found.recovery) == (kind, number, round(at, 3), wanted)
    assert found.end == (float("inf") if wanted is None else found.at + wanted)


@given(
    st.lists(st.tuples(st.floats(0, 100), st.floats(0, 5), st.floats(0, 1e4)), min_size=1, max_size=12), st.floats(0, 1)
)
def test_a_link_carries_no_more_than_its_rate_and_nothing_before_it_is_there(sent, latency):
    link, rate, ends = Link(100.0, latency), 100.0, []
    sent = sorted((begun, begun + took, size) for begun, took, size in sent)
    for begun, ended, size in sent:
        arrival = link.arrival(size, begun, ended)
        assert arrival >= max(ended, begun + size / rate) + latency - 1e-9
        ends.append(arrival)
    assert ends == sorted(ends), "one after the other"
    for at, (begun, _, _) in enumerate(sent):
        carried = sum(size for _, _, size in sent[at:])
        assert carried <= rate * (ends[-1] - latency - begun) + 1e-6


def test_every_named_link_gives_less_than_its_line_rate():
    for name, kind in LINKS.items():
        assert 0.5 * kind.line_rate < link_rate(name) < kind.line_rate
        assert link_rate(f"{kind.line_rate!r}") == kind.line_rate


SECONDS = st.none() | st.floats(1e-3, 1e2)


@given(st.tuples(SECONDS, SECONDS, SECONDS), st.floats(0.01, 10), st.floats(1, 10), st.floats(0.001, 50))
def test_looser_objectives_are_met_wherever_tighter_ones_are(bounds, scale, looser, first):
    objective = Objective(*bounds)
    tight, loose = _scaled(objective, scale), _scaled(objective, scale * looser)
    record = RequestRecord(
        index=0, intended=1.0, asked_prompt=1, asked_output=3, tokens=[(1 + first, 1), (1 + 2 * first, 2)]
    )
    record.finished = 1 + 2 * first
    assert loose.met_by(record) or not tight.met_by(record)
    assert _scaled(objective, 1.0) == objective
    assert [bound is None for bound in (tight.ttft, tight.tpot, tight.e2e)] == [bound is None for bound in bounds]
