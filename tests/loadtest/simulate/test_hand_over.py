"""Replicas with roles: a prompt is computed by one, its tokens by another, and nothing gets lost in between."""

import random
from dataclasses import asdict

import pytest

from loadtest.simulate import cli
from loadtest.simulate.cluster import Cluster, RolePool, ServerShape
from loadtest.simulate.cost import CostModel
from loadtest.simulate.hand_over import Link, make_resident, missing
from loadtest.simulate.specs import load_hardware, load_model
from loadtest.workload.plan import Planned
from scheduler.kv.block_pool import BlockPool
from scheduler.router.policy import Router
from scheduler.router.prefix_aware import PrefixAware
from scheduler.router.round_robin import RoundRobin
from scheduler.router.view import Role
from scheduler.types.block_hash import block_names, root_hash

COST = CostModel(load_hardware("h200"), load_model("llama-3-8b"))
RATE = 5e10


def planned(index: int, at: float, prompt: int, output: int, **more: object) -> Planned:
    return Planned(index=index, intended=at, prompt_tokens=prompt, output_tokens=output, **more)  # type: ignore[arg-type]


def cluster(
    roles: str, router: Router | None = None, *, fast_forward: bool = True, seconds: float = 0.001, **shape: object
) -> Cluster:
    names = {"m": Role.MIXED, "p": Role.PREFILL, "d": Role.DECODE}
    pool = RolePool(roles=tuple(names[letter] for letter in roles), bytes_per_second=RATE, seconds=seconds)
    server = ServerShape(**{"kv_blocks": 1000, **shape})  # type: ignore[arg-type]
    return Cluster(COST, server, router or PrefixAware(), pool, fast_forward=fast_forward)


def check(pool: Cluster) -> None:
    for replica in pool.replicas:
        assert replica.scheduler.idle and not replica.open and replica.due is None
        replica.scheduler.check_integrity()


def tokens_by(pool: Cluster) -> list[int]:
    return [stats.generation_tokens for stats in pool.stats()]


def test_the_first_token_comes_from_one_replica_and_the_others_from_another():
    pool = cluster("pd")
    (record,) = pool.run([planned(0, 1.0, 1000, 20)])
    check(pool)
    alone = cluster("m")
    (whole,) = alone.run([planned(0, 1.0, 1000, 20)])
    assert tokens_by(pool) == [1, 19]
    assert record.ok and record.finish_reason == "length" and len(record.tokens) == record.output_tokens == 20
    assert record.ttft == whole.ttft
    # What does not fill a block, 8 tokens, is computed where it is decoded.
    way = 0.001 + 2 * COST.costs.delivery
    assert record.gaps[0] > way and record.gaps[0] < way + 2 * whole.gaps[0]
    assert record.gaps[1:] == pytest.approx(whole.gaps[1:])
    assert pool.replicas[1].scheduler.stats.prefix_hit_tokens == 992
    assert record.timings is not None and whole.timings is not None
    assert record.timings["prefill_ms"] == whole.timings["prefill_ms"]
    assert sum(record.timings.values()) == pytest.approx(
        1e3 * (record.e2e or 0.0) - 1e3 * (COST.costs.request + COST.costs.delivery)
    )


def test_an_answer_of_one_token_is_not_handed_over():
    pool = cluster("pd")
    (record,) = pool.run([planned(0, 0.0, 1000, 1)])
    assert record.ok and tokens_by(pool) == [1, 0]


def test_short_and_cached_prompts_are_computed_where_they_are_decoded():
    pool = cluster("pd")
    costs_are_learnt = [planned(index, index / 100, 1000, 1) for index in range(10)]
    pool.run(
        [
            *costs_are_learnt,
            planned(10, 1.0, 40, 5),
            planned(11, 2.0, 1000, 5, session="a"),
            planned(12, 3.0, 1030, 5, session="a"),
            planned(13, 4.0, 2000, 5, session="a"),
        ]
    )
    check(pool)
    assert tokens_by(pool) == [10 + 2, 5 + 4 + 5 + 4]


def test_a_slow_link_is_learnt_and_then_spared():
    pool = cluster("pd", seconds=0.0)
    pool._links[0] = Link(RATE, 2.0)
    records = pool.run([planned(index, 5.0 * index, 1000, 3) for index in range(6)])
    check(pool)
    waited = [record.gaps[0] > 2.0 for record in records]
    assert waited[0] and not any(waited[2:]), "what takes longer than to compute the prompt is not done again"


def test_a_link_sends_one_after_the_other_and_while_it_is_computed():
    link = Link(100.0, 0.5)
    assert link.arrival(200.0, begun=0.0, ended=1.0) == 2.5  # 2 s from the beginning, and the latency
    assert link.arrival(100.0, begun=1.0, ended=1.5) == 3.5  # after the other
    assert link.arrival(100.0, begun=5.0, ended=9.0) == 9.5  # no sooner than it is computed


def test_only_what_is_missing_is_sent():
    pool, ids = BlockPool(10, 4), list(range(18))
    names = block_names(root_hash("m"), ids, 4)
    assert missing(pool, names, ids) == 4
    make_resident(pool, names[:2], ids)
    assert missing(pool, names, ids) == 2 and pool.cached == 2
    make_resident(pool, names, ids)
    assert missing(pool, names, ids) == 0 and pool.cached == 4
    pool.check_integrity([])


def traffic(seed: int, many: int, rate: float) -> list[Planned]:
    rng = random.Random(seed)
    at, found = 0.0, []
    for index in range(many):
        at += rng.expovariate(rate)
        session = f"s{rng.randrange(5)}" if rng.random() < 0.5 else None
        found.append(planned(index, at, rng.randint(1, 1500), rng.randint(1, 120), session=session))
    return found


@pytest.mark.parametrize(
    ("roles", "shape"),
    [("pd", {}), ("ppd", {"max_running": 4}), ("pmd", {"kv_blocks": 70}), ("pmdd", {"max_running": 4})],
)
def test_fast_forward_changes_nothing_and_every_request_ends(roles, shape):
    requests = traffic(len(roles), 40, rate=60.0)
    # What steps cost is learnt anew by skipped ones, so a router that looks at it might choose otherwise.
    pools = [cluster(roles, RoundRobin(), fast_forward=skips, **shape) for skips in (False, True)]
    plain, skipped = ([asdict(record) for record in pool.run(requests)] for pool in pools)
    for pool in pools:
        check(pool)
    assert plain == skipped
    assert all(len(record["tokens"]) == record["asked_output"] for record in plain)
    assert all(
        before[0] <= after[0]
        for record in plain
        for before, after in zip(record["tokens"], record["tokens"][1:], strict=False)
    )


def test_hand_over_needs_names_of_blocks():
    with pytest.raises(ValueError, match="prefix caching must be on"):
        cluster("pd", prefix_caching=False)


TRACE = "tests/loadtest/data/mooncake.jsonl"
SERVER = ["--hardware", "h200", "--model", "qwen3-0.6b", "--max-prompt", "2000", "--max-output", "50"]


def test_the_command_takes_roles(capsys):
    assert cli.main([TRACE, *SERVER, "--roles", "prefill:1,decode:2", "--slo", "ttft=1s,tpot=50ms"]) == 0
    assert "3 x h200" in capsys.readouterr().out


@pytest.mark.parametrize(
    "roles", ["prefill:2", "decode", "decode:0,prefill:1", "prefill:1,prefill:1,decode:1", "fast:1"]
)
def test_roles_that_serve_no_request_are_refused(roles, capsys):
    with pytest.raises(SystemExit):
        cli.main([TRACE, *SERVER, "--roles", roles])
    assert "--roles" in capsys.readouterr().err
