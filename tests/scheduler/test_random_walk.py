"""Random arrivals, aborts, shared prefixes, adapters, drafts, tiny pools, and requests that continue on another engine: every
book is checked after every step, and each request has the tokens that it would have alone."""

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from scheduler.types.messages import IDLE_PRIORITY
from scheduler.validation import RequestTooLong
from tests.drawn import drawn
from tests.scheduler.drawn_map import check_map
from tests.scheduler.sim import Engine
from tests.scheduler.sim_worker import VOCAB
from tests.scheduler.test_seam_tokens import ToyDrafter

PREFIXES = [[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12], [1, 2, 3, 4, 9, 9, 9, 9], [5, 5, 5, 5, 5, 5, 5, 5, 5], []]
ADAPTERS = {"law": "digest of law", "verse": "digest of verse"}


class SchedulerWalk(RuleBasedStateMachine):
    """Each rule is something the engine's loop does or a client can cause."""

    second = None  # another engine, which goes on with what the first began

    @property
    def engines(self):
        return [self.engine] if self.second is None else [self.engine, self.second]

    @initialize(
        blocks=st.integers(4, 14),
        budget=st.sampled_from([1, 2, 3, 7, 16, 64]),
        running=st.integers(1, 6),
        preemptions=st.integers(0, 3),
        watermark=st.sampled_from([0.0, 0.1, 0.3]),
        caching=st.booleans(),
        scheduling=st.sampled_from(["fcfs", "priority", "fair", "fair", "throughput", "throughput"]),
        lookahead=st.sampled_from([0, 2, 32]),
        depth=st.sampled_from([1, 2]),
        drafts=st.sampled_from([0, 0, 1, 4]),
        error=st.sampled_from([0.0, 0.3, 0.8]),
        aging=st.sampled_from([0.0, 4.0]),
    )
    def start(
        self,
        blocks,
        budget,
        running,
        preemptions,
        watermark,
        caching,
        scheduling,
        lookahead,
        depth,
        drafts,
        error,
        aging,
    ):
        def engine(depth, drafter):
            return Engine(
                blocks=blocks,
                caching=caching,
                max_step_tokens=budget,
                max_running=running,
                max_preemptions=preemptions,
                decode_watermark=watermark,
                scheduling=scheduling,
                prefix_lookahead=lookahead,
                priority_aging=aging,
                tenant_weights={"a": 2.5},
                adapters=ADAPTERS,
                depth=depth,
                drafter=drafter,
            )

        self.engine = engine(depth, ToyDrafter(drafts, error) if drafts else None)
        self.second = engine(3 - depth, ToyDrafter(2, 0.3))
        self.engine.after_step = lambda _: check_map(self.engine.scheduler)
        self.count = 0

    @rule(
        prefix=st.sampled_from(PREFIXES),
        tail=st.lists(st.integers(0, VOCAB - 1), max_size=14),
        max_tokens=st.integers(0, 20),
        min_tokens=st.integers(0, 3),
        ignore_eos=st.booleans(),
        priority=st.sampled_from([0, 0, 0, 1, -1, IDLE_PRIORITY, IDLE_PRIORITY]),
        salt=st.sampled_from(["", "", "tenant"]),
        tenant=st.sampled_from(["", "a", "b"]),
        prompt_logprobs=st.sampled_from([None, None, None, 0]),
        adapter=st.sampled_from(["", "", "", "law", "verse"]),
        own=st.sampled_from([0, 0, 0, 1, -1]),
    )
    def add(
        self, prefix, tail, max_tokens, min_tokens, ignore_eos, priority, salt, tenant, prompt_logprobs, adapter, own
    ):
        prompt = prefix + tail or [1]
        request_id = f"r{self.count}"
        self.count += 1

        def submit():
            self.engine.add(
                request_id,
                prompt,
                priority=priority,
                own_priority=own,
                salt=salt,
                tenant=tenant,
                max_tokens=max_tokens,
                min_tokens=min_tokens,
                ignore_eos=ignore_eos,
                prompt_logprobs=prompt_logprobs,
                adapter=adapter,
            )

        if len(prompt) + max_tokens > self.engine.config.context:
            with pytest.raises(RequestTooLong, match=str(self.engine.config.context)):
                submit()
        else:
            submit()

    @rule(which=st.integers(0, 40), tail=st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=6))
    def next_turn(self, which, tail):
        """What a request has brought so far is the beginning of the next prompt."""
        last = self.engine.requests.get(f"r{which % max(1, self.count)}")
        if last is None:
            return
        prompt = last.prompt_ids + self.engine.outputs[last.request_id] + tail
        if len(prompt) + 4 <= self.engine.config.context:
            self.engine.add(f"r{self.count}", prompt, max_tokens=4, ignore_eos=True)
            self.count += 1

    @rule(which=st.integers(0, 40), lost=st.integers(0, 6))
    def goes_on_elsewhere(self, which, lost):
        """Its engine is gone, and with it the last tokens that it has computed: another one is told those that were delivered."""
        request = self.engine.requests.get(f"r{which % max(1, self.count)}")
        if self.second is None or request is None or request.request_id in self.engine.ends:
            return
        self.engine.abort(request.request_id)
        said = self.engine.outputs[request.request_id]
        self.second.resume(request, said[: max(0, len(said) - lost)])

    @rule(which=st.integers(0, 40))
    def abort_during_a_step(self, which):
        self.engine.tick(meanwhile=lambda: self.engine.abort(f"r{which % max(1, self.count)}"))

    @rule(which=st.integers(0, 40))
    def abort(self, which):
        self.engine.abort(f"r{which % max(1, self.count)}")

    @rule(steps=st.integers(1, 8))
    def run_steps(self, steps):
        for _ in range(steps):
            for engine in self.engines:
                engine.tick()

    @rule()
    def step_fails(self):
        """The worker raises: its requests end with an error, the others go on and come out right."""
        self.engine.fail_step()

    @invariant()
    def books_agree(self):
        if hasattr(self, "engine"):
            for engine in self.engines:
                engine.scheduler.check_integrity()
                engine.check_told()
                assert engine.worker.max_tokens_in_step <= engine.config.max_step_tokens

    def teardown(self):
        for engine in self.engines if hasattr(self, "engine") else ():
            engine.drain()
            engine.check_outputs()
            assert engine.scheduler.pool.used == 0
            bound = engine.config.max_preemptions
            assert all(end.times.preemptions <= bound for end in engine.ends.values())
            assert engine.scheduler.snapshot().running == engine.scheduler.snapshot().waiting == 0


SchedulerWalk.TestCase.settings = settings(
    max_examples=drawn(80), stateful_step_count=30, suppress_health_check=list(HealthCheck)
)
TestSchedulerWalk = SchedulerWalk.TestCase
