"""Whose request it is: tenants by key or `user`, and a cache for each key.

The scheduler behind the HTTP side is the real one, so what `usage` says of cached tokens is what the block pool found.
"""

import asyncio

import pytest

from configs.settings import Settings
from scheduler.kv.block_pool import BlockPool
from scheduler.scheduler import Scheduler
from scheduler.types.config import SchedulerConfig
from scheduler.types.messages import AbortRequests, AddRequest, StepOutputs
from server.api.completions import completion_job
from server.api.tenants import ANYBODY, tenants_of
from server.errors import UnsupportedField
from server.schema.completions import CompletionRequest
from tests.scheduler.sim_worker import SimWorker
from tests.server.api.scripted import CONTEXT, Server, run

COMPLETIONS = "/v1/completions"
PROMPT = "It was the best of times, it was the worst of times, it was the age of wisdom"
KEYS = {"api_key": ["sesame", "open-up"]}


class ScheduledProcess:
    """What `Incarnations` takes for an engine process: the real scheduler over a worker without a model."""

    pid, started = 1, 0.0

    def __init__(self):
        self.incarnations = None
        self.pool = BlockPool(CONTEXT // 8, 8)
        config = SchedulerConfig(context=CONTEXT, eos_token_ids=frozenset(), fingerprint="http")
        self.scheduler = Scheduler(config, self.pool)
        self.worker = SimWorker(CONTEXT // 8, 8)
        self.requests: list[AddRequest] = []
        self.task = None

    def listen(self, name, on_event, on_broken):
        """Events are handed to the client where they arise."""

    def once_connected(self, action):
        action()

    def remove_endpoints(self):
        """There are none."""

    def send(self, command):
        if isinstance(command, AddRequest):
            self.requests.append(command)
            self.scheduler.add(command, 0.0)
        elif isinstance(command, AbortRequests):
            for request_id in command.request_ids:
                self.scheduler.abort(request_id, 0.0)
        if self.task is None or self.task.done():
            self.task = asyncio.create_task(self.run())

    async def run(self):
        while not self.scheduler.idle:
            await asyncio.sleep(0)
            step = self.scheduler.schedule(0.0)
            outputs = self.scheduler.update(step, self.worker.run(step), 0.0)
            self.incarnations.handle(StepOutputs(outputs=outputs, stats=self.scheduler.snapshot()))


def served(**settings):
    server = Server(**settings)
    server.replace(ScheduledProcess())
    return server


async def cached(server, key=None, **fields):
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    body = {"prompt": PROMPT, "max_tokens": 2, "ignore_eos": True, **fields}
    response = await server.post(COMPLETIONS, body, headers=headers)
    assert response.status_code == 200, response.text
    return response.json()["usage"]["prompt_tokens_details"]["cached_tokens"]


def test_another_salt_sees_no_hit():
    async def body():
        server = served()
        found = [await cached(server, cache_salt=salt) for salt in ("", "", "a", "a", "b", "")]
        assert found == [0, 72, 0, 72, 0, 72]

    run(body)


def test_with_isolated_keys_another_key_sees_no_hit_whatever_salt_it_sends():
    async def body():
        server = served(isolate_keys=True, **KEYS)
        salted = [await cached(server, "sesame", cache_salt=salt) for salt in ("", "", "s", "s")]
        assert salted == [0, 72, 0, 72]
        before = set(server.process.pool._index)
        own = server.process.requests[0].cache_salt
        found = [await cached(server, "open-up", cache_salt=salt) for salt in ("", "s", own)]
        assert found == [0, 0, 0]
        other = set(server.process.pool._index) - before
        assert len(before) == 2 * 9 and len(other) >= 2 * 9, "every block of the other key has a name of its own"
        assert await cached(server, "sesame") in (0, 72), "evicted, or found: never somebody else's"

    run(body)


def test_keys_share_prefixes_unless_they_are_isolated():
    async def body():
        server = served(**KEYS)
        assert [await cached(server, key) for key in KEYS["api_key"]] == [0, 72]

    run(body)


def tenants(server, sent):
    async def body():
        for key, fields in sent:
            await cached(server, key, **fields)
        return [request.tenant for request in server.process.requests]

    return run(body)


def test_a_tenant_is_a_key_or_else_a_user():
    users = [(None, {"user": "ann"}), (None, {}), (None, {"user": "ben"})]
    assert tenants(served(), users) == ["ann", "", "ben"]
    keyed = [("sesame", {"user": "ann"}), ("open-up", {"user": "ann"}), ("sesame", {})]
    assert tenants(served(**KEYS), keyed) == ["key1", "key2", "key1"]
    assert tenants(served(key_names=["shop", "shop"], **KEYS), keyed) == ["shop"] * 3


def test_salts_of_tenants_are_of_one_length_and_their_own():
    tenants = tenants_of(Settings(isolate_keys=True, api_key=["a", "ab", "key1"]))
    salts = {tenant.salted("") for tenant in tenants.values()}
    assert len(salts) == 3 and {len(salt) for salt in salts} == {33}
    assert not any(key in salt for key, tenant in tenants.items() for salt in [tenant.salted("")] if len(key) > 2)
    assert ANYBODY.salted("x") == "x"


def test_a_priority_is_refused_where_requests_are_served_as_they_come():
    server = Server(scheduling="fcfs")
    with pytest.raises(UnsupportedField, match=r"`priority` must be 0 .*fcfs.*got 3.*--scheduling") as caught:
        completion_job(CompletionRequest(prompt="a", priority=3), server.context)
    assert (caught.value.status, caught.value.param) == (400, "priority")
    assert completion_job(CompletionRequest(prompt="a", priority=0), server.context).sequences
    for scheduling in ("priority", "fair"):
        other = Server(scheduling=scheduling).context
        request = completion_job(CompletionRequest(prompt="a", priority=3), other).sequences[0].request
        assert request.priority + request.own_priority == 3


@pytest.mark.parametrize("text", ["ann", "ann=", "ann=x", "ann=0", "ann=-1", "ann=nan", "ann=1000", "2"])
def test_a_weight_that_is_none_is_refused(text):
    with pytest.raises(ValueError, match="tenant_weights"):
        Settings(tenant_weights=[text])


def test_a_pin_is_refused_where_nothing_is_cached():
    body = CompletionRequest(prompt="a", cache_pin_seconds=60.0)
    with pytest.raises(
        UnsupportedField, match=r"`cache_pin_seconds` must be 0 .*--no-prefix-caching.*got 60"
    ) as caught:
        completion_job(body, Server(prefix_caching=False).context)
    assert (caught.value.status, caught.value.param) == (400, "cache_pin_seconds")
    assert completion_job(body, Server().context).sequences[0].request.pin_seconds == 60.0


def priorities(server, sent):
    """(among everybody's requests, among the tenant's own) of each request that was sent."""

    async def body():
        for key, priority in sent:
            await cached(server, key, priority=priority, user="ann")
        return [(request.priority, request.own_priority) for request in server.process.requests]

    return run(body)


@pytest.mark.parametrize("scheduling", ["priority", "fair"])
def test_a_priority_holds_among_the_keys_own_requests_unless_the_key_may_more(scheduling):
    settings = {"scheduling": scheduling, "key_names": ["shop", "desk"], "priority_keys": ["desk"], **KEYS}
    sent = [("sesame", -5), ("open-up", -5), ("sesame", 3), ("open-up", 0)]
    assert priorities(served(**settings), sent) == [(0, -5), (-5, 0), (0, 3), (0, 0)]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"scheduling": "fair"}, (0, -5)),  # each user has a share
        ({"scheduling": "priority"}, (-5, 0)),  # nobody is told apart
        ({"scheduling": "fair", "priority_scope": "all"}, (-5, 0)),
        ({"scheduling": "throughput"}, (-5, 0)),
    ],
)
def test_without_keys_a_priority_holds_as_far_as_users_are_told_apart(settings, expected):
    assert priorities(served(**settings), [(None, -5)]) == [expected]


def test_with_scope_all_every_key_may_pass_everybody():
    assert priorities(served(priority_scope="all", **KEYS), [("sesame", -5)]) == [(-5, 0)]


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"priority_scope": "none"}, "on this server (priority_scope is none), got -5; start with --priority-scope"),
        ({"scheduling": "throughput", **KEYS}, "for this API key (scheduling is throughput, which orders all requests"),
    ],
)
def test_a_priority_that_cannot_hold_is_refused_by_name(settings, why):
    async def body():
        server = served(**settings)
        headers = {"Authorization": "Bearer sesame"}
        response = await server.post(COMPLETIONS, {"prompt": PROMPT, "priority": -5}, headers=headers)
        assert response.status_code == 400
        assert response.json()["error"]["param"] == "priority"
        assert f"`priority` must be 0 {why}" in response.json()["error"]["message"]
        assert not server.process.requests
        await cached(server, "sesame", priority=0)

    run(body)
