"""What happens in order of time: arrivals, the replicas' steps, hand-overs from one replica to another, looks at the roles, deaths.

A step that ends exactly when a request arrives ends first. Records have the form of a real run's; times are seconds of the
simulation, and nothing is late.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial

from loadtest.collector import collector_off
from loadtest.report.records import RequestRecord, unfit
from loadtest.report.token_times import TokenTimes
from loadtest.simulate.content import Content, length_of
from loadtest.simulate.cost import CostModel
from loadtest.simulate.counted_blocks import ContentsMatter, CountedBlocks, nothing_shared
from loadtest.simulate.deadlines import DeadlineGate
from loadtest.simulate.faults.failure import Failure
from loadtest.simulate.faults.outages import Outages
from loadtest.simulate.guesses.guesses import Guesses
from loadtest.simulate.guesses.repeating import drawn_guesses
from loadtest.simulate.hand_over import HandOver, Link, missing
from loadtest.simulate.keepers.carrier import KeeperLane
from loadtest.simulate.keepers.keepers import KeeperShape, PoolKeepers
from loadtest.simulate.open_request import OpenRequest
from loadtest.simulate.replica import COUNTERS, Log, Replica
from loadtest.simulate.role_watch import LOOK_SECONDS, RoleWatch
from loadtest.simulate.specs import SpecError
from loadtest.simulate.timeline import Timeline
from loadtest.workload.plan import Planned
from scheduler.kv.block_pool import BlockPool
from scheduler.router.policy import Router
from scheduler.router.role_switching import RoleSwitching
from scheduler.router.split import Split
from scheduler.router.view import ReplicaView, Role
from scheduler.types.config import SchedulerConfig
from scheduler.types.messages import AddRequest, EngineStats
from scheduler.types.sampling_params import SamplingParams
from scheduler.types.step import ChunkPhase


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerShape:
    """What an operator would set on each replica. If None, `kv_blocks` and `context` follow from the hardware and the model.

    A request's class is its tenant where the trace names none.
    """

    max_step_tokens: int = 512
    max_running: int = 64
    max_waiting: int = 1024
    block_size: int = 32
    kv_blocks: int | None = None
    context: int | None = None
    prefix_caching: bool = True
    scheduling: str = "priority"


@dataclass(frozen=True, slots=True, kw_only=True)
class RolePool:
    """Replicas with roles, and the way of KV between them.

    Attributes:
        roles: one for each replica.
        bytes_per_second: bandwidth of what each replica sends KV over.
        seconds: latency of a hand-over.
        switching: changes the roles while the pool runs; None: they stay.
    """

    roles: tuple[Role, ...]
    bytes_per_second: float
    seconds: float = 0.0
    switching: RoleSwitching | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Machines:
    """What the replicas run on.

    Attributes:
        replicas: on each node.
        keeper: of each node; None: there is none.
        failures: what dies.
    """

    replicas: int = 8
    keeper: KeeperShape | None = None
    failures: Sequence[Failure] = ()


class Cluster:
    """Replicas of one kind behind one router.

    Args:
        cost: what a step costs on one replica.
        shape: the settings of each replica.
        router: chooses the replica of each request, and for one that is handed over that of its decodes.
        replicas: how many, all with the role `mixed`; or a pool.
        machines: on which they are.
        deadlines: refuses requests, if given.
        fast_forward: see `Replica`.
        log: filled with the steps of all replicas, if given.
        guesses: makes what guesses tokens ahead in a replica; None: what the constants say.

    Attributes:
        watch: sees to the roles; None: they stay.
        records: of all requests that have arrived so far.
        outages: what died, and what became of it.

    Raises:
        SpecError: the model leaves no room for KV, or not for the context that is asked for.
        ValueError: prompts are to be handed over and no prefix is cached, or there are keepers; what is to die does not exist.
    """

    def __init__(
        self,
        cost: CostModel,
        shape: ServerShape,
        router: Router,
        replicas: int | RolePool = 1,
        *,
        machines: Machines | None = None,
        deadlines: DeadlineGate | None = None,
        fast_forward: bool = True,
        log: Log | None = None,
        guesses: Callable[[], Guesses | None] | None = None,
    ) -> None:
        self.records: list[RequestRecord] = []
        self._deadlines = deadlines
        self.blocks = shape.kv_blocks or cost.kv_blocks(shape.block_size)
        self.config = _config(cost, shape, self.blocks)
        self.watch: RoleWatch | None = None
        self._cost = cost
        self._router = router
        self._block_size = shape.block_size
        self._begin()
        pool = replicas if isinstance(replicas, RolePool) else _mixed(replicas)
        bounds = pool.switching.bounds if pool.switching else None
        self._split = Split(router, bounds=bounds, guess=pool.seconds + self._message_seconds)
        machines = machines or Machines()
        nodes = [index // machines.replicas for index in range(len(pool.roles))]
        self._block_bytes = shape.block_size * cost.model.kv_bytes_per_token
        keepers = None if machines.keeper is None else PoolKeepers(machines.keeper, nodes, self._block_bytes)
        # Where there is no choice and nothing happens to replicas, nobody looks. (Among several all policies look who is full.)
        alone = pool.roles == (Role.MIXED,) and keepers is None and deadlines is None and not machines.failures
        guesses = guesses or partial(drawn_guesses, cost.costs)
        self._unseen = alone
        # Policies that group requests look at the names of their blocks.
        plain = fast_forward and log is None and guesses() is None
        self._counts = alone and plain and shape.scheduling != "throughput"
        self._new_pool = partial(BlockPool, self.blocks, shape.block_size, caching=shape.prefix_caching)
        self.replicas = [
            Replica(
                self.config,
                self._new_pool,
                cost,
                role=role,
                max_waiting=shape.max_waiting,
                fast_forward=fast_forward,
                log=log,
                give=partial(self._hand_over, index),
                handed_over=self._split.handed_over,
                lane=None if keepers is None else KeeperLane(keepers, index, partial(self._later, index)),
                viewed=not alone,
                guesses=guesses,
            )
            for index, role in enumerate(pool.roles)
        ]
        self._connect(pool, shape, machines)
        self.outages = Outages(
            machines.failures, nodes, self.replicas, keepers=keepers, timeline=self._timeline, go_on=self._go_on
        )

    def _begin(self) -> None:
        """Nothing has happened."""
        self.records.clear()
        self._content = Content(self._block_size)
        self._timeline = Timeline()
        self._arriving = True
        self._counting = False  # blocks, since nobody finds what they hold

    def _connect(self, pool: RolePool, shape: ServerShape, machines: Machines) -> None:
        """Make what lies between the replicas."""
        if Role.PREFILL in pool.roles and not shape.prefix_caching:
            raise ValueError("a prompt is handed over by the names of its blocks: prefix caching must be on")
        if Role.PREFILL in pool.roles and machines.keeper is not None:
            raise ValueError("hand-overs go by a link of their own: keepers are simulated for mixed replicas only")
        self._links = [Link(pool.bytes_per_second, pool.seconds) for _ in self.replicas]
        if pool.switching is not None:
            self.watch = RoleWatch(pool.switching, self.replicas)
            self._timeline.at(0.0, self._look)

    @property
    def _message_seconds(self) -> float:
        """From a replica to the HTTP process, and from there to another one."""
        return 2 * self._cost.costs.delivery

    def run(self, requests: Iterable[Planned], progress: Callable[[int], None] = lambda _: None) -> list[RequestRecord]:
        """Simulate to the last token.

        Args:
            requests: in the order of their arrival.
            progress: called after each arrival with the number of arrivals so far; these may begin again.
        """
        requests = list(requests)
        with collector_off():
            if self._counts and nothing_shared(requests):
                (replica,) = self.replicas
                replica.renew(partial(CountedBlocks, self.blocks, self._block_size))
                self._counting = True
                try:
                    return self._run(requests, progress)
                except ContentsMatter:
                    self._begin()
                    replica.renew(self._new_pool)
            return self._run(requests, progress)

    def _run(self, requests: Iterable[Planned], progress: Callable[[int], None]) -> list[RequestRecord]:
        records = self.records
        for request in requests:
            now = request.intended + self._cost.costs.request
            self._timeline.run_until(now)
            records.append(self._arrive(len(records), request, now))
            progress(len(records))
        self._arriving = False
        self._timeline.run_until(float("inf"))
        self.outages.settle()
        if self._deadlines is not None:
            self._deadlines.settle()
        return records

    def stats(self) -> Iterator[EngineStats]:
        """The schedulers' own counters."""
        return (replica.scheduler.snapshot() for replica in self.replicas)

    def _arrive(self, index: int, request: Planned, now: float) -> RequestRecord:
        record = RequestRecord(
            index=index,
            intended=request.intended,
            sent=request.intended,
            asked_prompt=length_of(request),
            asked_output=request.output_tokens,
            klass=request.klass,
            session=request.session,
            tokens=TokenTimes(),
        )
        if not unfit(record, self.config.context):  # what does not fit is given no ids: there may be any number of them
            self._place(record, request, now)
        return record

    def _place(self, record: RequestRecord, request: Planned, now: float) -> None:
        """A request that fits goes to a replica, unless its deadline would not be met."""
        text = self._content.text(request, named=not self._counting)
        message = AddRequest(
            request_id=str(record.index),
            prompt_ids=text.prompt,
            sampling=_sampling(request.output_tokens),
            tenant=request.tenant or request.klass,
            priority=request.priority,
        )
        opened = OpenRequest(message, text, record)
        if self._unseen:
            (replica,) = self.replicas
            self._wake(replica, partial(replica.submit, opened, now))
            return
        views = self._views(message, text.prompt_names, now)
        if not any(view.available for view in views):
            opened.refuse(503, "no replica is available")
            return
        placement = self._split.place(text.prompt, views, decodes=request.output_tokens > 1)
        message.hand_over, replica = placement.hand_over, self.replicas[placement.index]
        if self._deadlines is None or self._deadlines.accepts(
            record,
            views[placement.index],
            views[placement.decodes],
            now,
            hand_over_seconds=self._split.hand_over_seconds,
        ):
            self._wake(replica, lambda: replica.submit(opened, now))
        if self.watch is not None:
            self.watch.arrived(record)

    def _go_on(self, request: OpenRequest, now: float) -> bool:
        """With a request whose replica has died, if any is available."""
        found = self._views(request.message, request.text.prompt_names, now)
        views = [replace(view, role=Role.MIXED) for view in found]
        if not any(view.available for view in views):
            return False
        replica = self.replicas[self._router.choose(request.message.prompt_ids, views, ChunkPhase.PREFILL)]
        self._wake(replica, lambda: replica.submit(request, now))
        return True

    def _later(self, index: int, time: float, action: Callable[[float], None]) -> None:
        """Something is to happen to a replica."""

        def act(now: float) -> None:
            self._wake(self.replicas[index], lambda: action(now))

        self._timeline.at(time, act)

    def _views(self, message: AddRequest, names: Sequence[bytes], now: float) -> list[ReplicaView]:
        """All replicas, as they are for a request."""
        usable = names[: (len(message.prompt_ids) - 1) // self._block_size]  # the last token is always computed
        return [replica.view(message, usable, now) for replica in self.replicas]

    def _hand_over(self, source: int, given: HandOver) -> None:
        """The first token of a request is there: another replica goes on as soon as it has the prompt's KV."""
        prompt, names, now = given.text.prompt, given.text.prompt_names, given.ended
        views = [replica.view(given.message, names, now) for replica in self.replicas]
        target = self.replicas[self._router.choose(prompt, views, ChunkPhase.DECODE)]
        size = self._block_bytes * missing(target.scheduler.pool, names, prompt)
        there = self._links[source].arrival(size, given.begun, given.ended)
        target.expect(given)

        def arrive(now: float) -> None:
            self._wake(target, lambda: target.take(given, now))

        self._timeline.at(max(there, given.ended + self._message_seconds), arrive)

    def _wake(self, replica: Replica, act: Callable[[], None]) -> None:
        """Do something that may change when the replica is due."""
        before = replica.due
        act()
        if replica.due is not None and replica.due != before:
            self._timeline.at(replica.due, partial(self._advance, replica))

    def _advance(self, replica: Replica, now: float) -> None:
        if replica.due == now:  # otherwise an arrival has cut a stretch short
            self._wake(replica, replica.advance)

    def _look(self, now: float) -> None:
        """See to the roles, every second as long as there are requests."""
        assert self.watch is not None
        for replica in self.replicas:
            replica.catch_up(now)
            replica.settle()
        self.watch.look(now)
        if self._arriving or self.watch.busy:
            self._timeline.at(now + LOOK_SECONDS, self._look)


def _mixed(replicas: int) -> RolePool:
    """So many of one kind, which hand nothing over."""
    return RolePool(roles=(Role.MIXED,) * replicas, bytes_per_second=1.0)


@cache
def _sampling(output: int) -> SamplingParams:
    """What is asked of all answers of so many tokens."""
    return SamplingParams(max_tokens=output, ignore_eos=True)


def _config(cost: CostModel, shape: ServerShape, blocks: int) -> SchedulerConfig:
    longest = min(cost.model.max_position, blocks * shape.block_size)
    if shape.context is not None and shape.context > longest:
        room = (
            f"{cost.model.max_position} and {blocks} KV blocks of {shape.block_size} hold {blocks * shape.block_size}"
        )
        raise SpecError(f"--context {shape.context} is not possible: {cost.model.name} takes {room} tokens")
    return SchedulerConfig(
        context=shape.context or longest,
        eos_token_ids=frozenset(),  # answers have the trace's lengths
        fingerprint=cost.model.name,
        max_step_tokens=shape.max_step_tokens,
        max_running=shape.max_running,
        scheduling=shape.scheduling,
    )


def summary(stats: Sequence[EngineStats]) -> dict[str, float]:
    """The counters summed over all replicas, under the names of a server's metrics."""
    return {f"headrace_{name}_total": float(sum(getattr(each, name) for each in stats)) for name in COUNTERS}
