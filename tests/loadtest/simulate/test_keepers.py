"""What a replica finds in the keeper of its node, and in those of others: real books, seconds by bytes and links."""

import pytest

from loadtest.simulate import cli
from loadtest.simulate.cluster import Cluster, Machines, RolePool, ServerShape
from loadtest.simulate.content import Content
from loadtest.simulate.cost import CostModel
from loadtest.simulate.faults.failure import parse_failure
from loadtest.simulate.keepers.keepers import KeeperShape
from loadtest.simulate.links import LINKS, link_rate
from loadtest.simulate.specs import load_hardware, load_model
from loadtest.workload.plan import Planned
from scheduler.router.policies import make_router
from scheduler.router.view import Role
from scheduler.types.messages import AddRequest
from scheduler.types.sampling_params import SamplingParams

COST = CostModel(load_hardware("h200"), load_model("llama-3-8b"))
BLOCK = 32 * COST.model.kv_bytes_per_token
FAST = {"host": 5e10, "peer": 2.5e10}


def planned(index: int, at: float, blocks: tuple[int, ...], output: int = 4) -> Planned:
    return Planned(
        index=index, intended=at, prompt_tokens=32 * len(blocks), output_tokens=output, blocks=blocks, block_tokens=32
    )


def turns(many: int, prompt: tuple[int, ...], gap: float = 1.0) -> list[Planned]:
    """The same prompt again and again, each time with a question of its own; in turns it comes to another replica each time."""
    return [planned(index, gap * index, (*prompt, 10_000 + index)) for index in range(many)]


def pool_of(
    *,
    reach: bool = False,
    gib: float = 8,
    replicas: int = 2,
    size: int = 2,
    fail: str = "",
    rates: dict[str, float] = FAST,
) -> Cluster:
    keeper = KeeperShape(bytes=gib * 2**30, reach=reach, rates=rates)
    machines = Machines(replicas=size, keeper=keeper, failures=[parse_failure(fail)] if fail else [])
    return Cluster(COST, ServerShape(kv_blocks=400), make_router("round-robin"), replicas, machines=machines)


def check(cluster: Cluster) -> None:
    for replica in cluster.replicas:
        assert not replica.open and replica.due is None and not replica.scheduler.transferring
        replica.scheduler.check_integrity()


PROMPT = tuple(range(100))


def test_what_one_replica_computed_the_other_finds_in_their_keeper():
    with_keeper = pool_of()
    records = with_keeper.run(turns(3, PROMPT))
    check(with_keeper)
    assert [record.cached_tokens for record in records] == [0, 3200, 3200]
    first, second, _ = (record.ttft or 0.0 for record in records)
    computed = pool_of(gib=0.001)
    apart = [record.cached_tokens for record in computed.run(turns(3, PROMPT))]
    check(computed)
    assert apart == [0, 0, 3200]
    # 100 blocks over the link, then the question and a step.
    loaded = 100 * BLOCK / FAST["host"]
    assert loaded < second - COST.costs.request - COST.costs.delivery < loaded + 0.02 < first


@pytest.mark.parametrize(("reach", "found"), [(False, 0), (True, 3200)])
def test_the_keepers_of_other_nodes_are_within_reach_or_not(reach, found):
    cluster = pool_of(reach=reach, size=1)
    records = cluster.run(turns(2, PROMPT))
    check(cluster)
    assert [record.cached_tokens for record in records] == [0, found]
    if reach:
        assert cluster.replicas[1].scheduler.snapshot().tiers["peer"].loaded == 100


def test_a_link_that_is_slower_than_computing_is_spared():
    cluster = pool_of(rates={"host": 2e9, "peer": 2e9})
    records = cluster.run(turns(8, PROMPT, gap=3.0))
    check(cluster)
    assert records[1].cached_tokens == 3200, "the first load measures it"
    other = [planned(20, 30.0, tuple(range(500, 600))), planned(21, 33.0, tuple(range(500, 600)))]
    cluster = pool_of(rates={"host": 2e9, "peer": 2e9})
    records = cluster.run([*turns(2, PROMPT, gap=3.0), *other])
    assert (records[-1].cached_tokens or 0) < 3200


def test_a_replica_that_died_finds_its_blocks_again_and_a_node_that_died_does_not():
    for fail, found in (("replica:0@2+1", 3200), ("node:0@2+4", 0)):
        cluster = pool_of(replicas=1, size=1, fail=fail)
        records = cluster.run([planned(0, 0.0, (*PROMPT, 7000)), planned(1, 8.0, (*PROMPT, 7001))])
        check(cluster)
        assert records[1].cached_tokens == found


def test_what_dies_in_the_middle_of_a_load_leaves_nothing_behind():
    slow = {"host": 5e10, "peer": 4e8}  # a second for the prompt
    for fail in ("node:0@3.5", "node:1@3.5", "replica:1@3.5", "replica:1@3.1+0.2"):
        cluster = pool_of(reach=True, replicas=2, size=1, rates=slow, fail=fail)
        records = cluster.run([planned(0, 0.0, (*PROMPT, 7000)), planned(1, 3.0, (*PROMPT, 7001), output=300)])
        check(cluster)
        assert all(record.ok and len(record.tokens) == record.asked_output for record in records)


def test_a_full_keeper_gives_up_what_was_used_longest_ago():
    cluster = pool_of(replicas=1, size=1, gib=150 * BLOCK / 2**30)
    requests = [planned(index, 2.0 * index, tuple(range(1000 * index, 1000 * index + 120))) for index in range(6)]
    cluster.run(requests)
    check(cluster)
    tier = cluster.replicas[0].scheduler.snapshot().tiers["host"]
    assert tier.blocks <= 150 and tier.evicted > 400


def test_a_router_sees_what_is_in_keepers():
    keeper = KeeperShape(bytes=8 * 2**30, reach=False, rates=FAST)
    machines = Machines(replicas=2, keeper=keeper)
    cluster = Cluster(COST, ServerShape(kv_blocks=400), make_router("prefix-aware"), 4, machines=machines)
    cluster.run(turns(1, PROMPT))
    text = Content(32).text(planned(9, 9.0, (0, 1, 7)))
    again = AddRequest(request_id="again", prompt_ids=text.prompt, sampling=SamplingParams(max_tokens=1))
    views = [replica.view(again, text.prompt_names, 9.0) for replica in cluster.replicas]
    assert sorted((view.cached_tokens, view.tier_tokens) for view in views) == [(0, 0), (0, 0), (0, 64), (64, 0)]


def test_hand_overs_have_a_link_of_their_own():
    keeper = KeeperShape(bytes=8 * 2**30, reach=False, rates=FAST)
    pool = RolePool(roles=(Role.PREFILL, Role.DECODE), bytes_per_second=5e10)
    with pytest.raises(ValueError, match="mixed replicas only"):
        Cluster(COST, ServerShape(), make_router("prefix-aware"), pool, machines=Machines(keeper=keeper))


def test_links_by_name_or_number():
    assert link_rate("ib-ndr") == pytest.approx(4.5e10) and link_rate("2e9") == 2e9
    assert all(each.source for each in LINKS.values())
    for text in ("token-ring", "0", "-3", "inf", "nan"):
        with pytest.raises(ValueError, match="neither bytes per second"):
            link_rate(text)


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--node-size", "0"),
        ("--keeper-gib", "none"),
        ("--peer-bandwidth", "fast"),
        ("--fail", "node"),
        ("--crowd", "0"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(flag, value, capsys):
    with pytest.raises(SystemExit):
        cli.main(["tests/loadtest/data/mooncake.jsonl", "--hardware", "h200", "--model", "qwen3-0.6b", flag, value])
    assert flag in capsys.readouterr().err
