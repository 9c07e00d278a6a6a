"""Which replica gets a request: turns, loads, and where a prefix went before."""

import pytest

from scheduler.router import ROUTERS, LeastLoaded, PrefixAware, RoundRobin


class Busy:
    def __init__(self, open_: int) -> None:
        self.open = open_


def test_a_prefix_is_left_where_its_replica_is_too_busy():
    router, replicas = PrefixAware(block_size=4, slack=8), [Busy(1), Busy(0), Busy(5)]
    prompt = list(range(16))
    assert router.choose(prompt, replicas) == 1
    replicas[1].open = 9
    assert router.choose(prompt, replicas) == 1, "8 more than the least loaded"
    replicas[1].open = 10
    assert router.choose(prompt, replicas) == 0, "9 more"
    replicas[1].open = 0
    assert router.choose([*prompt, 99], replicas) == 0, "that is where the prefix is now"
    assert router.choose([7, *prompt], replicas) == 1, "another prefix"


def test_a_prefix_router_forgets_what_it_used_least_recently():
    router, replicas = PrefixAware(block_size=4, capacity=3), [Busy(0)]
    for token in range(5):
        router.choose([token] * 8, replicas)
    assert len(router._sent) == 3


@pytest.mark.parametrize("name", ROUTERS)
def test_every_router_chooses_one_of_the_replicas(name):
    router = ROUTERS[name]()
    replicas = [Busy(load) for load in (3, 0, 2)]
    assert {router.choose([1] * size, replicas) for size in (1, 32, 200)} <= {0, 1, 2}
    assert router.choose([5], [Busy(9)]) == 0


def test_turns_go_round_whatever_the_load():
    router, replicas = RoundRobin(), [Busy(9), Busy(0)]
    assert [router.choose([1], replicas) for _ in range(4)] == [0, 1, 0, 1]


def test_of_equal_loads_the_first_is_chosen():
    assert LeastLoaded().choose([1], [Busy(2), Busy(1), Busy(1)]) == 1


def test_a_prompt_shorter_than_a_block_goes_where_the_load_is_least():
    router, replicas = PrefixAware(block_size=4), [Busy(1), Busy(0)]
    assert router.choose([1, 2, 3], replicas) == 1
    replicas[1].open = 2
    assert router.choose([1, 2, 3], replicas) == 0
