"""When a draft model pays: its steps' time against what guesses bring, and an account that bounds what is lost."""

import pytest

from engine.drafting.draft_worth import DraftWorth, OwnGuesses


def measured(step=0.05, row=0.005, draft=0.02, draft_row=0.002, rows=1, steps=60):
    """A model and a draft of which steps of several sizes have been seen."""
    worth = DraftWorth()
    for i in range(steps):
        count = rows + 2 * (i % 3)
        worth.observe(count, rows, step + row * count)
        worth.drafted(count, 0.0, new=False)  # whose time is told below, without charge
    worth._draft.__init__()
    for i in range(steps):
        count = rows + 2 * (i % 3)
        worth._draft.observe(count, count, draft + draft_row * count)
    return worth


def test_nothing_is_guessed_before_steps_were_seen():
    worth = DraftWorth()
    assert worth.rests(7)
    for _ in range(3):
        worth.observe(1, 1, 0.05)
    assert not worth.rests(7)


@pytest.mark.parametrize(("draft", "pays"), [(0.01, True), (0.03, True), (0.06, False)])
def test_a_draft_s_step_has_to_bring_more_than_its_time_would(draft, pays):
    worth = measured(draft=draft, draft_row=0.0)
    assert worth.pays([0.85], 1, 1) == pays


def test_rows_share_the_draft_s_step():
    worth = measured(step=0.5, draft=0.3, draft_row=0.0, rows=4)
    assert not worth.pays([0.5], 4, 1)
    assert worth.pays([0.9] * 4, 4, 4)
    assert not worth.pays([0.0] * 4, 4, 4)


def test_where_rows_are_dear_nothing_pays_and_it_is_seldom_asked():
    worth = measured(step=0.005, row=0.01, rows=32)
    assert worth.row_price(32) > 0.8
    assert not any(worth.promising([0.9] * 32, 32) for _ in range(3))
    assert [known for known in range(64) if not worth.rests(known)] == [0, 16, 32, 48]


def test_how_sure_the_draft_is_tells_how_likely_a_guess_is_right():
    worth, own = DraftWorth(), OwnGuesses()
    assert worth.estimated(own, 0.2) < worth.estimated(own, 0.6) < worth.estimated(own, 0.999) <= 0.98
    for _ in range(200):
        worth.verified(OwnGuesses(), [0.999], 0)
        worth.verified(OwnGuesses(), [0.4], 1)
    assert worth.estimated(OwnGuesses(), 0.999) < 0.3 and worth.estimated(OwnGuesses(), 0.4) > 0.8


def test_a_request_s_own_luck_counts():
    worth, lucky, unlucky = DraftWorth(), OwnGuesses(), OwnGuesses()
    for _ in range(10):
        worth.verified(lucky, [0.9, 0.9], 2)
        worth.verified(unlucky, [0.9, 0.9], 0)
    assert worth.estimated(unlucky, 0.9) < 0.5 * worth.estimated(lucky, 0.9)
    assert worth.next_chance(lucky) != worth.next_chance(unlucky)


def test_the_first_wrong_guess_is_the_last_that_teaches():
    worth, own = DraftWorth(), OwnGuesses()
    before = list(worth._trials)
    worth.verified(own, [0.2, 0.6, 0.9, 0.97], 1)
    grown = [now > 0.995 * old + 0.5 for old, now in zip(before, worth._trials, strict=True)]
    assert grown == [True, False, True, False, False, False, False]


def test_a_long_prompt_is_caught_up_with_only_for_what_it_brings():
    worth = measured(draft_row=0.004)
    worth._seconds = 0.1
    assert worth.worth_catching_up(40, 0)
    assert not worth.worth_catching_up(4000, 0)
    for _ in range(500):
        worth.ended(2000)
    assert worth.worth_catching_up(2000, 0), "answers are long"
    for _ in range(400):
        worth.verified(OwnGuesses(), [0.9] * 4, 0)
    assert not worth.worth_catching_up(40, 0), "guesses are wrong"


def test_what_is_lost_is_bounded_by_the_account():
    """Guesses that are never right, of a draft that seems sure: a second, and one part in a hundred."""
    worth, lost, time = measured(), 0.0, 0.0
    for known in range(3000):
        worth.observe(1, 1, 0.05)
        time += 0.05
        if not worth.rests(known):
            worth.drafted(1, 0.02, new=True)
            worth._gained = 1e9
            worth.verified(OwnGuesses(), [0.999], 0)
            lost += 0.02
    assert 0.4 < lost < 1.3 + 0.01 * time


def test_success_is_credited():
    worth = measured()
    worth._seconds = 0.05
    for known in range(500):
        assert not worth.rests(known)
        worth.observe(3, 3, 0.065)
        worth.drafted(1, 0.02, new=True)
        worth.drafted(1, 0.02, new=True)
        worth.verified(OwnGuesses(), [0.99, 0.99], 2)
    assert worth._seconds > 1.0


def test_rows_that_kernels_compute_together_are_told_from_those_that_begin_anew():
    """Four rows take as long as one, the fifth as long again."""
    worth = measured(draft=0.005, draft_row=0.0)
    assert DraftWorth()._times.added(1, 1) is None
    assert worth._times.added(4, 2) == pytest.approx(worth._times.added(1, 2)), (
        "none had six rows: they go on as before"
    )
    assert worth._times.added(1, 1) == pytest.approx(worth._times.added(1, 2) / 2), "nor two, but one and three"
    for i in range(600):
        rows = 1 + i % 6
        worth.observe(rows, 1, 0.05 if rows <= 4 else 0.1)
    assert worth.row_price(3) < 0.1 and worth.row_price(4) > 0.5
    assert worth.row_price(2, 4) == pytest.approx(worth.row_price(4) / 4, rel=0.2)
    assert worth.pays([0.6], 3, 1) and not worth.pays([0.6], 4, 1)
    assert worth.row_price(200) > 0, "beyond what is told apart"
    assert 0 < worth.value(OwnGuesses()) < 3


def test_a_step_that_was_held_up_counts_as_two():
    worth, calm = measured(), measured()
    for seconds in (*[0.05] * 20, 9.0):
        worth.observe(1, 1, seconds)
        calm.observe(1, 1, min(seconds, 0.1))
    assert worth._times.added(1, 2) == pytest.approx(calm._times.added(1, 2), rel=1e-3)


def test_what_is_known_of_all_sizes_follows_the_machine_s_pace():
    worth = measured(step=0.06, row=0.01)
    before = worth._times.added(1, 4)
    for _ in range(60):
        worth.observe(1, 1, 0.035)
    assert worth._times.added(1, 4) == pytest.approx(before / 2, rel=0.3)


def test_the_price_is_that_of_as_many_sequences_as_there_are_now():
    """One sequence was guessed for, and it paid; eight come, of which each row takes as long as a step of one."""
    worth = measured(draft=0.01, draft_row=0.0)
    for i in range(60):
        worth.observe(1 + i % 3, 1 + i % 3, 0.05 + 0.002 * (i % 3))
        assert worth.promising([0.85], 1)
    assert not worth.promising([0.85] * 8, 8), "nothing is known of eight"
    for _ in range(4):
        worth.observe(8, 8, 0.4)
    assert not worth.promising([0.85] * 8, 8) and worth.row_price(8) > 0.9
    assert worth.promising([0.85], 1), "and one again pays at once"
