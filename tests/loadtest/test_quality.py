"""The arithmetic of the comparison; `tests/e2e/test_quality.py` runs it between real servers."""

import math

import pytest

from loadtest.quality import Comparison, Scored, windows


def test_windows_cover_the_text_and_leave_out_what_cannot_be_scored():
    assert list(windows(range(7), 3)) == [[0, 1, 2], [3, 4, 5]]
    assert list(windows(range(8), 3)) == [[0, 1, 2], [3, 4, 5], [6, 7]]
    assert list(windows([5], 3)) == []


def test_perplexity_and_agreement_over_several_windows():
    first = Scored([math.log(0.5), math.log(0.25)], [1, 2]), Scored([math.log(0.5), math.log(0.5)], [1, 3])
    second = Scored([math.log(0.125)], [4]), Scored([math.log(0.25)], [4])
    found = Comparison.of([first, second])
    assert found.positions == 3
    assert found.reference == pytest.approx((2 * 4 * 8) ** (1 / 3))
    assert found.candidate == pytest.approx((2 * 2 * 4) ** (1 / 3))
    assert found.agreement == pytest.approx(2 / 3)
