"""All processes of a server end by one deadline: what one of them takes longer, the next has less. Time is the test's."""

import asyncio

from server.engines.supervision.stop import KEEPER_SECONDS, StopDeadline, stop_all
from server.engines.supervision.supervisor import STOP_GRACE_SECONDS


class Clock:
    """Seconds, as far as they were taken."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class Process:
    """An engine or the keeper: notes what it is given, and takes `share` of it."""

    def __init__(self, clock, share):
        self.clock, self.share, self.given = clock, share, None

    async def stop(self, flush_seconds, grace):
        self.given = (flush_seconds, grace)
        self.clock.now += self.share * ((flush_seconds or 0.0) + grace)


def stopped(drain, requests, engine, keeper, *, outlived=True):
    """A stop in which open requests took `requests` seconds: what engine and keeper were given, and how long it all took."""
    clock = Clock()
    deadline = StopDeadline(drain, clock)
    clock.now += requests
    first, second = Process(clock, engine), Process(clock, keeper)
    asyncio.run(stop_all([first], second, deadline, outlived=outlived))
    return first.given, second.given, clock.now - 1000.0


def test_whoever_takes_all_its_time_the_stop_ends_with_the_grace():
    most = 30.0 + STOP_GRACE_SECONDS
    for requests in (0.0, 10.0, 30.0):
        for engine, keeper in ((0, 0), (1, 0), (0, 1), (1, 1)):
            _, _, seconds = stopped(30.0, requests, engine, keeper)
            assert seconds <= most, (requests, engine, keeper)
    assert stopped(30.0, 30.0, 1, 1)[2] == most


def test_the_keeper_writes_in_what_engines_have_left():
    engine, keeper, _ = stopped(30.0, 10.0, 0.0, 0.0)
    assert engine == (20.0, STOP_GRACE_SECONDS - KEEPER_SECONDS) and keeper == (20.0, STOP_GRACE_SECONDS)
    engine, keeper, _ = stopped(30.0, 10.0, 0.5, 0.0)
    assert keeper == (20.0 - 0.5 * sum(engine), STOP_GRACE_SECONDS)
    engine, keeper, _ = stopped(30.0, 30.0, 1.0, 0.0)
    assert keeper == (0.0, KEEPER_SECONDS), "an engine that takes all leaves it the time to end"


def test_nobody_writes_what_does_not_outlive_the_server():
    engine, _, _ = stopped(30.0, 10.0, 0.0, 0.0, outlived=False)
    assert engine == (None, STOP_GRACE_SECONDS - KEEPER_SECONDS)
