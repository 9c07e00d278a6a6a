"""Roles that follow a trace whose mix changes half-way, in simulated time: the costs of two CPU cores, four replicas."""

import random
from functools import cache

import pytest

from loadtest.report.records import Objective, RequestRecord
from loadtest.simulate.cluster import Cluster, RolePool, ServerShape
from loadtest.simulate.cost import CostModel
from loadtest.simulate.specs import load_hardware, load_model
from loadtest.workload.plan import Planned
from scheduler.router.prefix_aware import PrefixAware
from scheduler.router.role_switching import PhaseBounds, RoleSwitch, RoleSwitching
from scheduler.router.view import Role

COST = CostModel(load_hardware("cpu-2core"), load_model("smollm2-135m"))
SLO = Objective(ttft=4.0, tpot=0.03)
SECONDS = 120.0
LONG_PROMPTS, LONG_ANSWERS = (1.8, 2000, 16), (3.0, 64, 300)  # requests/s, and tokens on average
ROLES = {"p": Role.PREFILL, "d": Role.DECODE}


def trace(*mixes: tuple[float, int, int]) -> list[Planned]:
    rng, found, at = random.Random(0), list[Planned](), 0.0
    for part, (rate, prompt, output) in enumerate(mixes):
        at = part * SECONDS
        while (at := at + rng.expovariate(rate)) < (part + 1) * SECONDS:
            lengths = [rng.randint(mean // 2, 3 * mean // 2) for mean in (prompt, output)]
            found.append(Planned(index=len(found), intended=at, prompt_tokens=lengths[0], output_tokens=lengths[1]))
    return found


@cache
def simulate(roles: str, *mixes: tuple[float, int, int], switches: bool = False) -> tuple[float, list[RoleSwitch]]:
    """The share of requests within their objective, and the switches."""
    switching = RoleSwitching(PhaseBounds(SLO.ttft or 0.0, SLO.tpot or 0.0)) if switches else None
    pool = RolePool(
        roles=tuple(map(ROLES.__getitem__, roles)),
        bytes_per_second=5e9,
        seconds=0.0005,
        switching=switching,
    )
    shape = ServerShape(max_step_tokens=128, max_running=32, kv_blocks=2000)
    cluster = Cluster(COST, shape, PrefixAware(SLO.tpot), pool)
    records: list[RequestRecord] = cluster.run(trace(*mixes))
    assert all(record.ok for record in records)
    return sum(map(SLO.met_by, records)) / len(records), [
        made for _, made in cluster.watch.switches
    ] if cluster.watch else []


@pytest.mark.parametrize("fixed", ["pppd", "ppdd", "pddd"])
def test_roles_that_follow_the_mix_beat_every_fixed_split(fixed):
    met, switches = simulate("ppdd", LONG_PROMPTS, LONG_ANSWERS, switches=True)
    assert [(made.before, made.after) for made in switches] == [
        (Role.DECODE, Role.PREFILL),
        (Role.PREFILL, Role.DECODE),
    ]
    assert met > 0.97
    assert met > 0.04 + simulate(fixed, LONG_PROMPTS, LONG_ANSWERS)[0]


@pytest.mark.long
def test_a_steady_mix_is_found_and_kept():
    met, switches = simulate("ppdd", LONG_PROMPTS, LONG_PROMPTS, switches=True)
    assert [(made.before, made.after) for made in switches] == [(Role.DECODE, Role.PREFILL)]
    assert met > 0.97
    assert simulate("ppdd", LONG_ANSWERS, LONG_ANSWERS, switches=True) == (pytest.approx(1.0, abs=0.01), [])
