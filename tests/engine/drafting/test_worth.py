"""How many guesses are worth their rows: what they cost and bring decides."""

import pytest

from scheduler.worth import HitChances, OwnHits, RowPrice, worth_guessing


def price(step, row, rows, steps=200, tokens=None):
    """Of steps of so many rows in turn that take `step` seconds and `row` for each row."""
    measured = RowPrice()
    for i in range(steps):
        count = rows[i % len(rows)]
        measured.observe(count, tokens or count, step + row * count)
    return measured.chance


def test_a_row_is_worth_what_its_time_would_bring_otherwise():
    assert price(5e-3, 1e-3, [2, 9], tokens=1) == pytest.approx(1.3e-3 / (5e-3 + 1e-3 * 5.5), rel=0.1)
    assert price(5e-3, 1e-3, [64, 80]) > 0.9, "rows are nearly all that a step takes: only what is certain pays"
    assert price(5e-3, 1e-6, [1, 9]) < 0.05


def test_until_sizes_differ_a_row_costs_what_is_usual():
    assert RowPrice().chance == pytest.approx(1.3 * 0.15)
    assert price(5e-3, 1e-3, [1]) == pytest.approx(1.3 * 0.15, rel=0.01)
    assert price(5e-3, 1e-3, [8]) == pytest.approx(1.3 * 8 * 0.15 / (1 + 7 * 0.15), rel=0.01)


def test_a_step_that_was_held_up_counts_as_three():
    calm, disturbed = RowPrice(), RowPrice()
    for i in range(100):
        for measured, seconds in ((calm, 0.01), (disturbed, 1.0 if i == 50 else 0.01)):
            measured.observe(1, 1, seconds)
    assert disturbed.chance == pytest.approx(calm.chance, rel=0.05)


@pytest.mark.parametrize("price", [0.02, 0.2, 0.5, 0.9, 0.979])
@pytest.mark.parametrize("chance", [0.1, 0.5, 0.9, 0.98])
def test_the_last_guess_that_is_made_is_worth_its_row_and_the_next_is_not(chance, price):
    count = worth_guessing(chance, price)
    assert chance ** (count + 1) <= price * (1 + 1e-9)
    assert count == 0 or chance**count >= price * (1 - 1e-9)


def test_a_request_s_own_guesses_soon_count_more_than_those_of_all():
    chances, lucky, unlucky = HitChances(), OwnHits(), OwnHits()
    assert chances.of(16, lucky) == chances.of(16, unlucky) == pytest.approx(0.8)
    for _ in range(20):
        assert lucky.learn(4, 4) == 4, "all were looked at"
        assert unlucky.learn(4, 0) == 1, "the first was wrong"
    assert chances.of(16, unlucky) < 0.3
    assert 0.95 < chances.of(16, lucky) <= 0.98


def test_all_guesses_after_matches_of_a_length_teach_how_likely_others_are():
    chances = HitChances()
    for _ in range(300):
        chances.learn(3, 3, 3)
    assert chances.of(2, OwnHits()) == pytest.approx(0.35)
    assert chances.of(3, OwnHits()) > 0.9
