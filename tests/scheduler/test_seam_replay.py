"""Replay: a request that was cut anywhere on one engine continues on another one by `add`, and nobody can tell from its tokens."""

import pytest

from scheduler.types.messages import AddRequest, FinishReason
from scheduler.types.sampling_params import SamplingParams
from tests.scheduler.sim import Engine
from tests.scheduler.sim_worker import EOS, expected

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3]


def run(generated=(), **asked):
    engine = Engine(blocks=40, scheduling="fair", max_step_tokens=8)
    engine.add("r", PROMPT, generated=generated, tenant="a", **asked)
    engine.drain()
    return engine


@pytest.mark.parametrize("asked", [{"ignore_eos": True}, {"min_tokens": 6}, {"logprobs": 0, "prompt_logprobs": 0}])
def test_a_request_cut_anywhere_is_resumed(asked):
    asked = {"max_tokens": 17, **asked}
    whole = run(**asked)
    tokens = whole.outputs["r"]
    assert len(tokens) > 3
    for cut in range(1, len(tokens)):
        resumed = run(tokens[:cut], **asked)
        assert tokens[:cut] + resumed.outputs["r"] == tokens, cut
        assert resumed.ends["r"].finish_reason is whole.ends["r"].finish_reason
        assert resumed.prompt_logprobs["r"] == [], "they were sent before the first token"
        stats = resumed.scheduler.stats
        assert stats.generation_tokens == len(tokens) - cut
        assert stats.prompt_tokens == len(PROMPT)


def test_a_tenant_pays_for_nothing_twice():
    """What another engine has computed is computed again at the server's expense, as after a preemption."""

    def charge(generated):
        return run(generated, max_tokens=9, ignore_eos=True).scheduler._policy.counters["a"]

    tokens = expected(PROMPT, SamplingParams(max_tokens=9, ignore_eos=True), 160)
    charges = [charge(tokens[:cut]) for cut in range(9)]
    prompt, each = charges[0] - charges[1], charges[1] - charges[2]
    assert prompt > 0 and each > 0
    assert charges[1:] == [charges[1] - cut * each for cut in range(8)]
    assert run(tokens[:4], max_tokens=9, ignore_eos=True).scheduler.stats.recomputed_tokens == len(PROMPT) + 3


def test_a_resumed_request_is_preempted_and_resumed_once_more():
    asked = {"max_tokens": 20, "ignore_eos": True}
    tokens = expected(PROMPT, SamplingParams(**asked), 160)
    engine = Engine(blocks=10, decode_watermark=0.0)
    for index in range(3):
        engine.add(f"r{index}", PROMPT, generated=tokens[: 4 * index], **asked)
    engine.drain()
    engine.check_outputs()
    assert engine.scheduler.stats.preemptions > 0


def test_a_resumed_request_finds_the_blocks_that_its_first_run_left():
    tokens = expected(PROMPT, SamplingParams(max_tokens=20, ignore_eos=True), 160)
    engine = Engine(blocks=40)
    engine.add("first", PROMPT, max_tokens=20, ignore_eos=True)
    while len(engine.outputs["first"]) < 12:
        engine.tick()
    engine.abort("first")
    engine.add("again", PROMPT, generated=tokens[:10], max_tokens=20, ignore_eos=True)
    engine.drain()
    assert engine.outputs["again"] == tokens[10:]
    assert engine.ends["again"].times.cached_tokens >= 16


@pytest.mark.parametrize("scheduling", ["priority", "throughput"])
def test_the_queue_takes_requests_with_more_output_than_prompt(scheduling):
    engine = Engine(blocks=40, max_running=1, scheduling=scheduling)
    tokens = expected([1], SamplingParams(max_tokens=30, ignore_eos=True), 160)
    engine.add("runs", PROMPT, max_tokens=5)
    for cut in (25, 17, 3):
        engine.add(f"r{cut}", [1], generated=tokens[:cut], max_tokens=30, ignore_eos=True)
    engine.drain()
    engine.check_outputs()


@pytest.mark.parametrize(
    ("generated", "asked", "message"),
    [
        ([1, 2, 3], {"max_tokens": 3}, "generated_ids has 3 tokens and max_tokens is 3"),
        ([1, 2, 3], {"max_tokens": 0}, "generated_ids has 3 tokens and max_tokens is 0"),
        ([1, EOS], {"max_tokens": 9}, "token 2 of generated_ids, 7, ends the request"),
        ([1, 4, 5], {"max_tokens": 9, "stop_token_ids": (4,)}, "token 2 of generated_ids, 4, ends the request"),
    ],
)
def test_a_request_with_nothing_left_to_generate_is_refused(generated, asked, message):
    with pytest.raises(ValueError, match=message):
        run(generated, **asked)


def test_an_end_before_min_tokens_or_ignored_is_none():
    assert run([1, EOS], max_tokens=4, ignore_eos=True).ends["r"].finish_reason is FinishReason.LENGTH
    assert len(run([1, EOS], max_tokens=4, min_tokens=3).outputs["r"]) >= 1


def test_the_worker_is_told_what_is_prompt_and_what_is_output():
    engine = Engine(blocks=8)
    message = AddRequest(
        request_id="r", prompt_ids=[1, 2], generated_ids=[3, 4, 5], sampling=SamplingParams(max_tokens=9)
    )
    engine.scheduler.add(message, 0.0)
    (new,) = engine.scheduler.schedule(0.0).new
    assert (new.prompt_ids, new.generated_ids) == ([1, 2], [3, 4, 5])
