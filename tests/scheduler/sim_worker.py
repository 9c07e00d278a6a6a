"""A worker without a model: KV is the hash of the prefix it stands for, so every read can be checked.

The token after a prefix is a function of that prefix and of the adapter alone, as with greedy decoding. Whatever the scheduler
does (chunks, sharing, preemption, aborts), each sequence must come out as `expected` says.
"""

from collections import deque
from collections.abc import Callable
from random import Random
from zlib import crc32

from scheduler.beams.search import BeamSearch
from scheduler.types.beams import BeamParams
from scheduler.types.block_hash import BlockKey
from scheduler.types.sampling_params import SamplingParams
from scheduler.types.step import Chunk, ChunkResult, Step, StepResult, TokenLogprobs
from scheduler.types.transfers import DEVICE, TierChanges, Transfer, TransferResult

VOCAB = 50
EOS = 7


def prefix_hash(tokens: list[int], adapter: str = "") -> int:
    return crc32(bytes(tokens), crc32(adapter.encode()))


def next_token(tokens: list[int], adapter: str = "") -> int:
    return prefix_hash(tokens, adapter) % VOCAB


def expected(prompt: list[int], sampling: SamplingParams, context: int, adapter: str = "") -> list[int]:
    tokens = list(prompt)
    while len(tokens) - len(prompt) < sampling.max_tokens and len(tokens) < context:
        tokens.append(next_token(tokens, adapter))
        output = len(tokens) - len(prompt)
        stops = (tokens[-1] == EOS and not sampling.ignore_eos) or tokens[-1] in sampling.stop_token_ids
        if stops and output >= sampling.min_tokens:
            break
    return tokens[len(prompt) :]


def top_tokens(tokens: list[int], most: int) -> list[tuple[int, float]]:
    """The likeliest tokens after a prefix, in no order of their ids and with no two texts of equal probability."""
    rng = Random(prefix_hash(tokens))
    return list(
        zip(rng.sample(range(VOCAB), most), sorted((-rng.random() * 3 for _ in range(most)), reverse=True), strict=True)
    )


def searched(prompt: list[int], sampling: SamplingParams, params: BeamParams) -> list[list[int]]:
    """What a beam search brings, the best first: the search alone, over lists."""
    ends = {*sampling.stop_token_ids, *([] if sampling.ignore_eos else [EOS])}

    def ending(token: int, length: int) -> bool | None:
        masked = length <= sampling.min_tokens and (token in ends or token == EOS)
        return None if masked else token in ends

    most = max(2, 1 + len(ends)) * params.width
    search = BeamSearch(params, ending, sampling.max_tokens, most)
    while not search.done:
        texts = [prompt + [entry.token_id for entry in beam.entries()] for beam in search.running]
        tops = [top_tokens(text, most) for text in texts]
        search.advance([TokenLogprobs(token_id=0, logprob=0.0, rank=1, top=top) for top in tops])
    return [[entry.token_id for entry in text.beam.entries()] for text in search.finished]


class SimPending:
    """A step that a `SimWorker` has been given, and computes when it likes."""

    def __init__(self, worker: "SimWorker", step: Step) -> None:
        self.worker = worker
        self.step = step
        self.brought: StepResult | None = None

    def result(self) -> StepResult:
        while self.brought is None:
            self.worker.run_next()
        return self.brought


class SimWorker:
    """Runs steps on blocks that hold prefix hashes; fails when a chunk would read KV that is not its prefix's."""

    depth = 1

    def __init__(self, blocks: int, block_size: int) -> None:
        self.block_size = block_size
        self.kv: list[list[int | None]] = [[None] * block_size for _ in range(blocks)]
        self.tokens: dict[str, list[int]] = {}
        self.prompt_length: dict[str, int] = {}
        self.sampling: dict[str, SamplingParams] = {}
        self.adapters: dict[str, str] = {}
        self.max_tokens_in_step = 0
        self.last_step = -1
        self.fails = ""  # id of a request whose rows cannot be sampled
        self.given: deque[SimPending] = deque()
        # Whether a step is computed no sooner than its result is asked for.
        self.late: Callable[[], bool] = lambda: False

    def submit(self, step: Step) -> SimPending:
        pending = SimPending(self, step)
        self.given.append(pending)
        while self.given and not self.late():
            self.run_next()
        return pending

    def run_next(self) -> None:
        pending = self.given.popleft()
        pending.brought = self.run(pending.step)

    def run(self, step: Step) -> StepResult:
        assert step.step_id > self.last_step, "steps run in order"
        self.last_step = step.step_id
        self.max_tokens_in_step = max(self.max_tokens_in_step, step.tokens)
        for new in step.new:
            self.tokens[new.request_id] = new.prompt_ids + new.generated_ids
            self.prompt_length[new.request_id] = len(new.prompt_ids)
            self.sampling[new.request_id] = new.sampling
            self.adapters[new.request_id] = new.adapter
        ids = [chunk.request_id for chunk in step.chunks]
        assert len(set(ids)) == len(ids), "one chunk a request"
        written: set[tuple[int, int]] = set()
        forked = [chunk for chunk in step.chunks if chunk.copy_from is not None]
        for chunk, source in [(chunk, list(self.kv[chunk.copy_from or 0])) for chunk in forked]:
            self.kv[chunk.block_table[chunk.start // self.block_size]] = source
        for chunk in step.chunks:
            self._write(chunk, written)
        results = [self._result(chunk) for chunk in step.chunks]
        for request_id in step.retired:
            self.tokens.pop(request_id, None)
        return StepResult(step_id=step.step_id, results=results)

    def _write(self, chunk: Chunk, written: set[tuple[int, int]]) -> None:
        tokens, adapter = self.tokens[chunk.request_id] + chunk.draft_ids, self.adapters[chunk.request_id]
        assert chunk.start + chunk.length <= len(tokens), "no token is computed before it is known"
        for position in range(chunk.start, chunk.start + chunk.length):
            slot = (chunk.block_table[position // self.block_size], position % self.block_size)
            assert slot not in written, "two hands write one slot"
            written.add(slot)
            self.kv[slot[0]][slot[1]] = prefix_hash(tokens[: position + 1], adapter)

    def _result(self, chunk: Chunk) -> ChunkResult:
        tokens, adapter = self.tokens[chunk.request_id], self.adapters[chunk.request_id]
        end, computed = chunk.start + chunk.length, tokens + chunk.draft_ids
        for position in range(end):
            held = self.kv[chunk.block_table[position // self.block_size]][position % self.block_size]
            assert held == prefix_hash(computed[: position + 1], adapter), (
                f"{chunk.request_id} reads foreign KV at {position}"
            )
        result = ChunkResult(request_id=chunk.request_id)
        if chunk.request_id == self.fails:
            result.error = "injected"
            return result
        if self.sampling[chunk.request_id].prompt_logprobs is not None:
            stop = min(end + 1, self.prompt_length[chunk.request_id])
            result.prompt_logprobs = [
                TokenLogprobs(token_id=tokens[i], logprob=-float(i), rank=1, top=[])
                for i in range(chunk.start + 1, stop)
            ]
        if chunk.samples:
            assert end == len(computed), "only successors of the newest token and of drafts are sampled"
            assert chunk.samples == 1 + len(chunk.draft_ids)
            self._sample(chunk, tokens, result)
        return result

    def _sample(self, chunk: Chunk, tokens: list[int], result: ChunkResult) -> None:
        """As long as the drafts say what is sampled."""
        for draft in [*chunk.draft_ids, None]:
            result.token_ids.append(next_token(tokens, self.adapters[chunk.request_id]))
            if self.sampling[chunk.request_id].logprobs is not None:
                top = top_tokens(tokens, self.sampling[chunk.request_id].logprobs or 0)
                entry = TokenLogprobs(token_id=result.token_ids[-1], logprob=-float(len(tokens)), rank=1, top=top)
                result.logprobs.append(entry)
            tokens.append(result.token_ids[-1])
            if tokens[-1] != draft:
                break


class SimStore:
    """One tier: contents by key, up to a number of them."""

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks
        self.contents: dict[bytes, list[int | None]] = {}


class SimTransferWorker:
    """Transfers between the worker's blocks and `SimStore`s. A transfer takes as long as it likes; nobody may notice.

    What a save copies is looked at when it starts and again when it ends: they must be equal, or somebody wrote to a block that
    was being read. A load fills its blocks with rubbish first.
    """

    def __init__(self, worker: SimWorker, stores: dict[str, SimStore], rng: Random) -> None:
        self.worker = worker
        self.stores = stores
        self.rng = rng
        self.under_way: list[tuple[Transfer, list[list[int | None]]]] = []
        self.speed = 0.5  # chance that a transfer under way has ended when its result is asked for
        self.broken: set[str] = set()
        self.loss = 0.0  # chance that a content is damaged when it is read
        self.refusal = 0.0  # that one is not kept
        self.blocks_loaded = 0

    def start(self, transfers: list[Transfer]) -> None:
        for transfer in transfers:
            if transfer.target == DEVICE:
                for block in transfer.blocks:
                    self.worker.kv[block] = [-1] * self.worker.block_size
            self.under_way.append((transfer, [list(self.worker.kv[block]) for block in transfer.blocks]))

    def finished(self) -> list[TransferResult]:
        """Results of those that have ended; for each lower tier in the order they came."""
        results: list[TransferResult] = []
        stuck = set[str]()
        for flight in list(self.under_way):
            if flight[0].lower in stuck or self.rng.random() > self.speed:
                stuck.add(flight[0].lower)
                continue
            self.under_way.remove(flight)
            results.append(self.finish(*flight))
        return results

    def changes(self) -> list[tuple[str, TierChanges]]:
        """Nobody shares these stores."""
        return []

    def returned(self) -> list[tuple[str, list[tuple[BlockKey, int]]]]:
        """What is lost stays so."""
        return []

    def lost(self) -> list[str]:
        """Transfers alone find that out."""
        return []

    def finish(self, transfer: Transfer, before: list[list[int | None]]) -> TransferResult:
        store = self.stores[transfer.lower]
        for key in transfer.drops:
            store.contents.pop(key, None)
        if transfer.lower in self.broken:
            return TransferResult(
                transfer_id=transfer.transfer_id, sizes=[0] * len(transfer.block_keys), lost=transfer.lower
            )
        result = TransferResult(transfer_id=transfer.transfer_id, sizes=[], seconds=0.001)
        for index, block_key in enumerate(transfer.block_keys):
            self.transfer_one(transfer, block_key, index, before, result)
        return result

    def transfer_one(
        self,
        transfer: Transfer,
        block_key: BlockKey,
        index: int,
        before: list[list[int | None]],
        result: TransferResult,
    ) -> None:
        if transfer.source == DEVICE:
            held = self.worker.kv[transfer.blocks[index]]
            assert held == before[index], "somebody wrote to a block while it was saved"
            held = held[: len(block_key.token_ids)]
        else:
            source = self.stores[transfer.source].contents
            if self.rng.random() < self.loss:
                source.pop(block_key.hash, None)
            found = source.get(block_key.hash)
            if found is None:
                result.sizes.append(0)
                result.gone.append(block_key.hash)
                return
            held = found
        if transfer.target == DEVICE:
            block = self.worker.kv[transfer.blocks[index]]
            assert block == [-1] * len(block), "somebody wrote to a block while it was loaded"
            block[: len(held)] = held
            self.blocks_loaded += 1
        elif self.rng.random() < self.refusal:
            result.sizes.append(0)
            return
        else:
            target = self.stores[transfer.target]
            target.contents.setdefault(block_key.hash, list(held))
            assert len(target.contents) <= target.blocks, "the tier was given more than it holds"
        result.sizes.append(1)
