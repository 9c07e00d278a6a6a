"""What followed the newest tokens before, against a search that compares them one by one."""

from hypothesis import given
from hypothesis import strategies as st

from engine.drafting.history import PREDICTED, TokenHistory
from scheduler.worth import LONGEST_MATCH, SHORTEST_MATCH

tokens = st.lists(st.integers(0, 3), max_size=40)


def matched(text, end):
    """How many tokens before `end` are those before the end of the text."""
    length = 0
    while length < min(end, LONGEST_MATCH) and text[end - 1 - length] == text[-1 - length]:
        length += 1
    return length


def searched(prediction, text, most, place):
    """`TokenHistory.look`, by the book."""
    whole, predicted = prediction + text, len(prediction)
    best = max((matched(whole, end) for end in range(1, len(whole))), default=0)
    ends = [end for end in range(1, len(whole)) if best and matched(whole, end) == best]
    inside = [end for end in ends if end < predicted]
    if inside:
        end = min(inside, key=lambda end: (abs(end - place), end))
        return max(best, PREDICTED), whole[end : min(end + most, predicted)], end
    if best < SHORTEST_MATCH:
        return 0, [], place
    following = whole[ends[-1] : ends[-1] + most]
    while len(following) < most:
        following += following[: most - len(following)]
    return best, following, place


@given(tokens, tokens.filter(bool), st.lists(tokens, max_size=4), st.integers(1, 8))
def test_a_look_finds_the_longest_match(prediction, text, later, most):
    history, place = TokenHistory(prediction), 0
    for more in [[], *later]:
        text = text + more
        history.follow(text)
        length, following, place = searched(prediction, text, most, place)
        assert history.look(most) == (length, following)


def test_a_long_text_outgrows_the_first_memory():
    text = [token % 1999 for token in range(5000)]
    history = TokenHistory([7] * 10)
    for end in (10, 1500, 1501, 5000):
        history.follow(text[:end])
    assert history.look(3) == (LONGEST_MATCH, text[5000 - 1999 : 5003 - 1999])
