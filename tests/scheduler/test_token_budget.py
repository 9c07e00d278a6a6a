"""How a step's tokens are shared: nothing is wasted, nothing is given twice, and whose turn it is is kept."""

from hypothesis import given
from hypothesis import strategies as st

from scheduler.policies.base import Need, SchedulingPolicy
from scheduler.token_budget import choose_decodes, decode_room, split_prefill
from scheduler.types.messages import RequestTimes
from scheduler.types.request import Request, RequestState
from scheduler.types.sampling_params import SamplingParams

BUDGETS = st.integers(1, 300)


@st.composite
def prompts(draw):
    """Needs of several ranks, each with an arrival of its own."""
    drawn = draw(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 200)), min_size=1, max_size=12))
    return [Need((rank,), arrival, remaining) for arrival, (rank, remaining) in enumerate(drawn)]


@given(needs=prompts(), budget=BUDGETS)
def test_prompts_get_all_of_the_budget_that_they_can_use_and_no_more(needs, budget):
    shares = split_prefill(needs, budget)
    wanted = {need.arrival: need.remaining for need in needs}
    assert all(0 < tokens <= wanted[arrival] for arrival, tokens in shares.items())
    assert sum(shares.values()) == min(budget, sum(wanted.values()))


@given(needs=prompts(), budget=BUDGETS)
def test_a_lower_rank_is_served_whole_before_a_higher_one_gets_anything(needs, budget):
    shares = split_prefill(needs, budget)
    served = max(need.rank for need in needs if need.arrival in shares)
    assert all(shares.get(need.arrival) == need.remaining for need in needs if need.rank < served)


@given(needs=prompts(), budget=BUDGETS)
def test_the_oldest_of_the_first_rank_gets_half_or_all_it_needs(needs, budget):
    oldest = min(needs, key=lambda need: (need.rank, need.arrival))
    assert split_prefill(needs, budget)[oldest.arrival] >= min(oldest.remaining, -(-budget // 2))


@given(needs=prompts(), budget=BUDGETS, shift=st.randoms())
def test_the_order_in_which_prompts_are_given_does_not_matter(needs, budget, shift):
    shuffled = list(needs)
    shift.shuffle(shuffled)
    assert split_prefill(shuffled, budget) == split_prefill(needs, budget)


def test_a_short_prompt_passes_a_long_one_without_starving_it():
    long, short, third = Need((0,), 0, 1000), Need((0,), 1, 10), Need((0,), 2, 40)
    assert split_prefill([long, short, third], 64) == {0: 32, 1: 10, 2: 22}


@given(budget=BUDGETS)
def test_decodes_leave_prompts_an_eighth_and_keep_a_token_themselves(budget):
    assert decode_room(budget, prompts=False) == budget
    room = decode_room(budget, prompts=True)
    assert 1 <= room <= budget
    assert budget - room == min(budget - 1, max(1, budget // 8))


def decoding(arrival, priority, last_step):
    """A running request that lacks its newest token only."""
    request = Request(
        request_id=f"r{arrival}",
        prompt_ids=[1],
        sampling=SamplingParams(max_tokens=8),
        priority=priority,
        arrival=arrival,
        root=b"",
        times=RequestTimes(queued=0.0, scheduled=0.0),
        state=RequestState.RUNNING,
        computed=1,
        last_step=last_step,
    )
    request.tokens.append(2)
    return request


@given(
    drawn=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 5)), max_size=20),
    budget=st.integers(1, 24),
    waiting=st.integers(0, 2),
)
def test_the_lowest_class_and_then_those_that_waited_longest_decode(drawn, budget, waiting):
    ready = [decoding(arrival, priority, step) for arrival, (priority, step) in enumerate(drawn)]
    room = decode_room(budget, prompts=bool(waiting))
    chosen = choose_decodes(list(ready), [], budget, SchedulingPolicy(), room=room)
    assert len(chosen) == min(room, len(ready))
    assert chosen == sorted(chosen, key=lambda r: (r.priority, r.arrival)), "the step lists them by class and arrival"
    kept = {r.arrival for r in chosen}
    left = [(r.priority, r.last_step, r.arrival) for r in ready if r.arrival not in kept]
    assert all((r.priority, r.last_step, r.arrival) < out for r in chosen for out in left)


class HoldsBack(SchedulingPolicy):
    """Decodes of odd arrival run only on what the prompts before them leave."""

    def deferred(self, ready, prompts):
        """Odd ones, and all that these prompts need."""
        return {r.arrival for r in ready if r.arrival % 2}, sum(prompt.remaining for prompt in prompts)


def test_decodes_that_the_policy_holds_back_run_on_what_prompts_leave():
    ready = [decoding(arrival, 0, 0) for arrival in range(4)]
    prompt = decoding(4, 0, 0)
    prompt.computed, prompt.prompt_ids = 0, [1] * 5
    prompt.tokens = [1] * 5
    assert prompt.prefilling and prompt.wants_step
    assert [
        r.arrival for r in choose_decodes(ready, [prompt], 16, HoldsBack(), room=decode_room(16, prompts=True))
    ] == [0, 1, 2, 3], "all fit"
    assert [r.arrival for r in choose_decodes(ready, [prompt], 8, HoldsBack(), room=decode_room(8, prompts=True))] == [
        0,
        1,
        2,
    ], "5 + 2 leave one"
    assert [r.arrival for r in choose_decodes(ready, [prompt], 7, HoldsBack(), room=decode_room(7, prompts=True))] == [
        0,
        2,
    ], "5 + 2 leave none"
