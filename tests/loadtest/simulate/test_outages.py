"""Replicas and nodes that die in simulated time: nothing is lost, what was computed is computed again, others go on at once."""

import pytest

from loadtest.report.records import ErrorClass, LoadRun, Objective
from loadtest.simulate import cli
from loadtest.simulate.cluster import Cluster, Machines, RolePool, ServerShape
from loadtest.simulate.cost import CostModel
from loadtest.simulate.faults.failure import Failure, parse_failure
from loadtest.simulate.faults.report import outage_section
from loadtest.simulate.specs import load_hardware, load_model
from loadtest.workload.plan import Planned
from scheduler.router.policies import make_router
from scheduler.router.view import Role

COST = CostModel(load_hardware("h200"), load_model("llama-3-8b"))


def planned(index: int, at: float, prompt: int, output: int) -> Planned:
    return Planned(index=index, intended=at, prompt_tokens=prompt, output_tokens=output)


def pool_of(*failures: str, replicas: int | RolePool = 2, size: int = 1, **more: object) -> Cluster:
    machines = Machines(replicas=size, failures=[parse_failure(each) for each in failures])
    shape = ServerShape(kv_blocks=1000)
    return Cluster(COST, shape, make_router("round-robin"), replicas, machines=machines, **more)  # type: ignore[arg-type]


def check(cluster: Cluster) -> None:
    for replica in cluster.replicas:
        assert not replica.open and replica.due is None
        replica.scheduler.check_integrity()


def traffic(many: int = 60) -> list[Planned]:
    return [planned(index, 0.03 * index, 300 + 37 * index % 1100, 40 + index % 50) for index in range(many)]


def test_another_replica_goes_on_where_the_dead_one_was():
    requests = [planned(0, 0.0, 1000, 200), planned(1, 0.01, 1000, 200)]
    cluster = pool_of("replica:0@0.5")
    hit, other = cluster.run(requests)
    check(cluster)
    assert hit.ok and len(hit.tokens) == 200 and other.ok and len(other.tokens) == 200
    before = sum(at <= 0.5 for at, _ in hit.tokens)
    assert 0 < before < 200 and list(cluster.outages.replayed) == [0]
    # The prompt, which is no prefix of anything, and the answer so far.
    assert cluster.outages.recomputed == 1000 + len([at for at, _ in hit.tokens if at - COST.costs.delivery <= 0.5])
    assert max(hit.gaps) > 4 * sorted(hit.gaps)[100], "the client waits for it"
    assert sum(stats.generation_tokens for stats in cluster.stats()) == 400, "no token is computed twice"
    assert hit.cached_tokens == 0 and hit.finish_reason == "length"


@pytest.mark.parametrize("fast_forward", [False, True])
@pytest.mark.parametrize("failures", [["replica:1@0.7"], ["replica:0@0.5+0.2", "replica:0@1.5+0"], ["node:1@0.5+4.5"]])
def test_every_request_ends_whatever_dies(failures, fast_forward):
    cluster = pool_of(*failures, replicas=4, size=2, fast_forward=fast_forward)
    records = cluster.run(traffic())
    check(cluster)
    assert all(record.ok and len(record.tokens) == record.asked_output for record in records)
    assert all(a[0] <= b[0] for each in records for a, b in zip(each.tokens, each.tokens[1:], strict=False))
    assert cluster.outages.replayed and cluster.outages.recomputed > 0


def test_a_machine_that_is_gone_is_noticed_later_than_a_process():
    longest = {}
    for failure in ("replica:0@0.5", "node:0@0.5"):
        cluster = pool_of(failure)
        hit, _ = cluster.run([planned(0, 0.0, 1000, 200), planned(1, 0.01, 1000, 200)])
        longest[failure] = max(hit.gaps)
    assert longest["replica:0@0.5"] < 0.5 and 4.0 < longest["node:0@0.5"] < 4.5


def test_it_comes_back_with_nothing_and_is_used_again():
    cluster = pool_of("replica:0@0.5+1")
    records = cluster.run([planned(index, 0.1 * index, 500, 10) for index in range(40)])
    check(cluster)
    assert all(record.ok for record in records)
    died, other = cluster.stats()
    assert died.prompt_tokens > 8 * 500 and died.prompt_tokens + other.prompt_tokens >= 40 * 500, "counters go on"


def test_while_nothing_is_there_new_ones_are_refused_and_open_ones_wait():
    cluster = pool_of("replica:0@0.2+2", replicas=1)
    records = cluster.run([planned(0, 0.0, 1000, 100), planned(1, 1.0, 10, 1), planned(2, 3.0, 10, 1)])
    check(cluster)
    assert [record.status for record in records] == [200, 503, 200]
    assert 2.0 < max(records[0].gaps) < 2.5


def test_without_recovery_what_waits_fails_at_the_end():
    cluster = pool_of("replica:0@0.2", replicas=1)
    (record,) = cluster.run([planned(0, 0.0, 1000, 100)])
    assert record.error is ErrorClass.STREAM and not record.ok


def test_what_was_computed_in_two_deaths_is_given_to_no_third():
    cluster = pool_of("replica:0@0.3+0.1", "replica:1@0.8")
    (hit,) = cluster.run([planned(0, 0.0, 1000, 400)])
    check(cluster)
    assert hit.error is ErrorClass.STREAM and "2 replicas died" in (hit.detail or "")


def test_roles_do_not_keep_a_request_from_going_on():
    roles = RolePool(roles=(Role.PREFILL, Role.DECODE, Role.DECODE), bytes_per_second=5e10, seconds=0.001)
    for victim in range(3):
        cluster = pool_of(f"replica:{victim}@0.9", replicas=roles)
        records = cluster.run(traffic())
        check(cluster)
        assert all(record.ok and len(record.tokens) == record.asked_output for record in records)


def test_the_table_has_a_row_for_each_time_and_one_for_the_replayed():
    cluster = pool_of("replica:0@0.5+0.5")
    records = cluster.run(traffic())
    run = LoadRun(
        label="",
        target="",
        started=0.0,
        duration=2.0,
        plan={},
        records=records,
        objectives={"default": Objective(ttft=0.2)},
    )
    section = outage_section(run, cluster.outages)
    counts = [int(row[1]) for row in section.rows]
    assert [row[0] for row in section.rows] == ["0 to 0 s", "0 to 1 s", "1 to 2 s", "replayed"]
    assert sum(counts[:3]) == 60 and counts[3] == len(cluster.outages.replayed)
    assert f"{cluster.outages.recomputed:,} tokens" in section.title


def test_failures_as_they_are_written():
    assert parse_failure("node:5@60+120") == Failure(kind="node", number=5, at=60.0, recovery=120.0)
    assert parse_failure("replica:3@1.5") == Failure(kind="replica", number=3, at=1.5)
    for text in (
        "node:5",
        "disk:1@3",
        "node:a@3",
        "node:1@",
        "node:1@3+",
        "replica:-1@3",
        "node:1@1.2.3",
        "node:1@" + "9" * 400,
    ):
        with pytest.raises(ValueError, match="is no failure"):
            parse_failure(text)
    with pytest.raises(ValueError, match="cannot be shorter"):
        parse_failure("node:1@3+2")
    with pytest.raises(ValueError, match="replica 2 cannot fail: there are 2"):
        pool_of("replica:2@1")


def test_the_command_says_what_the_clients_saw(capsys):
    arguments = [
        "tests/loadtest/data/mooncake.jsonl",
        "--hardware",
        "h200",
        "--model",
        "qwen3-0.6b",
        "--max-prompt",
        "2000",
    ]
    assert (
        cli.main([*arguments, "--max-output", "50", "--replicas", "2", "--fail", "replica:1@0.1", "--slo", "ttft=1s"])
        == 0
    )
    assert "requests replayed" in capsys.readouterr().out
    assert cli.main([*arguments, "--fail", "node:1@2"]) == 2
    assert "node 1 cannot fail: there are 1" in capsys.readouterr().err
