"""The peer of the serving benchmark, tiny and on CPU tensors: every token is counted, and none is made up."""

import pytest
from transformers import ContinuousBatchingConfig

from tests.peers.transformers_serving import Peer, model

TINY = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
SMALL = ContinuousBatchingConfig(num_blocks=8, max_batch_tokens=16)


def test_one_manager_serves_round_after_round():
    with Peer(model("cpu", **TINY), 3, 5, 4, continuous_batching_config=SMALL) as peer:
        lines = [peer.serve("warm-up", 1), peer.serve("warm", 3)]
    assert [line["output_tokens"] for line in lines] == [4, 12]
    assert lines[1]["tokens_per_second"] == pytest.approx(12 / lines[1]["seconds"])
    assert "sdpa" in lines[1]["attention"]


def test_a_request_that_fails_is_no_round():
    """More than all blocks hold."""
    with (
        Peer(model("cpu", **TINY), 1, 10_000, 4, continuous_batching_config=SMALL) as peer,
        pytest.raises(RuntimeError, match=r"error|no more results"),
    ):
        peer.serve("warm", 1)
