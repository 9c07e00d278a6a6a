"""A request that asks for what no worker produces yet is refused by name, and leaves nothing behind."""

import pytest

from scheduler.types.messages import AddRequest, OutputKind
from scheduler.types.sampling_params import SamplingParams
from tests.scheduler.sim import Engine


@pytest.mark.parametrize("kind", [OutputKind.VECTOR, OutputKind.SCORES])
def test_another_kind_than_tokens_is_refused(kind):
    engine = Engine(blocks=8)
    message = AddRequest(request_id="v", prompt_ids=[11], sampling=SamplingParams(max_tokens=0), produces=kind)
    with pytest.raises(ValueError, match=f"produces tokens, the request asks for {kind}"):
        engine.scheduler.add(message, 0.0)
    assert engine.scheduler.idle
