"""A scheduling policy that only this file knows: one object, given to a scheduler, and nothing else changes."""

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize

from scheduler.policies.base import SchedulingPolicy
from tests.drawn import drawn
from tests.scheduler.sim import Engine
from tests.scheduler.sim_worker import VOCAB
from tests.scheduler.test_random_walk import ADAPTERS, SchedulerWalk


def work(request):
    """Tokens of the whole request: it never changes, so two requests never push each other out in turn."""
    return len(request.prompt_ids) + request.sampling.max_tokens


class ShortestFirst(SchedulingPolicy):
    """The least work first, in the queue, in a step and where blocks are short; what is twice as long gives way."""

    def __init__(self):
        super().__init__()
        self.open = set()
        self.tokens = 0

    def on_add(self, request, waiting):
        self.open.add(request.request_id)

    def on_finish(self, request):
        self.open.remove(request.request_id)

    def on_tokens(self, request, begin, end):
        self.tokens += end - begin

    def admission_order(self, waiting, running, warm):
        return iter(sorted(waiting, key=lambda request: (work(request), request.arrival)))

    def rank(self, request):
        return (work(request),)

    def is_preemptible(self, running, newcomer, lost):
        return work(running) > 2 * work(newcomer) + lost

    def preemption_rank(self, request, needy):
        return (work(request),)

    def is_stable(self, waiting, running):
        return not waiting


def prompt(length, seed):
    return [(seed * 31 + i * 7) % (VOCAB - 10) + 10 for i in range(length)]


def ends(policy):
    engine = Engine(blocks=64, max_running=1, policy=policy)
    for number, length in enumerate((30, 9, 3, 20)):
        engine.add(f"{length}", prompt(length, number), max_tokens=3, ignore_eos=True)
    engine.drain()
    engine.check_outputs()
    return [int(name) for name in engine.ends]


def test_the_shortest_ends_first():
    policy = ShortestFirst()
    assert ends(policy) == [3, 9, 20, 30]
    assert ends(None) == [30, 9, 3, 20]
    assert policy.open == set() and policy.tokens == 30 + 9 + 3 + 20 + 4 * 2  # the last token of each is never computed


def test_a_short_request_pushes_a_long_one_out_which_loses_nothing_it_said():
    engine = Engine(blocks=64, max_running=1, policy=ShortestFirst())
    engine.add("long", prompt(20, 1), max_tokens=40, ignore_eos=True)
    for _ in range(4):
        engine.tick()
    engine.add("short", prompt(5, 2), max_tokens=2, ignore_eos=True)
    engine.drain()
    engine.check_outputs()
    assert list(engine.ends) == ["short", "long"]
    assert engine.ends["long"].times.preemptions == 1


class ShortestFirstWalk(SchedulerWalk):
    """The scheduler's own random walk, all its rules and checks, under the policy above."""

    @initialize(
        blocks=st.integers(4, 14),
        budget=st.sampled_from([1, 3, 7, 64]),
        running=st.integers(1, 6),
        preemptions=st.integers(0, 3),
        caching=st.booleans(),
        depth=st.sampled_from([1, 2]),
    )
    def start(self, blocks, budget, running, preemptions, caching, depth):
        self.engine = Engine(
            blocks=blocks,
            caching=caching,
            max_step_tokens=budget,
            max_running=running,
            max_preemptions=preemptions,
            policy=ShortestFirst(),
            depth=depth,
            adapters=ADAPTERS,
        )
        self.count = 0


ShortestFirstWalk.TestCase.settings = settings(
    max_examples=drawn(40), stateful_step_count=30, suppress_health_check=list(HealthCheck)
)
TestShortestFirstWalk = ShortestFirstWalk.TestCase
