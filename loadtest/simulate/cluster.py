"""The event loop: arrivals and the replicas' steps, in order of time.

A step that ends exactly when a request arrives ends first. Records have the form of a real run's; times are seconds of the
simulation, and nothing is late.
"""

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from loadtest.report.records import RequestRecord
from loadtest.simulate.content import Content
from loadtest.simulate.cost import CostModel
from loadtest.simulate.replica import Log, Replica
from loadtest.workload.plan import Planned
from scheduler.kv.block_pool import BlockPool
from scheduler.router.policy import Router
from scheduler.types.block_hash import block_names, root_hash
from scheduler.types.config import SchedulerConfig
from scheduler.types.messages import AddRequest, EngineStats
from scheduler.types.sampling_params import SamplingParams
from scheduler.types.step import ChunkPhase


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerShape:
    """What an operator would set on each replica. If None, `kv_blocks` and `context` follow from the hardware and the model.

    A request's class is its tenant.
    """

    max_step_tokens: int = 512
    max_running: int = 64
    max_waiting: int = 1024
    block_size: int = 32
    kv_blocks: int | None = None
    context: int | None = None
    prefix_caching: bool = True
    scheduling: str = "priority"


class Cluster:
    """Replicas of one kind behind one router.

    Args:
        cost: what a step costs on one replica.
        shape: the settings of each replica.
        router: chooses the replica of each request.
        replicas: how many.
        fast_forward: see `Replica`.
        log: filled with the steps of all replicas, if given.

    Raises:
        SpecError: the model leaves no room for KV.
    """

    def __init__(
        self,
        cost: CostModel,
        shape: ServerShape,
        router: Router,
        replicas: int = 1,
        *,
        fast_forward: bool = True,
        log: Log | None = None,
    ) -> None:
        blocks = shape.kv_blocks or cost.kv_blocks(shape.block_size)
        longest = min(cost.model.max_position, blocks * shape.block_size)
        config = SchedulerConfig(
            context=min(shape.context or longest, longest),
            eos_token_ids=frozenset(),  # answers have the trace's lengths
            fingerprint=cost.model.name,
            max_step_tokens=shape.max_step_tokens,
            max_running=shape.max_running,
            scheduling=shape.scheduling,
        )
        self.config = config
        self.blocks = blocks
        self._cost = cost
        self._block_size = shape.block_size
        self._router = router
        self._content = Content()
        self._root = root_hash(config.fingerprint)
        self.replicas = [
            Replica(
                config,
                BlockPool(blocks, shape.block_size, caching=shape.prefix_caching),
                cost,
                max_waiting=shape.max_waiting,
                fast_forward=fast_forward,
                log=log,
            )
            for _ in range(replicas)
        ]

    def run(self, requests: Iterable[Planned], progress: Callable[[int], None] = lambda _: None) -> list[RequestRecord]:
        """Simulate to the last token.

        Args:
            requests: in the order of their arrival.
            progress: called after each arrival with the number of arrivals so far.
        """
        records: list[RequestRecord] = []
        due: list[tuple[float, int]] = []
        for request in requests:
            now = request.intended + self._cost.costs.request
            self._until(now, due)
            records.append(self._arrive(len(records), request, now, due))
            progress(len(records))
        self._until(float("inf"), due)
        return records

    def stats(self) -> Iterator[EngineStats]:
        """The schedulers' own counters."""
        return (replica.scheduler.snapshot() for replica in self.replicas)

    def _until(self, now: float, due: list[tuple[float, int]]) -> None:
        while due and due[0][0] <= now:
            at, index = heapq.heappop(due)
            replica = self.replicas[index]
            if replica.due == at:  # otherwise an arrival has cut a stretch short
                replica.advance()
                _push(due, replica, index)

    def _arrive(self, index: int, request: Planned, now: float, due: list[tuple[float, int]]) -> RequestRecord:
        prompt, token = self._content.prompt(request)
        record = RequestRecord(
            index=index,
            intended=request.intended,
            sent=request.intended,
            asked_prompt=len(prompt),
            asked_output=request.output_tokens,
            klass=request.klass,
            session=request.session,
        )
        sampling = SamplingParams(max_tokens=request.output_tokens, ignore_eos=True)
        message = AddRequest(request_id=str(index), prompt_ids=prompt, sampling=sampling, tenant=request.klass)
        names = block_names(self._root, prompt[:-1], self._block_size) if len(self.replicas) > 1 else []
        views = [replica.view(message, names, now) for replica in self.replicas]
        chosen = self._router.choose(prompt, views, ChunkPhase.PREFILL)
        replica = self.replicas[chosen]
        before = replica.due
        replica.submit(message, token, record, now, names)
        if replica.due != before:
            _push(due, replica, chosen)
        return record


def _push(due: list[tuple[float, int]], replica: Replica, index: int) -> None:
    if replica.due is not None:
        heapq.heappush(due, (replica.due, index))


def summary(stats: Sequence[EngineStats]) -> dict[str, float]:
    """The counters summed over all replicas, under the names of a server's metrics."""
    names = ("steps", "preemptions", "recomputed_tokens", "prompt_tokens", "generation_tokens")
    totals = {f"headrace_{name}_total": float(sum(getattr(each, name) for each in stats)) for name in names}
    for name in ("prefix_query_tokens", "prefix_hit_tokens"):
        totals[f"headrace_{name}_total"] = float(sum(getattr(each, name) for each in stats))
    return totals
