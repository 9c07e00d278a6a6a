"""Orders of the first rank to the others, over real sockets."""

from engine.gpu.graph_policy import Bucket
from engine.tensor_parallel.commands import Leave, OrderReceiver, OrderSender, Record, Rehearse, Submit
from scheduler.types.sampling_params import SamplingParams
from scheduler.types.step import Chunk, SequenceInit, Step

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
    chunks=[Chunk(request_id="r", start=3, length=5, block_table=[7, 1], samples=True)],
    new=[SequenceInit(request_id="r", prompt_ids=[1, 2, 3], sampling=SAMPLING)],
    retired=["gone"],
)


def test_every_rank_gets_every_order_as_it_was(tmp_path):
    endpoints = [f"ipc://{tmp_path}/{rank}" for rank in (1, 2)]
    orders = [Rehearse(), Submit(STEP), Record(Bucket(4, 8192)), Submit(Step(step_id=5, chunks=[])), Leave()]
    sender = OrderSender(endpoints)
    for order in orders[:2]:
        sender.tell(order)
    receivers = [OrderReceiver(endpoint) for endpoint in endpoints]  # who comes late misses nothing
    for order in orders[2:]:
        sender.tell(order)
    assert [[receiver.receive() for _ in orders] for receiver in receivers] == [orders, orders]
    for end in (sender, *receivers):
        end.close()
