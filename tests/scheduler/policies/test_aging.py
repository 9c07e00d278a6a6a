"""Priorities age, and a tenant's own priorities move nobody else's requests. One tick is one second."""

import pytest

from scheduler.types.messages import FinishReason
from tests.scheduler.sim import Engine

SEATS = 16


class Busy:
    """Clients that send their next request of priority 0 as soon as the last has ended, and who ran when."""

    def __init__(self, clients=24, seats=SEATS, tokens=4, max_tokens_a_step=256, **config):
        self.engine = Engine(blocks=400, context=60, max_running=seats, max_step_tokens=max_tokens_a_step, **config)
        self.prompt = 5
        self.clients = clients
        self.tokens = tokens
        self.sent = 0
        self.began = {}  # by request: when its first chunk ran
        self.running = []  # for each step: ids of requests in it
        self.engine.after_step = self.look

    def look(self, step):
        self.running.append({chunk.request_id for chunk in step.chunks})
        for chunk in step.chunks:
            self.began.setdefault(chunk.request_id, self.engine.now)

    def open_of(self, prefix):
        return len([name for name in self.engine.scheduler._table.open if name.startswith(prefix)])

    def go(self, ticks):
        for _ in range(ticks):
            while self.open_of("busy") < self.clients:
                prompt = [self.sent % 40 + 8, *range(1, self.prompt)]
                self.engine.add(f"busy{self.sent}", prompt, max_tokens=self.tokens, ignore_eos=True)
                self.sent += 1
            self.engine.tick()


@pytest.mark.parametrize("scheduling", ["priority", "fair", "throughput"])
@pytest.mark.parametrize("priority", [1, 2**31 - 1])
def test_a_request_of_any_priority_is_served_beside_busy_clients_of_a_better_one(scheduling, priority):
    busy = Busy(priority_aging=10.0, scheduling=scheduling)
    busy.go(5)
    busy.engine.add("low", [1, 2, 3], priority=priority, max_tokens=20, ignore_eos=True)
    busy.go(45)
    end = busy.engine.ends["low"]
    assert end.finish_reason is FinishReason.LENGTH
    assert 10 <= busy.began["low"] - 5 <= 10 + 6, "overdue after ten seconds, and the next seat is its own"
    assert end.times.preemptions == 0, "it has waited long enough"


def saturated(**config):
    """A seat for everybody, and steps that prompts fill: more urgent ones leave nothing of them."""
    busy = Busy(clients=24, seats=64, tokens=2, max_tokens_a_step=16, **config)
    busy.prompt = 20
    return busy


def finished(scheduling, early, low):
    """When two requests of these priorities ended: one that was there first, one that came later."""
    busy = saturated(priority_aging=10.0, scheduling=scheduling)
    busy.engine.add("early", [1] * 40, priority=early, max_tokens=9, ignore_eos=True)
    busy.engine.tick()
    assert "early" in busy.began, "it has a part of its prompt before the others come"
    busy.go(5)
    busy.engine.add("low", [2] * 40, priority=low, max_tokens=9, ignore_eos=True)
    busy.go(65)
    return [busy.engine.ends[name].times.finished for name in ("early", "low")]


@pytest.mark.parametrize("scheduling", ["priority", "fair", "throughput"])
def test_a_request_that_has_a_seat_and_gets_no_tokens_is_bounded_too(scheduling):
    best = finished(scheduling, 0, 0)
    aged = finished(scheduling, 1, 7)
    assert all(later <= sooner + 10 + 4 for sooner, later in zip(best, aged, strict=True))


def test_without_aging_it_stays_where_it_is():
    busy = saturated()
    busy.engine.add("early", [1] * 40, priority=1, max_tokens=9, ignore_eos=True)
    busy.engine.tick()
    busy.go(80)
    assert "early" in busy.began and "early" not in busy.engine.ends


def test_without_aging_it_gets_nothing_while_others_keep_coming():
    busy = Busy()
    busy.engine.add("low", [1, 2, 3], priority=1, max_tokens=4, ignore_eos=True)
    busy.go(60)
    assert "low" not in busy.began and len(busy.engine.ends) > 100


def test_requests_of_priority_0_are_bounded_too_where_more_urgent_ones_flood():
    busy = Busy(priority_aging=10.0)
    busy.engine.add("plain", [1, 2, 3], max_tokens=4, ignore_eos=True)
    for number in range(400):
        busy.engine.add(f"urgent{number}", [number % 40 + 8] * 5, priority=-7, max_tokens=5, ignore_eos=True)
    busy.clients = 0
    busy.go(25)
    assert busy.began["plain"] <= 17


def test_a_backlog_of_little_urgency_moves_on_in_order_and_holds_an_eighth_of_the_seats():
    busy = Busy(priority_aging=10.0)
    busy.go(3)
    for number in range(30):
        busy.engine.add(f"low{number:02}", [number + 8] * 5, priority=1, max_tokens=6, ignore_eos=True)
    busy.go(100)
    low = sorted(name for name in busy.began if name.startswith("low"))
    assert len(low) > 10
    assert low == [f"low{number:02}" for number in range(len(low))], "the oldest first"
    assert [busy.began[name] for name in low] == sorted(busy.began[name] for name in low)
    assert max(sum(name.startswith("low") for name in ids) for ids in busy.running) == SEATS // 8
    ended = [name for name in busy.engine.ends if name.startswith("busy")]
    assert len(ended) > 8 * len(low), "the urgent ones still go first"


def test_a_request_that_is_pushed_out_again_and_again_keeps_its_seat_once_it_is_overdue():
    engine = Engine(blocks=60, context=60, max_running=1, priority_aging=10.0, max_preemptions=1000)
    engine.add("low", [1, 2, 3], priority=5, max_tokens=20, ignore_eos=True)
    for number in range(60):
        if number % 4 == 2:
            engine.add(f"urgent{number}", [number % 40 + 8] * 5, priority=-number, max_tokens=6, ignore_eos=True)
        engine.tick()
    assert engine.ends["low"].finish_reason is FinishReason.LENGTH
    assert engine.ends["low"].times.preemptions <= 2


def places(engine):
    return [request.request_id for request in engine.scheduler._table.waiting.admission_order("", lambda _: False)]


def test_a_tenants_own_priorities_share_out_its_own_places():
    engine = Engine(blocks=60, max_running=1)
    for name, tenant, own in [
        ("a1", "a", 0), ("b1", "b", 0), ("a2", "a", -1), ("b2", "b", 0), ("a3", "a", -2), ("b3", "b", -9), ("a4", "a", 0),
    ]:  # fmt: skip
        engine.add(name, [7, 8, 9], tenant=tenant, own_priority=own)
    assert places(engine) == ["a3", "b3", "a2", "b1", "a1", "b2", "a4"]
    engine.drain()
    engine.check_outputs()


def test_a_place_is_given_away_only_for_so_long():
    engine = Engine(blocks=200, max_running=1, priority_aging=10.0)
    engine.add("running", [1], max_tokens=60, ignore_eos=True)
    engine.tick()
    engine.add("a", [2], tenant="a")
    for number in range(20):
        engine.add(f"urgent{number}", [3], tenant="a", own_priority=-1)
        engine.tick()
    order = places(engine)
    assert 8 <= order.index("a") <= 12


def starts(scheduling, own, tenants=("light", "other")):
    """When requests of other tenants began beside one that sends much, all of it with this priority of its own."""
    busy = Busy(clients=0, seats=4, scheduling=scheduling, decode_price=2.0, priority_aging=10.0)
    for number in range(30):
        busy.engine.add(
            f"heavy{number}", [number % 40 + 8] * 20, tenant="heavy", own_priority=own, max_tokens=9, ignore_eos=True
        )
    for number in range(40):
        if number % 4 == 0:
            for tenant in tenants:
                busy.engine.add(f"{tenant}{number}", [number + 1] * 9, tenant=tenant, max_tokens=5, ignore_eos=True)
        busy.go(1)
    busy.engine.drain()
    busy.engine.check_outputs()
    return {name: began for name, began in busy.began.items() if not name.startswith("heavy")}


@pytest.mark.parametrize("scheduling", ["priority", "fair"])
@pytest.mark.parametrize("own", [-(2**31), 5])
def test_a_tenants_own_priority_gains_it_nothing_over_others(scheduling, own):
    assert starts(scheduling, own) == starts(scheduling, 0)


@pytest.mark.parametrize("scheduling", ["priority", "fair"])
def test_within_its_tenant_an_urgent_request_pushes_out_one_that_is_less_so(scheduling):
    engine = Engine(blocks=60, max_running=2, scheduling=scheduling)
    engine.add("a", [1, 2], tenant="a", max_tokens=30, ignore_eos=True)
    engine.add("b", [3, 4], tenant="b", own_priority=9, max_tokens=30, ignore_eos=True)
    for _ in range(4):
        engine.tick()
    engine.add("urgent", [5, 6], tenant="a", own_priority=-1, max_tokens=3, ignore_eos=True)
    engine.drain()
    engine.check_outputs()
    assert engine.ends["a"].times.preemptions == 1
    assert engine.ends["b"].times.preemptions == 0
    assert next(iter(engine.ends)) == "urgent"
