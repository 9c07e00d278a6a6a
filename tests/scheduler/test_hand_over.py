"""Requests that one scheduler begins and another goes on with, over a tier that both share."""

from collections import OrderedDict
from dataclasses import replace
from random import Random

import pytest

from scheduler.kv.eviction import Eviction, Lru
from scheduler.kv.tiers.tier_index import TierIndex
from scheduler.kv.tiers.transfer_planner import TransferPlanner
from scheduler.types.block_hash import BlockKey
from scheduler.types.messages import AddRequest, FinishReason
from scheduler.types.sampling_params import SamplingParams
from scheduler.types.transfers import TierChanges
from tests.drawn import drawn
from tests.scheduler.sim import Engine
from tests.scheduler.sim_worker import EOS, VOCAB, SimStore, SimTransferWorker, SimWorker, expected

BLOCK = 4
PREFIXES = [[(number * 7 + index) % VOCAB for index in range(24)] for number in range(3)]


class SharedStore(SimStore):
    """It evicts by itself, and every engine can ask what came and went."""

    def __init__(self, blocks):
        super().__init__(blocks)
        self.contents = OrderedDict()
        self.keys = {}  # hash to the full key

    def evict(self):
        self.contents.popitem(last=False)


class Sharing(SimTransferWorker):
    """Carries blocks to and from the store that others share, and says now and then what they did."""

    def __init__(self, worker, store, rng):
        super().__init__(worker, {"host": store}, rng)
        self.store = store
        self.known = set()
        self.hears = 0.5  # chance that a question is answered at once

    def transfer_one(self, transfer, block_key, index, before, result):
        while transfer.target == "host" and len(self.store.contents) >= self.store.blocks:
            self.store.evict()
        super().transfer_one(transfer, block_key, index, before, result)
        if transfer.target == "host" and result.sizes[-1]:
            self.store.keys[block_key.hash] = block_key

    def changes(self):
        if self.rng.random() > self.hears or "host" in self.broken:
            return []
        there = set(self.store.contents)
        came = [(BlockKey(*self.store.keys[key]), 1) for key in sorted(there - self.known)]
        went = sorted(self.known - there)
        self.known = there
        return [("host", TierChanges(came, went))]


class Pair:
    """One engine that computes prompts and one that decodes, over one store."""

    def __init__(self, seed=0, *, blocks=(40, 40), store=400, **options):
        self.rng = Random(seed)
        self.store = SharedStore(store)
        self.engines = [self.engine(count, store, **options) for count in blocks]
        self.first, self.second = self.engines
        self.handed = set()
        self.wait = 20.0

    def engine(self, blocks, store, **options):
        worker = SimWorker(blocks, BLOCK)
        transfers = Sharing(worker, self.store, self.rng)
        index = TierIndex("host", store, 1, Eviction(Lru(), store), shared=True)
        protect = options.pop("protect", False)
        return Engine(
            blocks=blocks,
            block_size=BLOCK,
            worker=worker,
            tiers=lambda pool, _: (
                TransferPlanner(pool, [index], preemption="swap", protect=protect),
                transfers,
            ),
            seed=self.rng.randrange(2**16),
            **options,
        )

    def add(self, name, prompt, **sampling):
        params = SamplingParams(**{"max_tokens": 5, "temperature": 0.0, **sampling})
        self.first.submit(AddRequest(request_id=name, prompt_ids=prompt, sampling=params, hand_over=True))

    def pass_on(self):
        """What the server does with what was handed over."""
        for name, end in list(self.first.ends.items()):
            if end.finish_reason is FinishReason.HANDED_OVER and name not in self.handed:
                self.handed.add(name)
                message = replace(self.first.requests[name], hand_over=False, kv_wait_seconds=self.wait)
                self.second.resume(message, self.first.outputs[name])

    def tick(self):
        for engine in self.engines:
            if engine.scheduler.has_work or engine.scheduler.transfers.busy:
                engine.tick()
            else:
                engine.absorb_moves()
        self.pass_on()

    def drain(self, limit=4000):
        for _ in range(limit):
            if not any(engine.scheduler.has_work for engine in self.engines):
                break
            self.tick()
        for engine in self.engines:
            engine.drain()

    def loaded(self):
        return self.second.scheduler.snapshot().tiers["host"].loaded

    def check(self):
        """Both together have said what one alone would have said."""
        for name, message in self.first.requests.items():
            want = expected(message.prompt_ids, message.sampling, self.first.config.context)
            got, end = self.first.outputs[name], self.first.ends[name]
            if end.finish_reason is FinishReason.HANDED_OVER:
                got, end = got + self.second.outputs[name], self.second.ends[name]
            whole = end.finish_reason in (FinishReason.STOP, FinishReason.LENGTH)
            assert got == (want if whole else want[: len(got)]), name
            if message.sampling.prompt_logprobs is not None and whole:
                seen = self.first.prompt_logprobs[name] + self.second.prompt_logprobs.get(name, [])
                assert seen == message.prompt_ids[1:]


def prompt_of(length, seed=1):
    rng = Random(seed)
    return [rng.randrange(VOCAB) for _ in range(length)]


def lasting(prompt, tokens=5):
    """One whose answer does not end early."""
    assert EOS not in expected(prompt, SamplingParams(max_tokens=tokens, temperature=0.0), 160)
    return prompt


@pytest.mark.parametrize("length", [8, 9, 30], ids=["whole blocks", "and one token", "and a part"])
@pytest.mark.parametrize("depth", [1, 2])
def test_who_goes_on_computes_nothing_again_but_the_newest_token(length, depth):
    pair = Pair(max_step_tokens=8, depth=depth)
    pair.add("a", lasting(prompt_of(length)))
    pair.drain()
    pair.check()
    assert pair.first.ends["a"].finish_reason is FinishReason.HANDED_OVER and len(pair.first.outputs["a"]) == 1
    assert pair.second.ends["a"].finish_reason is FinishReason.LENGTH and len(pair.second.outputs["a"]) == 4
    stats = pair.second.scheduler.snapshot()
    assert stats.recomputed_tokens == 0 and pair.second.ends["a"].times.cached_tokens == length
    assert pair.loaded() == -(-length // BLOCK)
    assert pair.first.scheduler.snapshot().generation_tokens == 1, "nobody samples in vain"


def test_blocks_are_saved_while_the_prompt_is_still_computed():
    pair = Pair(max_step_tokens=8)
    pair.first.transfer_worker.speed = 1.0
    pair.add("a", lasting(prompt_of(64)))
    seen = []
    pair.first.after_step = lambda step: seen.append(len(pair.store.contents))
    pair.drain()
    pair.check()
    assert seen[3] >= 2 and seen[7] >= 10, "after each of the eight chunks"


def test_a_request_that_ends_with_its_first_token_is_handed_to_nobody():
    pair = Pair()
    prompt = prompt_of(11)
    (token,) = expected(prompt, SamplingParams(max_tokens=1, temperature=0.0), 160)
    pair.add("short", prompt, max_tokens=1)
    pair.add("stopped", prompt, stop_token_ids=[token])
    pair.drain()
    assert pair.first.ends["short"].finish_reason is FinishReason.LENGTH
    assert pair.first.ends["stopped"].finish_reason is FinishReason.STOP
    assert not pair.handed


@pytest.mark.parametrize("trouble", ["late", "lost there", "lost here"])
def test_what_does_not_come_in_time_is_computed(trouble):
    pair = Pair(max_step_tokens=16)
    pair.wait = 6.0
    prompt = lasting(prompt_of(30))
    if trouble == "late":
        pair.first.transfer_worker.speed = 0.0
    elif trouble == "lost there":
        pair.first.transfer_worker.broken.add("host")
    else:
        pair.second.transfer_worker.broken.add("host")
    pair.add("a", prompt)
    for _ in range(100):
        pair.tick()
    pair.check()
    assert len(pair.second.outputs["a"]) == 4 and pair.loaded() == 0
    pair.first.transfer_worker.speed = 1.0
    pair.drain()


def test_who_waits_for_blocks_holds_nobody_up_and_can_leave():
    pair = Pair(max_step_tokens=16)
    pair.first.transfer_worker.speed = 0.0
    pair.wait = 1000.0
    pair.add("a", lasting(prompt_of(30)))
    for _ in range(10):
        pair.tick()
    assert pair.handed == {"a"} and pair.second.scheduler.expecting
    pair.second.add("b", lasting(prompt_of(20, seed=5)))
    for _ in range(20):
        pair.tick()
    assert pair.second.ends["b"].finish_reason is FinishReason.LENGTH and pair.second.scheduler.expecting
    pair.second.abort("a")
    assert not pair.second.scheduler.expecting
    pair.first.transfer_worker.speed = 1.0
    pair.drain()
    pair.check()


def test_the_choices_of_a_prompt_share_what_is_handed_over():
    pair = Pair(max_step_tokens=16)
    for name in ("a-0", "a-1", "a-2"):
        pair.add(name, lasting(prompt_of(29)))
    pair.drain()
    pair.check()
    assert len(pair.handed) == 3 and pair.loaded() <= 7 + 3 and pair.second.scheduler.snapshot().recomputed_tokens == 0


def test_protected_requests_are_found_by_who_goes_on_after_a_death():
    pair = Pair(max_step_tokens=16, protect=True)
    prompt = next(
        prompt
        for prompt in (prompt_of(30, seed) for seed in range(99))
        if EOS not in expected(prompt, SamplingParams(max_tokens=40, temperature=0.0), 160)
    )
    pair.first.add("a", prompt, max_tokens=40)
    while len(pair.first.outputs["a"]) < 25:
        pair.first.tick()
    known = pair.first.outputs["a"][:]
    for _ in range(30):
        pair.second.absorb_moves()
    pair.second.resume(pair.first.requests["a"], known)
    pair.second.drain()
    stats, known = pair.second.scheduler.snapshot(), len(prompt) + len(known)
    assert stats.tiers["host"].loaded >= known // BLOCK - 3, "all but what was just becoming full"
    assert stats.recomputed_tokens <= 4 * BLOCK
    want = expected(prompt, SamplingParams(max_tokens=40, temperature=0.0), 160)
    assert pair.first.outputs["a"][:25] + pair.second.outputs["a"] == want


@pytest.mark.parametrize("seed", range(drawn(40)))
def test_random_walk(seed):
    rng = Random(seed)
    pair = Pair(
        seed,
        blocks=(rng.randint(12, 40), rng.randint(12, 40)),
        store=rng.choice([6, 40, 400]),
        max_step_tokens=rng.choice([3, 8, 32]),
        max_running=rng.randint(1, 6),
        max_preemptions=rng.randint(0, 3),
        scheduling=rng.choice(["priority", "fair", "fcfs"]),
        depth=rng.choice([1, 2]),
        protect=rng.random() < 0.3,
        context=44,
    )
    for engine in pair.engines:
        engine.transfer_worker.speed = rng.choice([0.05, 0.5, 1.0])
        engine.transfer_worker.hears = rng.choice([0.05, 0.5, 1.0])
        engine.transfer_worker.loss = rng.choice([0.0, 0.0, 0.2])
        engine.transfer_worker.refusal = rng.choice([0.0, 0.0, 0.2])
    lost_at = rng.choice([None, None, rng.randint(0, 120)])
    count = 0
    for now in range(160):
        pair.wait = rng.choice([0.0, 5.0, 60.0])
        if now < 100 and rng.random() < 0.3:
            prompt = rng.choice(PREFIXES)[: rng.randint(0, 20)] + [
                rng.randrange(VOCAB) for _ in range(rng.randint(1, 12))
            ]
            scores = {"prompt_logprobs": 1} if rng.random() < 0.2 else {}
            pair.add(f"r{count}", prompt, max_tokens=rng.randint(1, 12), **scores)
            count += 1
        if rng.random() < 0.05:
            engine = rng.choice(pair.engines)
            if names := [name for name in engine.requests if name not in engine.ends]:
                engine.abort(rng.choice(names))
        if pair.store.contents and rng.random() < 0.05:
            pair.store.evict()
        if now == lost_at:
            rng.choice(pair.engines).transfer_worker.broken.add("host")
        pair.tick()
        for engine in pair.engines:
            engine.scheduler.check_integrity()
    pair.drain()
    pair.check()
    assert not any(engine.scheduler.expecting for engine in pair.engines)


def test_nobody_waits_for_more_than_the_tier_holds():
    pair = Pair(max_step_tokens=16, store=4)
    pair.wait = 1000.0
    pair.add("a", lasting(prompt_of(30)))
    pair.drain(100)
    pair.check()
    assert len(pair.second.outputs["a"]) == 4


def test_a_request_that_asks_for_it_loads_what_the_device_has_as_well():
    engine = Engine(blocks=32, tiers={"host": 64})
    prompt = list(range(1, 30))
    for name, from_tiers in (("a", False), ("b", False), ("c", True)):
        engine.submit(
            AddRequest(
                request_id=name,
                prompt_ids=prompt,
                sampling=SamplingParams(max_tokens=4, temperature=0.0, ignore_eos=True),
                from_tiers=from_tiers,
            )
        )
        for _ in range(100):
            if engine.scheduler.idle:
                break
            engine.tick()
    loads = {name: sum(load.blocks for load in output.trail.loads) for name, output in engine.ends.items()}
    found = {name: output.trail.found_tokens for name, output in engine.ends.items()}
    assert loads == {"a": 0, "b": 0, "c": 7} and found == {"a": 0, "b": 28, "c": 0}
    assert engine.outputs["a"] == engine.outputs["b"] == engine.outputs["c"]
    assert engine.ends["c"].times.cached_tokens == 28
