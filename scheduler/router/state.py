"""All that is known of one replica: fed by what is sent there and what it reports, asked for a view for each request.

What belongs here: the sum of the parts. Never: which replica is chosen, who may be asked.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, inf

from scheduler.router.block_index import BlockIndex
from scheduler.router.sequences import OpenSequence, OpenSequences, keys_of
from scheduler.router.step_cost import StepCost
from scheduler.router.view import ReplicaView, Role
from scheduler.types.messages import EngineStats, Ready
from scheduler.types.step import StepWork


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaLimits:
    """What a replica can do at once.

    Attributes:
        blocks: of KV on the device.
        block_size: tokens in one.
        step_tokens: tokens of a step.
        running: sequences of a step.
    """

    blocks: int
    block_size: int
    step_tokens: int
    running: int

    @classmethod
    def of(cls, ready: Ready) -> "ReplicaLimits":
        """As an engine says that is ready."""
        return cls(
            blocks=ready.blocks,
            block_size=ready.block_size,
            step_tokens=ready.max_step_tokens,
            running=ready.max_running,
        )


class ReplicaState:
    """One replica. Times are seconds of the caller's clock.

    Attributes:
        blocks: the contents that it holds.
        cost: what its steps take.
        sequences: what is open there.
        computed_tokens: prompt tokens that were sent there to be computed, ever.
    """

    def __init__(self, limits: ReplicaLimits | None = None) -> None:
        self.limits = limits
        self.blocks = BlockIndex()
        self.cost = StepCost()
        self.sequences = OpenSequences()
        self.computed_tokens = 0
        self._stats = EngineStats()
        self._stepped = -inf  # when the last step ended

    # --- what happens ---

    def restarted(self, limits: ReplicaLimits | None = None) -> None:
        """It starts anew, with nothing; what its steps cost is still known."""
        self.limits = limits or self.limits
        self.blocks.clear()
        self.sequences = OpenSequences()
        self._stats = EngineStats()

    def submitted(
        self, request_id: str, tokens: int, limit: int, names: Sequence[bytes] = (), *, loads: bool = False
    ) -> None:
        """A sequence was sent there.

        Args:
            request_id: of the sequence.
            tokens: of its prompt, with what was generated elsewhere.
            limit: most tokens it will generate.
            names: of the leading full blocks of its prompt, if they are known.
            loads: whether another replica has computed all but the last token, so that it is loaded here.
        """
        held = self.blocks.held(names)
        uncached = tokens - self._cached(tokens, held.device)
        computes = 1 if loads else max(1, uncached - self._loads(held.tiers, uncached)[1])
        self.sequences.submitted(request_id, OpenSequence(prompt=tokens, computes=computes, limit=limit, names=names))
        self.blocks.announce(names)
        self.computed_tokens += computes

    def started(self, request_ids: Sequence[str]) -> None:
        """These were admitted."""
        for request_id in request_ids:
            self.sequences.started(request_id)

    def step_ended(self, work: StepWork, seconds: float, stats: EngineStats, now: float, steps: int = 1) -> None:
        """A step ended, or several equal ones, each of which took so long; what it brought (`first_token`, `ended`) is told
        afterwards."""
        self._stats = stats
        if not work.prompt_tokens + work.decodes:
            return
        self._stepped = now
        self.cost.observe(work, seconds)
        self.sequences.step_ended(work, steps)

    def first_token(self, request_id: str) -> None:
        """The sequence's prompt is computed."""
        self.sequences.first_token(request_id)

    def ended(self, request_id: str) -> None:
        """The sequence ended, for whatever reason."""
        sequence = self.sequences.ended(request_id)
        if sequence is not None:
            self.blocks.withdraw(sequence.names)

    # --- what is expected ---

    def view(
        self,
        tokens: int,
        names: Sequence[bytes],
        now: float,
        *,
        role: Role = Role.MIXED,
        available: bool = True,
    ) -> ReplicaView:
        """What a router sees of it.

        Args:
            tokens: of the prompt.
            names: of its leading full blocks, if they are known.
            now: the time.
            role: what the replica is meant for.
            available: whether it takes requests.
        """
        held, sequences = self.blocks.held(names), self.sequences
        cached = self._cached(tokens, held.device)
        loading, loaded = self._loads(held.tiers, tokens - cached)
        begin = cached + loaded
        waiting, waiting_keys = sequences.waiting_tokens, sequences.waiting_keys
        own, own_keys = tokens - begin, keys_of(tokens, begin)
        first = self._seconds(waiting + own, waiting_keys + own_keys, now)
        full_seconds = self._until_room(tokens)
        return ReplicaView(
            role=role,
            available=available,
            full=full_seconds > 0,
            open=len(sequences),
            running=sequences.running,
            waiting_tokens=waiting,
            waiting_seconds=self._seconds(waiting, waiting_keys, now),
            token_seconds=self.cost.token_seconds,
            measured=self.cost.measured,
            first_token_seconds=full_seconds + loading + first,
            prompt_seconds=self.cost.seconds_of(own, own_keys, 0, 0, 0.0),
            decode_seconds=self.decode_seconds(tokens),
            step_seconds=self._step_seconds(tokens),
            mixed_step_seconds=self._step_seconds(tokens, own, own_keys),
            answer_tokens=sequences.usual_answer,
            blocks_used=self._stats.blocks_used,
            blocks_total=self.limits.blocks if self.limits else 0,
            cached_tokens=cached,
            tier_tokens=loaded,
            computed_tokens=self.computed_tokens,
        )

    def decode_seconds(self, tokens: int) -> float:
        """Between two tokens of each sequence, with one more of so many tokens, beside prompts as in recent steps."""
        tokens_beside, keys_beside = self.cost.beside_decodes
        return self._step_seconds(tokens, round(tokens_beside), round(keys_beside))

    def _step_seconds(self, tokens: int, prompt_tokens: int = 0, prompt_keys: int = 0) -> float:
        """Of a step of all decodes and of one more of so many tokens, beside as much of these prompts as it takes."""
        decodes, keys = self.sequences.decodes + 1, self.sequences.decode_keys + tokens
        if not prompt_tokens:
            return self.cost.seconds_of(0, 0, decodes, keys)
        chunk = min(prompt_tokens, max(1, self.limits.step_tokens - decodes)) if self.limits else prompt_tokens
        return self.cost.seconds_of(chunk, round(prompt_keys * chunk / prompt_tokens), decodes, keys)

    def _cached(self, tokens: int, blocks: int) -> int:
        """Tokens in so many leading blocks of a prompt; its last one is always computed."""
        return min(blocks * self.limits.block_size, tokens - 1) if self.limits else 0

    def _loads(self, tiers: Sequence[str], uncached: int) -> tuple[float, int]:
        """How long it takes to load the blocks in these tiers as far as that is sooner than to compute them, and the tokens in them
        of so many that are not on the device. Tiers that are down, or of which no report has come yet, are not counted on."""
        if not self.limits or not tiers:
            return 0.0, 0
        size, seconds, count = self.limits.block_size, 0.0, 0
        for tier in tiers:
            stats = self._stats.tiers.get(tier)
            if stats is None or not stats.up or stats.block_load_seconds >= size * self.cost.token_seconds:
                break
            seconds += stats.block_load_seconds
            count += 1
        return seconds, min(count * size, max(0, uncached - 1))

    def _seconds(self, tokens: int, keys: int, now: float) -> float:
        """Until so many prompt tokens are computed, beside the sequences that decode, the step under way included."""
        sequences = self.sequences
        chunk = max(1, self.limits.step_tokens - sequences.decodes) if self.limits else max(1, tokens)
        steps = ceil(tokens / chunk)
        busy = sequences.decodes > 0 or sequences.waiting_tokens > 0
        if not steps and not busy:
            return 0.0
        each = self.cost.seconds_of(0, 0, sequences.decodes, sequences.decode_keys)
        seconds = self.cost.seconds_of(tokens, keys, 0, 0, 0.0) + steps * each
        if not busy:
            return seconds
        if not sequences.waiting_tokens:  # a step of decodes is under way, and the prompt is in none before the next
            seconds += each
        return seconds - min(max(0.0, now - self._stepped), each)

    def _until_room(self, tokens: int) -> float:
        """Until enough sequences have ended for one more of so many tokens to be admitted after those that wait; 0: at once."""
        limits, sequences = self.limits, self.sequences
        if limits is None:
            return 0.0
        size = limits.block_size
        slots, wanted = limits.running - len(sequences) - 1, ceil(tokens / size)
        if sequences.running < len(sequences):
            wanted += sum(ceil(each.computes / size) for each in sequences.by_id.values() if not each.started)
        blocks = limits.blocks - self._stats.blocks_used - wanted
        if slots >= 0 and blocks >= 0:
            return 0.0
        running = (each for each in sequences.by_id.values() if each.started)
        last = 1
        for steps, length in sorted((sequences.steps_left(each), sequences.length(each)) for each in running):
            last, slots, blocks = steps, slots + 1, blocks + length // size
            if slots >= 0 and blocks >= 0:
                break
        return last * self.decode_seconds(0)
