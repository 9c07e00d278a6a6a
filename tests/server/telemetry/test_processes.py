"""The series of keeper and HTTP processes: read anew each time they are asked for."""

import os
from dataclasses import replace
from types import SimpleNamespace

from prometheus_client import CollectorRegistry, generate_latest

from server.telemetry.processes import HttpProcessCollector, HttpProcessFigures, KeeperCollector


def series(registry):
    lines = generate_latest(registry).decode().splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[0] != "#")}


def test_a_keepers_series_follow_it_through_its_lives():
    now = {"up": True, "died": 0, "pid": os.getpid()}
    registry = CollectorRegistry()

    def figures():
        return {"": SimpleNamespace(up=now["up"], restarts={"died": now["died"], "hung": 2}, pid=now["pid"])}

    KeeperCollector(figures, registry)
    before = series(registry)
    assert before["headrace_keeper_up"] == 1 and before["headrace_keeper_process_resident_memory_bytes"] > 0
    now.update(up=False, died=1, pid=None)
    after = series(registry)
    assert after["headrace_keeper_up"] == 0
    assert after['headrace_keeper_restarts_total{reason="died"}'] == 1
    assert after['headrace_keeper_restarts_total{reason="hung"}'] == 2
    assert not [name for name in after if "process_" in name], "a process that is not there uses nothing, not ours"
    now.update(pid=os.getpid())
    assert set(series(registry)) == set(before)


def test_keepers_of_other_machines_have_a_label():
    now, registry = {}, CollectorRegistry()
    KeeperCollector(lambda: now, registry)
    assert not series(registry)
    now["10.0.0.1"] = SimpleNamespace(up=True, restarts={"died": 1, "hung": 0}, pid=None)
    now["10.0.0.2"] = SimpleNamespace(up=False, restarts={}, pid=None)
    assert series(registry) == {
        'headrace_keeper_up{node="10.0.0.1"}': 1,
        'headrace_keeper_up{node="10.0.0.2"}': 0,
        'headrace_keeper_restarts_total{node="10.0.0.1",reason="died"}': 1,
        'headrace_keeper_restarts_total{node="10.0.0.1",reason="hung"}': 0,
    }


def test_http_processes_are_told_apart_and_only_those_that_there_are_appear():
    one = HttpProcessFigures(name="http-0", up=True, restarts=0, connections=3, cpu_seconds=0.25)
    now = []
    registry = CollectorRegistry()
    registry.register(HttpProcessCollector(lambda: now))
    assert not series(registry)
    now += [one, replace(one, name="http-1", up=False, restarts=2, connections=0, cpu_seconds=1.5)]
    assert series(registry) == {
        'headrace_http_process_up{process="http-0"}': 1,
        'headrace_http_process_up{process="http-1"}': 0,
        'headrace_http_process_restarts_total{process="http-0"}': 0,
        'headrace_http_process_restarts_total{process="http-1"}': 2,
        'headrace_http_connections_open{process="http-0"}': 3,
        'headrace_http_connections_open{process="http-1"}': 0,
        'headrace_http_process_cpu_seconds_total{process="http-0"}': 0.25,
        'headrace_http_process_cpu_seconds_total{process="http-1"}': 1.5,
    }
