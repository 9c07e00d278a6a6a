"""What is known of a replica, kept by counters, against adding everything up anew after each event."""

from dataclasses import dataclass, field
from math import ceil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.router.state import ReplicaLimits, ReplicaState
from scheduler.types.messages import EngineStats
from scheduler.types.step import StepWork
from tests.drawn import drawn

LIMITS = ReplicaLimits(blocks=30, block_size=4, step_tokens=16, running=4)
NAMES = "abcdefgh"


@dataclass
class Plain:
    """A sequence as one would write it down."""

    prompt: int
    limit: int
    done: int = 0  # of its prompt
    started: bool = False
    generated: int = -1  # after its first token; -1: it has none


@dataclass
class Book:
    """A replica that computes prompts in turn and decodes all others in each step."""

    open: dict[str, Plain] = field(default_factory=dict)
    answers: list[int] = field(default_factory=list)
    used: int = 0

    @property
    def computing(self) -> list[Plain]:
        return [each for each in self.open.values() if each.generated < 0]

    @property
    def decoding(self) -> list[Plain]:
        return [each for each in self.open.values() if each.generated >= 0]

    def steps_left(self, each: Plain) -> int:
        generated, end = max(0, each.generated), float(each.limit)
        if self.answers:
            usual = sum(self.answers) / len(self.answers)
            end = min(end, usual) if generated < usual else generated + 0.5 * (end - generated)
        return max(1, round(end) - generated)

    def steps_until_room(self, tokens: int) -> int:
        """Let the sequences end one by one, the one with the fewest steps left first, until one more is admitted."""
        running = [each for each in self.open.values() if each.started]
        waiting = [each for each in self.open.values() if not each.started]
        ends = sorted((self.steps_left(each), each.prompt + max(0, each.generated)) for each in running)
        wanted = sum(ceil(each.prompt / 4) for each in waiting) + ceil(tokens / 4)
        for gone in range(len(ends) + 1):
            places = LIMITS.running - (len(self.open) - gone) - 1
            free = LIMITS.blocks - self.used + sum(length // 4 for _, length in ends[:gone])
            if places >= 0 and free >= wanted:
                return ends[gone - 1][0] if gone else 0
        return ends[-1][0] if ends else 1


def step(book: Book, state: ReplicaState, now: float) -> None:
    """One step of the replica, and what it is told of it."""
    decodes, room, keys, first = book.decoding, LIMITS.step_tokens, 0, []
    work, names = 0, [name for name, each in book.open.items() if each.generated < 0]
    for name in names:
        each = book.open[name]
        chunk = min(room, each.prompt - each.done)
        if not chunk:
            continue
        if not each.started:
            state.started([name])
            each.started = True
        keys += sum(range(each.done + 1, each.done + chunk + 1))
        each.done, room, work = each.done + chunk, room - chunk, work + chunk
        first += [name] if each.done == each.prompt else []
    book.used = sum(ceil((each.done + max(0, each.generated)) / 4) for each in book.open.values())
    told = StepWork(prompt_tokens=work, prompt_keys=keys, decodes=len(decodes))
    state.step_ended(told, 0.01, EngineStats(blocks_used=book.used), now)
    for each in decodes:
        each.generated += 1
    for name in first:
        state.first_token(name)
        book.open[name].generated = 0


def check(book: Book, state: ReplicaState, now: float) -> None:
    known = state.sequences
    assert len(known) == len(book.open) and known.decodes == len(book.decoding)
    assert known.running == sum(each.started for each in book.open.values())
    assert known.waiting_tokens == sum(each.prompt - each.done for each in book.computing)
    assert known.waiting_keys == sum(sum(range(each.done + 1, each.prompt + 1)) for each in book.computing)
    assert known.decode_keys == sum(each.prompt + each.generated for each in book.decoding)
    assert known.usual_answer == pytest.approx(sum(book.answers) / len(book.answers) if book.answers else 0.0)
    for name, each in book.open.items():
        assert known.length(known.by_id[name]) == each.prompt + max(0, each.generated)
        assert known.steps_left(known.by_id[name]) == book.steps_left(each)
    for tokens in (1, 9, 40):
        steps = book.steps_until_room(tokens)
        assert state.view(tokens, [], now).full == (steps > 0)
        assert state._until_room(tokens) == pytest.approx(steps * state.decode_seconds(0))


EVENTS = st.lists(
    st.tuples(st.just("submit"), st.integers(1, 40), st.integers(1, 20))
    | st.tuples(st.just("step"), st.just(0), st.just(0))
    | st.tuples(st.just("end"), st.integers(0, 7), st.just(0)),
    max_size=30,
)


@settings(max_examples=drawn(30))
@given(EVENTS)
def test_counters_say_what_adding_everything_up_says(events):
    book, state, now = Book(), ReplicaState(LIMITS), 0.0
    for kind, number, limit in events:
        now += 0.01
        free = [name for name in NAMES if name not in book.open]
        if kind == "submit" and free:
            state.submitted(free[0], number, limit)
            book.open[free[0]] = Plain(number, limit)
        elif kind == "step":
            step(book, state, now)
        elif kind == "end" and (ended := [n for n, each in book.open.items() if each.generated >= 0 or not each.done]):
            name = ended[number % len(ended)]
            state.ended(name)
            each = book.open.pop(name)
            book.answers += [each.generated + 1] if each.generated >= 0 else []
        check(book, state, now)
