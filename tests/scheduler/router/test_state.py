"""What is known of a replica, and what is expected of it."""

import pytest

from scheduler.router.prefix_aware import PrefixAware
from scheduler.router.state import ReplicaLimits, ReplicaState
from scheduler.router.step_cost import StepCost
from scheduler.router.view import Role
from scheduler.types.block_changes import BlockChanges, StoredBlocks
from scheduler.types.messages import EngineStats, TierStats
from scheduler.types.step import ChunkPhase, StepWork

LIMITS = ReplicaLimits(blocks=100, block_size=10, step_tokens=50, running=4)
NAMES = [bytes([number]) for number in range(20)]
ON_DEVICE, IN_HOST = (
    BlockChanges(stored=[StoredBlocks(tier=tier, names=NAMES[:3], tokens=[10] * 3, parents=[None] * 3)])
    for tier in ("device", "host")
)
STEP, TOKEN, DECODE = 0.01, 0.001, 0.002


class Linear(StepCost):
    """Costs that are known."""

    def __init__(self) -> None:
        super().__init__()
        self._constants = [TOKEN, DECODE, STEP, 0.0, 0.0]

    def _solve(self) -> None:
        """Nothing is learnt."""


def replica() -> ReplicaState:
    state = ReplicaState(LIMITS)
    state.cost = Linear()
    return state


def step(state: ReplicaState, now: float, prompt: int = 0, decodes: int = 0, used: int = 0) -> None:
    state.step_ended(StepWork(prompt_tokens=prompt, decodes=decodes), 0.1, EngineStats(blocks_used=used), now)


def test_an_idle_one_takes_the_steps_of_the_prompt():
    view = replica().view(120, [], 0.0, role=Role.PREFILL)
    assert view.first_token_seconds == pytest.approx(3 * STEP + 120 * TOKEN)
    assert (view.waiting_seconds, view.waiting_tokens, view.full, view.role) == (0.0, 0, False, Role.PREFILL)
    assert (view.token_seconds, view.blocks_total) == (TOKEN, 100)
    assert view.prompt_seconds == pytest.approx(120 * TOKEN)
    assert view.mixed_step_seconds == pytest.approx(STEP + DECODE + 49 * TOKEN), "as much as a step takes"


def test_what_waits_goes_first_and_shrinks_with_each_step():
    state = replica()
    state.submitted("a", 100, 5)
    assert state.view(20, [], 0.0).waiting_tokens == 100
    step(state, 1.0, prompt=50)
    view = state.view(20, [], 1.0)
    assert view.waiting_tokens == 50 and view.waiting_seconds == pytest.approx(STEP + 50 * TOKEN)
    assert view.first_token_seconds == pytest.approx(2 * STEP + 70 * TOKEN)
    step(state, 1.1, prompt=50)
    state.first_token("a")
    view = state.view(20, [], 1.1)
    assert (view.waiting_tokens, view.running, view.open) == (0, 1, 1)
    decode = STEP + DECODE
    assert view.first_token_seconds == pytest.approx(2 * decode + 20 * TOKEN), "a step is under way"
    half = state.view(20, [], 1.1 + decode / 2)
    assert half.first_token_seconds == pytest.approx(1.5 * decode + 20 * TOKEN)
    state.ended("a")
    assert state.view(20, [], 2.0).first_token_seconds == pytest.approx(STEP + 20 * TOKEN)


def test_what_is_cached_or_on_its_way_there_is_not_computed():
    state = replica()
    state.blocks.change(
        BlockChanges(
            anew=True, stored=[StoredBlocks(tier="device", names=NAMES[:3], tokens=[10] * 3, parents=[None] * 3)]
        )
    )
    assert state.view(45, NAMES[:4], 0.0).cached_tokens == 30
    state.submitted("a", 45, 5, NAMES[:4])
    view = state.view(45, NAMES[:4], 0.0)
    assert view.cached_tokens == 40 and view.waiting_tokens == 15 == state.computed_tokens
    state.ended("a")
    assert state.view(45, NAMES[:4], 0.0).cached_tokens == 30
    assert state.view(30, NAMES[:3], 0.0).cached_tokens == 29, "the last token is always computed"


def test_what_another_has_computed_is_not_waited_for():
    state = replica()
    state.submitted("a", 400, 5, loads=True)
    assert state.view(10, [], 0.0).waiting_tokens == 1
    state.submitted("b", 400, 5)
    assert state.view(10, [], 0.0).waiting_tokens == 401


def told(state: ReplicaState, **tiers: TierStats) -> None:
    """It has reported how its tiers do."""
    state.step_ended(StepWork(), 0.0, EngineStats(tiers=tiers), 0.0)


def test_a_tier_is_counted_on_where_loading_is_sooner():
    state = replica()
    state.blocks.change(IN_HOST)
    nothing = pytest.approx(STEP + 45 * TOKEN)
    assert state.view(45, NAMES[:4], 0.0).first_token_seconds == nothing, "it has not said how fast it loads"
    told(state, host=TierStats(block_load_seconds=0.001))
    view = state.view(45, NAMES[:4], 0.0)
    assert (view.cached_tokens, view.tier_tokens) == (0, 30)
    assert view.first_token_seconds == pytest.approx(3 * 0.001 + STEP + 15 * TOKEN)
    assert view.prompt_seconds == pytest.approx(15 * TOKEN), "what is loaded holds up nobody"
    assert state.view(30, NAMES[:3], 0.0).tier_tokens == 29, "the last token is always computed"
    for useless in (TierStats(block_load_seconds=0.02), TierStats(block_load_seconds=0.001, up=False)):
        told(state, host=useless)
        view = state.view(45, NAMES[:4], 0.0)
        assert view.tier_tokens == 0 and view.first_token_seconds == nothing


def test_blocks_of_the_device_come_first_and_each_tier_has_its_own_rate():
    state = replica()
    for tier, names in (("device", NAMES[:1]), ("host", NAMES[1:2]), ("disk", NAMES[2:4])):
        stored = StoredBlocks(tier=tier, names=names, tokens=[10] * len(names), parents=[None] * len(names))
        state.blocks.change(BlockChanges(stored=[stored]))
    told(state, host=TierStats(block_load_seconds=0.001), disk=TierStats(block_load_seconds=0.004))
    view = state.view(45, NAMES[:4], 0.0)
    assert (view.cached_tokens, view.tier_tokens) == (10, 30)
    assert view.first_token_seconds == pytest.approx(0.001 + 2 * 0.004 + STEP + 5 * TOKEN)


def test_what_is_loaded_is_not_waited_for_as_if_it_were_computed():
    state = replica()
    state.blocks.change(IN_HOST)
    told(state, host=TierStats(block_load_seconds=0.001))
    state.submitted("a", 45, 5, NAMES[:3])
    assert state.view(10, [], 0.0).waiting_tokens == 15 == state.computed_tokens


def test_of_two_that_can_load_a_prefix_from_a_shared_tier_the_one_with_less_to_do_gets_it():
    def chosen(rate: float, waits: int) -> int:
        states = [replica(), replica()]
        states[0].blocks.change(ON_DEVICE)  # computed there, and saved for both
        for state in states:
            state.blocks.change(IN_HOST)
            told(state, host=TierStats(block_load_seconds=rate))
        if waits:
            states[0].submitted("busy", waits, 5)
        views = [state.view(45, NAMES[:4], 0.0) for state in states]
        return PrefixAware().choose([0] * 45, views, ChunkPhase.PREFILL)

    assert chosen(0.001, waits=0) == 0, "it need not be loaded"
    assert chosen(0.001, waits=40) == 1, "loading is sooner than waiting"
    assert chosen(0.02, waits=40) == 0, "from a slow tier it would be computed, which takes longer than waiting"


def test_it_is_full_when_a_place_or_blocks_are_missing_and_says_for_how_long():
    state = replica()
    for name in "abcd":
        state.submitted(name, 10, 7)
        step(state, 1.0, prompt=10)
        state.first_token(name)
    view = state.view(20, [], 9.0)
    assert view.full and view.first_token_seconds > 7 * (STEP + 4 * DECODE)
    state.ended("a")
    assert not state.view(20, [], 9.0).full
    step(state, 9.0, decodes=3, used=99)
    assert state.view(20, [], 9.0).full and not state.view(10, [], 9.0).full
    state.submitted("e", 10, 7)
    assert state.view(10, [], 9.0).full, "that block is taken"


def test_tokens_follow_each_other_more_slowly_beside_prompts_and_others():
    state = replica()
    alone = state.view(10, [], 0.0).decode_seconds
    assert alone == pytest.approx(STEP + DECODE)
    state.submitted("a", 10, 70)
    state.first_token("a")
    assert state.view(10, [], 0.0).decode_seconds == pytest.approx(STEP + 2 * DECODE)
    for number in range(60):
        step(state, float(number), prompt=40, decodes=1)
    assert state.view(10, [], 0.0).decode_seconds == pytest.approx(STEP + 2 * DECODE + 40 * TOKEN, rel=0.02)


def test_one_that_starts_again_has_nothing():
    state = replica()
    state.blocks.change(ON_DEVICE)
    state.submitted("a", 45, 5, NAMES[:4])
    state.restarted()
    view = state.view(45, NAMES[:4], 0.0)
    assert (view.open, view.cached_tokens, view.waiting_tokens) == (0, 0, 0)
    state.ended("a")
    assert state.view(45, NAMES, 0.0).open == 0
