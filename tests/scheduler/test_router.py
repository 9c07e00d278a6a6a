"""Which replica gets a request: turns, loads, and where a prefix went before."""

import pytest

from scheduler.router import ROUTERS, LeastLoaded, PrefixAware, Role, RoundRobin
from scheduler.types.step import ChunkPhase

PREFILL, DECODE = ChunkPhase.PREFILL, ChunkPhase.DECODE


class Busy:
    def __init__(self, open_: int, role: Role = Role.MIXED, available: bool = True) -> None:
        self.open = open_
        self.role = role
        self.available = available


def test_a_prefix_is_left_where_its_replica_is_too_busy():
    router, replicas = PrefixAware(block_size=4, slack=8), [Busy(1), Busy(0), Busy(5)]
    prompt = list(range(16))
    assert router.choose(prompt, replicas, PREFILL) == 1
    replicas[1].open = 9
    assert router.choose(prompt, replicas, PREFILL) == 1, "8 more than the least loaded"
    replicas[1].open = 10
    assert router.choose(prompt, replicas, PREFILL) == 0, "9 more"
    replicas[1].open = 0
    assert router.choose([*prompt, 99], replicas, PREFILL) == 0, "that is where the prefix is now"
    assert router.choose([7, *prompt], replicas, PREFILL) == 1, "another prefix"


def test_a_prefix_router_forgets_what_it_used_least_recently():
    router, replicas = PrefixAware(block_size=4, capacity=3), [Busy(0)]
    for token in range(5):
        router.choose([token] * 8, replicas, PREFILL)
    assert len(router._sent) == 3


@pytest.mark.parametrize("name", ROUTERS)
def test_every_router_chooses_one_of_the_replicas(name):
    router = ROUTERS[name]()
    replicas = [Busy(load) for load in (3, 0, 2)]
    assert {router.choose([1] * size, replicas, PREFILL) for size in (1, 32, 200)} <= {0, 1, 2}
    assert router.choose([5], [Busy(9)], PREFILL) == 0


def test_turns_go_round_whatever_the_load():
    router, replicas = RoundRobin(), [Busy(9), Busy(0)]
    assert [router.choose([1], replicas, PREFILL) for _ in range(4)] == [0, 1, 0, 1]


def test_of_equal_loads_the_first_is_chosen():
    assert LeastLoaded().choose([1], [Busy(2), Busy(1), Busy(1)], PREFILL) == 1


def test_a_prompt_shorter_than_a_block_goes_where_the_load_is_least():
    router, replicas = PrefixAware(block_size=4), [Busy(1), Busy(0)]
    assert router.choose([1, 2, 3], replicas, PREFILL) == 1
    replicas[1].open = 2
    assert router.choose([1, 2, 3], replicas, PREFILL) == 0


@pytest.mark.parametrize("name", ROUTERS)
def test_a_request_goes_to_a_replica_that_takes_its_phase(name):
    router = ROUTERS[name]()
    replicas = [Busy(0, Role.DECODE), Busy(5, Role.PREFILL), Busy(9, Role.PREFILL), Busy(7, Role.DECODE)]
    prompts = [[prompt] * 70 for prompt in (1, 2, 1, 3, 2, 1)]
    assert {router.choose(prompt, replicas, PREFILL) for prompt in prompts} <= {1, 2}
    assert {router.choose(prompt, replicas, DECODE) for prompt in prompts} <= {0, 3}
    replicas.append(Busy(0))
    chosen = {router.choose([size] * 70, replicas, phase) for size in range(9) for phase in (PREFILL, DECODE)}
    assert 4 in chosen, "a mixed one takes both"


@pytest.mark.parametrize("name", ROUTERS)
@pytest.mark.parametrize(("phase", "role"), [(PREFILL, Role.DECODE), (DECODE, Role.PREFILL)])
def test_a_phase_that_no_replica_takes_is_refused(name, phase, role):
    with pytest.raises(ValueError, match=f"no available replica takes the phase '{phase.value}' .roles: {role.value}"):
        ROUTERS[name]().choose([1], [Busy(0, role), Busy(1, role)], phase)


def test_a_prefix_is_remembered_for_each_phase_and_as_long_as_its_replica_takes_it():
    router, replicas = PrefixAware(block_size=4), [Busy(0), Busy(1)]
    prompt = list(range(8))
    assert router.choose(prompt, replicas, PREFILL) == 0
    replicas[0].open = 5
    assert router.choose(prompt, replicas, DECODE) == 1, "its decodes never went anywhere"
    assert router.choose(prompt, replicas, PREFILL) == 0
    replicas[0].role = Role.DECODE
    assert router.choose(prompt, replicas, PREFILL) == 1


@pytest.mark.parametrize("name", ROUTERS)
def test_a_replica_that_is_not_available_gets_nothing_until_it_is_back(name):
    router, prompt = ROUTERS[name](), [1] * 70
    replicas = [Busy(0, available=False), Busy(5), Busy(9, available=False)]
    assert [router.choose(prompt, replicas, PREFILL) for _ in range(3)] == [1, 1, 1]
    replicas[1].available = False
    with pytest.raises(ValueError, match="roles: none"):
        router.choose(prompt, replicas, PREFILL)
    replicas[0].available = True
    assert router.choose(prompt, replicas, PREFILL) == 0


def test_equal_prompts_under_different_salts_are_different_prefixes():
    router, replicas, prompt = PrefixAware(block_size=4), [Busy(0), Busy(1)], list(range(8))
    assert router.choose(prompt, replicas, PREFILL, "a") == 0
    replicas[0].open = 2
    assert router.choose(prompt, replicas, PREFILL, "b") == 1
    assert router.choose(prompt, replicas, PREFILL, "a") == 0


def test_prefixes_are_spread_over_replicas_that_have_nothing_to_do():
    router, replicas = PrefixAware(block_size=4, capacity=4), [Busy(0), Busy(0)]
    assert [router.choose([token] * 8, replicas, PREFILL) for token in range(4)] == [0, 1, 0, 1]
    assert [router.choose([token] * 8, replicas, PREFILL) for token in (1, 0)] == [1, 0]
    assert router.choose([9] * 40, replicas, PREFILL) == 0
    assert sum(router._held.values()) == len(router._sent) == 8
    assert router.choose([8] * 8, replicas, PREFILL) == 1
