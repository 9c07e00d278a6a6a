"""Rank commands over real sockets."""

import pytest
import zmq

from engine.ipc.codec import ProtocolError
from engine.tensor_parallel.commands import (
    RankCommandReceiver,
    RankCommandSender,
    Record,
    Stop,
    Submit,
    Warmup,
)
from scheduler.types.sampling_params import SamplingParams
from scheduler.types.step import Chunk, ChunkPhase, SequenceInit, Step

pytestmark = pytest.mark.processes

SAMPLING = SamplingParams(
    max_tokens=9,
    temperature=0.5,
    seed=2**63,
    stop_token_ids=(1, 2),
    logit_bias={7: -1.5},
    bad_words=((3, 4), (5,)),
    logprobs=2,
)
STEP = Step(
    step_id=4,
    chunks=[Chunk(request_id="r", start=3, length=5, block_table=[7, 1], phase=ChunkPhase.PREFILL, samples=1)],
    new=[SequenceInit(request_id="r", prompt_ids=[1, 2, 3], sampling=SAMPLING)],
    retired=["gone"],
)


def test_every_rank_gets_every_command_as_it_was(tmp_path):
    endpoints = [f"ipc://{tmp_path}/{rank}" for rank in (1, 2)]
    commands = [Warmup(), Submit(STEP), Record("decode", 4), Submit(Step(step_id=5, chunks=[])), Stop()]
    sender = RankCommandSender(endpoints)
    for command in commands[:2]:
        sender.send(command)
    receivers = [RankCommandReceiver(endpoint) for endpoint in endpoints]  # a late one misses nothing
    for command in commands[2:]:
        sender.send(command)
    assert [[receiver.receive() for _ in commands] for receiver in receivers] == [commands, commands]
    for end in (sender, *receivers):
        end.close()


def test_what_is_no_command_is_not_sent(tmp_path):
    sender = RankCommandSender([f"ipc://{tmp_path}/1"])
    with pytest.raises(ProtocolError, match="object is not a message"):
        sender.send(object())
    sender.close()


@pytest.mark.timeout(30)
def test_closing_does_not_wait_for_a_rank_that_never_came(tmp_path):
    sender = RankCommandSender([f"ipc://{tmp_path}/1"])
    sender.send(Warmup())
    sender.close()
    with pytest.raises(zmq.ZMQError):  # the socket is given back, whoever has not fetched what was sent
        sender.send(Warmup())
