"""Another kind of output: a toy worker that pools, given to the real scheduler from here, and what it refuses."""

import pytest

from scheduler.types.messages import AddRequest, FinishReason
from scheduler.types.output_kind import OutputKind, Pooled
from scheduler.types.sampling_params import SamplingParams
from tests.scheduler.sim import Engine
from tests.scheduler.sim_worker import SimWorker

BOTH = frozenset({OutputKind.TOKENS, OutputKind.VECTOR})
BLOCKS, BLOCK = 24, 4


class PoolingWorker(SimWorker):
    """The vector of a prompt is the mean of its tokens, summed up chunk by chunk."""

    def __init__(self, blocks):
        super().__init__(blocks, BLOCK)
        self.vectors = set()
        self.sums = {}

    def run(self, step):
        self.vectors |= {new.request_id for new in step.new if new.produces is OutputKind.VECTOR}
        return super().run(step)

    def _result(self, chunk):
        result = super()._result(chunk)
        name, end = chunk.request_id, chunk.start + chunk.length
        if name in self.vectors and result.error is None:
            before = self.sums.get(name, 0) if chunk.start else 0
            self.sums[name] = before + sum(self.tokens[name][chunk.start : end])
            if end == self.prompt_length[name]:
                result.pooled = Pooled(kind=OutputKind.VECTOR, values=[self.sums[name] / end])
        return result


def engine(**config):
    return Engine(blocks=BLOCKS, worker=PoolingWorker(BLOCKS), max_step_tokens=8, produces=BOTH, **config)


def vector(prompt, name="v", **fields):
    return AddRequest(
        request_id=name,
        prompt_ids=prompt,
        sampling=SamplingParams(max_tokens=0),
        produces=OutputKind.VECTOR,
        **fields,
    )


@pytest.mark.parametrize("depth", [1, 2])
def test_a_vector_ends_its_sequence_beside_others_that_generate(depth):
    serving = engine(depth=depth)
    serving.add("t", [1, 2, 3], max_tokens=12, ignore_eos=True)
    serving.submit(vector(list(range(19))))
    serving.drain()
    end = serving.ends["v"]
    assert end.finish_reason is FinishReason.STOP
    assert end.pooled == Pooled(kind=OutputKind.VECTOR, values=[9.0])
    assert serving.outputs["v"] == [] and end.times.finished is not None
    assert serving.ends["t"].pooled is None
    serving.check_outputs()
    assert serving.scheduler.pool.used == 0


def test_a_prompt_that_is_cached_is_pooled_as_a_whole():
    serving = engine()
    serving.add("t", list(range(16)), max_tokens=3)
    serving.drain()
    serving.submit(vector(list(range(16))))
    serving.drain()
    assert serving.ends["v"].pooled.values == [7.5]


def test_a_vector_is_whole_after_a_preemption():
    serving = engine(context=96)
    serving.submit(vector(list(range(40)), priority=1))
    serving.tick()
    serving.add("urgent", [3] * 30, priority=0, max_tokens=40, ignore_eos=True)
    serving.add("urgent too", [4] * 30, priority=0, max_tokens=20, ignore_eos=True)
    serving.drain()
    assert serving.ends["v"].times.preemptions > 0
    assert serving.ends["v"].pooled.values == [19.5]


@pytest.mark.parametrize("kind", [OutputKind.VECTOR, OutputKind.SCORES])
def test_a_kind_that_the_worker_does_not_make_is_refused_by_name(kind):
    serving = Engine(blocks=8)
    message = AddRequest(request_id="v", prompt_ids=[11], sampling=SamplingParams(max_tokens=0), produces=kind)
    with pytest.raises(ValueError, match=f"produces tokens, the request asks for {kind}"):
        serving.scheduler.add(message, 0.0)
    assert serving.scheduler.idle


def test_the_refusal_names_all_that_is_made():
    message = AddRequest(
        request_id="s", prompt_ids=[11], sampling=SamplingParams(max_tokens=0), produces=OutputKind.SCORES
    )
    with pytest.raises(ValueError, match="this engine produces tokens, vector, the request asks for scores"):
        engine().scheduler.add(message, 0.0)


def test_a_vector_beside_tokens_is_refused():
    message = AddRequest(
        request_id="v", prompt_ids=[11], sampling=SamplingParams(max_tokens=5), produces=OutputKind.VECTOR
    )
    with pytest.raises(ValueError, match="a request that produces vector generates no tokens, max_tokens is 5"):
        engine().scheduler.add(message, 0.0)


def test_a_vector_has_no_log_probabilities_of_its_prompt():
    message = AddRequest(
        request_id="v",
        prompt_ids=[11],
        sampling=SamplingParams(max_tokens=0, prompt_logprobs=3),
        produces=OutputKind.VECTOR,
    )
    with pytest.raises(ValueError, match="a request that produces vector has no prompt_logprobs, it asks for 3"):
        engine().scheduler.add(message, 0.0)


def test_a_request_for_tokens_that_asks_for_none_ends_for_its_length():
    serving = engine()
    serving.add("t", [1, 2, 3], max_tokens=0)
    serving.drain()
    assert (serving.ends["t"].finish_reason, serving.ends["t"].pooled) == (FinishReason.LENGTH, None)
