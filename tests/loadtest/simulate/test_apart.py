"""Replicas that take turns bring the same, played together or each by itself, here or in processes."""

from dataclasses import asdict, replace

import pytest

from loadtest.report.run_file import read_run
from loadtest.simulate import apart, cli
from loadtest.simulate.apart import AloneCluster, ApartCluster, dealt
from loadtest.simulate.cluster import Cluster, ServerShape
from loadtest.workload.plan import Planned
from scheduler.router.round_robin import RoundRobin
from tests.drawn import drawn
from tests.loadtest.simulate.test_cluster import cost, planned, traffic

SHAPES = ({}, {"max_running": 4}, {"max_waiting": 2, "max_running": 2}, {"kv_blocks": 200}, {"context": 600})


def together(requests: list[Planned], shape: ServerShape, replicas: int) -> tuple[list[object], list[object]]:
    cluster = Cluster(cost(), shape, RoundRobin(), replicas, fast_forward=False)
    return [asdict(each) for each in cluster.run(requests)], [asdict(each) for each in cluster.stats()]


def apart_from(requests: list[Planned], shape: ServerShape, replicas: int, processes: int = 1) -> tuple[object, object]:
    cluster = ApartCluster(cost(), shape, replicas, processes)
    records = cluster.run(requests)
    assert records is cluster.records
    return [asdict(each) for each in records], [asdict(each) for each in cluster.stats()]


@pytest.mark.parametrize("seed", range(drawn(3)))
@pytest.mark.parametrize("shape", SHAPES)
def test_each_by_itself_is_as_all_together(seed, shape):
    requests = traffic(seed, 60, rate=60.0 * (seed + 1))
    assert apart_from(requests, ServerShape(**shape), 3) == together(requests, ServerShape(**shape), 3)


@pytest.mark.parametrize("shape", [{"max_running": 3}, {"kv_blocks": 70}, {}])
def test_where_one_may_be_full_all_are_played_together(shape, monkeypatch):
    """A replica that is full is passed over, and nobody knows of the others. So it is given up before that."""
    requests, apart_too = traffic(1, 60, rate=100.0), list[int]()
    alone = AloneCluster.run
    monkeypatch.setattr(AloneCluster, "run", lambda self, own: apart_too.append(len(alone(self, own))) or self.records)
    assert apart_from(requests, ServerShape(**shape), 3) == together(requests, ServerShape(**shape), 3)
    assert len(apart_too) == (0 if shape else 3)


@pytest.mark.processes
def test_so_it_is_in_processes(monkeypatch):
    monkeypatch.setattr(apart, "FEW", 10)
    requests, shape = traffic(7, 80, rate=90.0), ServerShape(max_running=40)
    assert apart_from(requests, shape, 5, processes=2) == together(requests, shape, 5)


def test_texts_of_their_own_and_more_replicas_than_requests():
    requests = [replace(each, session=None) for each in traffic(3, 5, rate=9.0)]
    records, stats = apart_from(requests, ServerShape(), 9)
    plain, counters = together(requests, ServerShape(), 9)
    cached = {"blocks_cached", "blocks_free"}  # of counted blocks nobody knows what they hold
    known = [[{name: each[name] for name in each.keys() - cached} for each in found] for found in (stats, counters)]  # type: ignore[attr-defined]
    assert records == plain and known[0] == known[1]


def test_what_does_not_fit_has_no_turn():
    requests = [planned(index, float(index), prompt, 5) for index, prompt in enumerate((10, 900, 20, 900, 30))]
    assert [[each.index for each in own] for own in dealt(requests, 2, 500)] == [[0, 3, 4], [1, 2]]
    records, _ = apart_from(requests, ServerShape(context=500), 2)
    assert records == together(requests, ServerShape(context=500), 2)[0]


def test_progress_is_told_after_each_replica():
    told: list[int] = []
    ApartCluster(cost(), ServerShape(), 3, 1).run(traffic(0, 7, rate=5.0), told.append)
    assert told == [3, 5, 7]


@pytest.mark.parametrize(
    ("flags", "played_apart"),
    [
        (["--router", "round-robin", "--replicas", "2"], True),
        (["--router", "round-robin"], False),
        (["--router", "prefix-aware", "--replicas", "2"], False),
        (["--router", "round-robin", "--replicas", "2", "--deadline", "end=100"], False),
        (["--router", "round-robin", "--replicas", "2", "--keeper-gib", "1"], False),
        (["--router", "round-robin", "--replicas", "2", "--fail", "replica:0@1"], False),
    ],
)
def test_the_command_plays_apart_what_takes_turns(flags, played_apart, tmp_path, monkeypatch):
    calls: list[int | None] = []
    made = ApartCluster.__init__
    monkeypatch.setattr(ApartCluster, "__init__", lambda self, *a: calls.append(a[-1]) or made(self, *a))
    monkeypatch.setattr("loadtest.report.pages.plots.plots", lambda view: [])
    path = tmp_path / "azure.csv"
    rows = [f"2023-11-16 18:15:{40 + index}.6805900,{200 + 40 * index},{10 + index}" for index in range(8)]
    path.write_text("\r\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *rows]))
    server = ["--hardware", "h200", "--model", "qwen3-0.6b", "--block-size", "32"]
    flags = [*flags, "--processes", "1"] if played_apart else flags
    assert cli.main([str(path), *server, *flags, "--output", str(tmp_path / "out")]) == 0
    run = read_run(tmp_path / "out" / "run.json")
    assert len(run.records) == 8 and [record.index for record in run.records] == list(range(8))
    assert run.scraped["after"]["headrace_generation_tokens_total"] == sum(10 + index for index in range(8))
    assert calls == ([1] if played_apart else [])
