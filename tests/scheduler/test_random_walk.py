"""Random arrivals, aborts, shared prefixes and tiny pools, with every book checked after every step."""

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from scheduler.validation import RequestTooLong
from tests.scheduler.sim import VOCAB, Engine

PREFIXES = [[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12], [1, 2, 3, 4, 9, 9, 9, 9], [5, 5, 5, 5, 5, 5, 5, 5, 5], []]


class SchedulerWalk(RuleBasedStateMachine):
    """Each rule is something the engine's loop does or a client can cause."""

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
    )
    def start(self, blocks, budget, running, preemptions, watermark, caching, scheduling, lookahead, depth):
        self.engine = Engine(
            blocks=blocks,
            caching=caching,
            max_step_tokens=budget,
            max_running=running,
            max_preemptions=preemptions,
            decode_watermark=watermark,
            scheduling=scheduling,
            prefix_lookahead=lookahead,
            tenant_weights={"a": 2.5},
            depth=depth,
        )
        self.count = 0

    @rule(
        prefix=st.sampled_from(PREFIXES),
        tail=st.lists(st.integers(0, VOCAB - 1), max_size=14),
        max_tokens=st.integers(0, 20),
        min_tokens=st.integers(0, 3),
        ignore_eos=st.booleans(),
        priority=st.sampled_from([0, 0, 0, 1, -1]),
        salt=st.sampled_from(["", "", "tenant"]),
        tenant=st.sampled_from(["", "a", "b"]),
        prompt_logprobs=st.sampled_from([None, None, None, 0]),
    )
    def add(self, prefix, tail, max_tokens, min_tokens, ignore_eos, priority, salt, tenant, prompt_logprobs):
        prompt = prefix + tail or [1]
        request_id = f"r{self.count}"
        self.count += 1

        def submit():
            self.engine.add(
                request_id,
                prompt,
                priority=priority,
                salt=salt,
                tenant=tenant,
                max_tokens=max_tokens,
                min_tokens=min_tokens,
                ignore_eos=ignore_eos,
                prompt_logprobs=prompt_logprobs,
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

    @rule(which=st.integers(0, 40))
    def abort_during_a_step(self, which):
        self.engine.tick(meanwhile=lambda: self.engine.abort(f"r{which % max(1, self.count)}"))

    @rule(which=st.integers(0, 40))
    def abort(self, which):
        self.engine.abort(f"r{which % max(1, self.count)}")

    @rule(steps=st.integers(1, 8))
    def run_steps(self, steps):
        for _ in range(steps):
            self.engine.tick()

    @rule()
    def step_fails(self):
        """The worker raises: its requests end with an error, the others go on and come out right."""
        self.engine.fail_step()

    @invariant()
    def books_agree(self):
        if hasattr(self, "engine"):
            self.engine.scheduler.check_integrity()
            assert self.engine.worker.max_tokens_in_step <= self.engine.config.max_step_tokens

    def teardown(self):
        if hasattr(self, "engine"):
            self.engine.drain()
            self.engine.check_outputs()
            assert self.engine.scheduler.pool.used == 0
            bound = self.engine.config.max_preemptions
            assert all(end.times.preemptions <= bound for end in self.engine.ends.values())
            assert self.engine.scheduler.snapshot().running == self.engine.scheduler.snapshot().waiting == 0


SchedulerWalk.TestCase.settings = settings(
    max_examples=150, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)
TestSchedulerWalk = SchedulerWalk.TestCase
