"""Several tokens a step: a toy drafter, given to the real scheduler from here. Same tokens, fewer steps, whatever it guesses."""

from random import Random

import pytest

from scheduler.policies.base import SchedulingPolicy
from scheduler.types.messages import AddRequest
from scheduler.types.sampling_params import SamplingParams
from tests.scheduler.sim import Engine
from tests.scheduler.sim_worker import VOCAB, expected, next_token


class ToyDrafter:
    """Knows what comes next, and is wrong with probability `error`."""

    name = "toy"
    reads_predictions = False

    def __init__(self, most, error, seed=0):
        self.most = most
        self.error = error
        self.rng = Random(seed)
        self.calls = 0
        self.forgotten = []

    def concerns(self, sampling):
        return True

    def waits(self, request_id, sampling, known):
        return True

    def propose(self, candidates):
        self.calls += 1
        return [self.guess(list(each.token_ids)) for each in candidates]

    def guess(self, tokens):
        known = len(tokens)
        for _ in range(self.most):  # may be more than can be used
            wrong = self.rng.random() < self.error
            tokens.append(self.rng.randrange(VOCAB) if wrong else next_token(tokens))
        return tokens[known:]

    def forget(self, request_id):
        self.forgotten.append(request_id)

    def verified(self, request_id, proposed, accepted):
        pass

    def observe(self, rows, tokens, seconds):
        pass


def serve(drafter, *, depth=1, blocks=40, seed=0, requests=7, **config):
    rng = Random(seed)
    engine = Engine(blocks=blocks, drafter=drafter, depth=depth, seed=seed, max_step_tokens=24, **config)
    for index in range(requests):
        prompt = rng.choices(range(VOCAB), k=rng.randint(1, 20))
        engine.add(
            f"r{index}",
            prompt,
            max_tokens=rng.randint(1, 30),
            ignore_eos=rng.random() < 0.5,
            logprobs=rng.choice([None, 0]),
        )
        for _ in range(rng.randint(0, 3)):
            engine.tick()  # checks the books after each step
    engine.drain()
    engine.check_outputs()
    assert engine.scheduler.pool.used == 0
    return engine


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("error", [0.0, 0.3, 1.0])
def test_drafts_change_nothing_but_the_number_of_steps(error, depth):
    plain = serve(None, depth=depth)
    drafter = ToyDrafter(4, error)
    drafted = serve(drafter, depth=depth)
    assert drafter.calls
    assert drafted.outputs == plain.outputs
    assert {name: end.finish_reason for name, end in drafted.ends.items()} == {
        name: end.finish_reason for name, end in plain.ends.items()
    }
    if error < 0.5:
        assert drafted.steps < plain.steps
    assert drafted.scheduler.stats.generation_tokens == plain.scheduler.stats.generation_tokens


@pytest.mark.parametrize("scheduling", ["priority", "fair", "throughput"])
def test_requests_with_drafts_are_preempted_and_come_out_right(scheduling):
    preemptions = 0
    for seed in range(6):
        engine = serve(
            ToyDrafter(3, 0.3, seed), blocks=14, seed=seed, context=52, decode_watermark=0.0, scheduling=scheduling
        )
        preemptions += engine.scheduler.stats.preemptions
    assert preemptions > 3


def test_a_tenant_pays_for_the_tokens_it_gets_and_not_for_guesses():
    def charged(drafter):
        engine = Engine(blocks=40, drafter=drafter, scheduling="fair", decode_price=2.0)
        engine.add("r", [1, 2, 3], tenant="a", max_tokens=20, ignore_eos=True)
        engine.drain()
        return engine.scheduler._policy.counters["a"]

    plain = charged(None)
    assert plain == charged(ToyDrafter(4, 1.0)) == charged(ToyDrafter(1, 0.5))


def test_the_first_token_that_ends_a_request_ends_it_whatever_comes_behind():
    engine = Engine(blocks=40, drafter=ToyDrafter(6, 0.0))
    tokens = expected([1, 2, 3], SamplingParams(max_tokens=20, ignore_eos=True), 160)
    stop = tokens[9]
    engine.add("r", [1, 2, 3], max_tokens=20, ignore_eos=True, stop_token_ids=(stop,), logprobs=0)
    engine.drain()
    assert engine.outputs["r"] == tokens[: tokens.index(stop) + 1]
    assert engine.ends["r"].stop_token == stop
    assert not engine.scheduler.has_work


def test_guesses_fit_the_budget_the_limits_and_the_free_blocks():
    asked = []

    class Curious(ToyDrafter):
        def concerns(self, sampling):
            return True

        def waits(self, request_id, sampling, known):
            return True

        def propose(self, candidates):
            asked.extend((len(each.token_ids), each.most) for each in candidates)
            return super().propose(candidates)

    engine = Engine(blocks=4, drafter=Curious(50, 0.0), max_step_tokens=9, context=16)
    engine.add("r", [1, 2, 3], max_tokens=13, ignore_eos=True)
    chunks = []
    engine.after_step = lambda step: chunks.extend(step.chunks)
    engine.drain()
    engine.check_outputs()
    assert asked[0] == (4, 8), "nine tokens of a step, of which one is the newest"
    assert all(known + most + 1 <= 16 for known, most in asked)
    assert max(chunk.start + chunk.length for chunk in chunks) <= 16
    assert all(chunk.samples == 1 + len(chunk.draft_ids) for chunk in chunks if chunk.draft_ids)


def test_an_abort_while_guesses_are_verified_gives_everything_back():
    engine = Engine(blocks=10, drafter=ToyDrafter(4, 0.5))
    engine.add("a", [1] * 9, max_tokens=20, ignore_eos=True)
    engine.add("b", [2] * 9, max_tokens=9, ignore_eos=True)
    for _ in range(3):
        engine.tick()
    engine.tick(meanwhile=lambda: engine.abort("a"))
    engine.drain()
    engine.check_outputs()
    assert engine.scheduler.pool.used == 0


def test_a_failed_step_with_guesses_in_it_leaves_the_others_whole():
    engine = Engine(blocks=30, drafter=ToyDrafter(4, 0.5), max_running=2)
    for index in range(4):
        engine.add(f"r{index}", [index + 1] * 5, max_tokens=12, ignore_eos=True)
    for _ in range(3):
        engine.tick()
    engine.fail_step()
    engine.drain()
    engine.check_outputs()


def test_nothing_is_skipped_where_drafts_are_verified():
    engine = Engine(blocks=40, drafter=ToyDrafter(2, 0.0))
    engine.scheduler.add(
        AddRequest(request_id="r", prompt_ids=[1], sampling=SamplingParams(max_tokens=30, ignore_eos=True)), 0.0
    )
    step = engine.scheduler.schedule(0.0)
    assert engine.scheduler.steady_steps(step) == 0


class Grammar(ToyDrafter):
    """Writes what a request's `seed` says comes next, which is state of the request, made from its settings alone."""

    def __init__(self):
        super().__init__(3, 0.0)
        self.states = {}
        self.together = []

    def concerns(self, sampling):
        return True

    def waits(self, request_id, sampling, known):
        return True

    def propose(self, candidates):
        self.together.append([each.request_id for each in candidates])
        for each in candidates:
            self.states.setdefault(each.request_id, each.sampling.seed)
        return [self.guess(list(each.token_ids)) if each.sampling.seed % 2 else [] for each in candidates]

    def forget(self, request_id):
        super().forget(request_id)
        self.states.pop(request_id, None)

    def verified(self, request_id, proposed, accepted):
        pass

    def observe(self, rows, tokens, seconds):
        pass


@pytest.mark.parametrize("depth", [1, 2])
def test_all_that_decode_are_guessed_in_one_call_that_knows_what_they_ask(depth):
    grammar, calls = Grammar(), []
    engine = Engine(blocks=60, drafter=grammar, depth=depth)

    def look(step):
        calls.append(grammar.together.copy())
        assert all(int(chunk.request_id[1]) % 2 for chunk in step.chunks if chunk.draft_ids)
        grammar.together.clear()

    engine.after_step = look
    for seed in range(4):
        engine.add(f"r{seed}", [seed] * 5, max_tokens=12, ignore_eos=True, seed=seed)
    engine.drain()
    engine.check_outputs()
    assert engine.steps < 4 * 12
    assert any(len(asked) == 4 for step in calls for asked in step), "never asked for all of them"
    for step in calls:
        asked = [name for call in step for name in call]
        assert len(step) <= 2 and len(asked) == len(set(asked)), "asked twice for one"


def test_what_a_drafter_keeps_is_dropped_whatever_ends_the_request():
    grammar = Grammar()
    engine = Engine(blocks=60, drafter=grammar, max_running=3)
    for index in range(5):
        engine.add(f"r{index}", [index] * 5, max_tokens=8 + 40 * (index > 2), ignore_eos=True, seed=index)
    for _ in range(4):
        engine.tick()
    engine.abort("r0")  # runs
    engine.abort("r4")  # waits
    assert {"r0", "r4"} <= set(grammar.forgotten) and "r0" not in grammar.states
    while "r3" not in grammar.states:
        engine.tick()
    engine.fail_step()
    engine.drain()
    assert sorted(grammar.forgotten) == [f"r{index}" for index in range(5)], "each once"
    assert not grammar.states


def test_guesses_that_do_not_fit_together_are_those_of_the_first():
    engine = Engine(blocks=60, drafter=ToyDrafter(50, 0.0), max_step_tokens=12, max_running=4)
    drafts = []
    engine.after_step = lambda step: drafts.append([len(chunk.draft_ids) for chunk in step.chunks])
    for index in range(3):
        engine.add(f"r{index}", [index] * 3, max_tokens=40, ignore_eos=True)
    engine.drain()
    engine.check_outputs()
    assert [9, 0, 0] in drafts


class NothingToSay:
    """A drafter without a guess: decodes wait for their results all the same."""

    name = "nothing"
    reads_predictions = False

    def concerns(self, sampling):
        return True

    def waits(self, request_id, sampling, known):
        return True

    def propose(self, candidates):
        return [[] for _ in candidates]

    def forget(self, request_id):
        pass

    def verified(self, request_id, proposed, accepted):
        pass

    def observe(self, rows, tokens, seconds):
        pass


class HoldsBack(SchedulingPolicy):
    """Decodes of `ahead` run on what one token of some prompt leaves."""

    def deferred(self, ready, prompts):
        return {request.arrival for request in ready if request.tenant == "ahead"}, 1


def late_decodes(room, policy=None, **first):
    """Who decodes in a step that had no decode when it was planned, in which a prompt would leave `room` tokens."""
    engine = Engine(blocks=40, drafter=NothingToSay(), max_step_tokens=8, policy=policy)
    engine.add("first", [1] * 2, max_tokens=30, ignore_eos=True, **first)
    engine.tick()
    engine.add("second", [2] * 2, max_tokens=30, ignore_eos=True)
    for _ in range(4):
        engine.tick()
    engine.planned = None
    engine.add("prompt", [3] * (6 + 8 - room), max_tokens=2, ignore_eos=True)
    engine.tick()  # both decode, and six tokens of the prompt
    assert [chunk.request_id for chunk in engine.planned.chunks] == ["prompt"]
    step = engine.next_step()
    assert step.tokens <= 8
    return {chunk.request_id for chunk in step.chunks} - {"prompt"}


def test_a_prompt_leaves_late_decodes_their_tokens():
    assert late_decodes(1, priority=1) == {"first", "second"}
    assert late_decodes(2, priority=1) == {"first", "second"}


def test_late_decodes_that_the_policy_holds_back_run_on_what_is_left():
    assert late_decodes(1, HoldsBack(), tenant="ahead") == {"second"}
