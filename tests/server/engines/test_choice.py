"""Which engine gets a job, with the routers that the server is given."""

import pytest

from configs.settings import Settings
from scheduler.router.policies import ROUTERS, make_router
from scheduler.router.prefix_aware import PrefixAware
from scheduler.router.round_robin import RoundRobin
from scheduler.types.messages import EngineStats
from server.engines.client import EngineClient
from server.engines.engines import Engines
from server.engines.supervision.incarnations import Incarnations
from server.errors import QueueFull, Unavailable
from server.telemetry.lifetime import Lifetime
from server.telemetry.metrics import Metrics
from tests.server.engines.harness import job
from tests.server.engines.scripted_engine import READY


def engines_of(router, count=2, **settings):
    metrics = Metrics()
    made = [EngineClient(f"engine-{number}", Settings(**settings), metrics) for number in range(count)]
    for client in made:
        Incarnations(client, metrics).handle(READY)
    return Engines(made, router)


def submit(engines, prompt, salt=""):
    asked = job(prompt)
    request = asked.sequences[0].request
    request.cache_salt = salt
    chosen = engines.choose(asked)
    chosen.submit(request, Lifetime(received=0.0, prompt_tokens=len(prompt)))
    return chosen.name


def test_equal_prefixes_meet_in_one_engine():
    engines = engines_of(PrefixAware())
    first, other = [1] * 640, [2] * 640
    assert [submit(engines, prompt) for prompt in (first, other, first, other)] == [
        "engine-0",
        "engine-1",
        "engine-0",
        "engine-1",
    ]
    assert submit(engines, [*first, 9]) == "engine-0"
    assert {submit(engines, [1] * 641) for _ in range(3)} == {"engine-0"}


def test_equal_prompts_under_different_salts_do_not_meet():
    engines = engines_of(PrefixAware())
    assert [submit(engines, [1] * 640, salt) for salt in ("a", "b", "a")] == ["engine-0", "engine-1", "engine-0"]


def test_turns_pass_over_an_engine_that_is_drained_and_come_back():
    engines = engines_of(RoundRobin(), 3)
    assert [engines.choose(job([5])).name[-1] for _ in range(4)] == list("0120")
    engines.by_name["engine-1"].status.draining = True
    assert {engines.choose(job([5])).name[-1] for _ in range(4)} == {"0", "2"}
    engines.by_name["engine-1"].status.draining = False
    assert "1" in {engines.choose(job([5])).name[-1] for _ in range(3)}


@pytest.mark.parametrize("name", ROUTERS)
def test_a_full_queue_is_chosen_only_where_all_are_full(name):
    engines, prompt = engines_of(make_router(name), max_waiting=1), [1] * 64
    assert {submit(engines, prompt), submit(engines, prompt)} == {"engine-0", "engine-1"}
    with pytest.raises(QueueFull, match="max_waiting is 1"):
        engines.choose(job(prompt)).ensure_room(1)
    one = engines.by_name["engine-1"]
    one.status.stats = EngineStats(running=1)
    assert {engines.choose(job(prompt)).name for _ in range(4)} == {"engine-1"}


def test_a_single_engine_is_chosen_without_asking_anybody():
    class Asked(RoundRobin):
        def choose(self, *arguments):
            pytest.fail("asked")

    engines = engines_of(Asked(), 1)
    assert engines.choose(job([5])).name == "engine-0"


def test_a_drained_engine_says_so_and_is_in_good_health():
    engines = engines_of(RoundRobin(), 1)
    (client,) = engines
    client.status.draining = True
    with pytest.raises(Unavailable, match="is drained and takes no new requests"):
        engines.choose(job([5]))
    with pytest.raises(Unavailable, match="is drained"):
        client.ensure_room(1)
    assert client.status.health().trouble is None and not engines.ready


class Shortest:
    """Short prompts to the first one that is available, long ones to the last."""

    def choose(self, prompt_ids, replicas, phase):
        able = [index for index, replica in enumerate(replicas) if replica.available and replica.role.takes(phase)]
        return able[0] if len(prompt_ids) < 32 else able[-1]


def test_a_router_of_another_kind_is_one_class():
    engines = engines_of(Shortest(), 3)
    assert [engines.choose(job([5] * size)).name for size in (1, 32)] == ["engine-0", "engine-2"]
    engines.by_name["engine-0"].status.draining = True
    assert engines.choose(job([5])).name == "engine-1"
