"""Who is about to compute what, against a model that keeps it the slow way."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.kv.block_pool import IntegrityError
from scheduler.kv.pending_prefixes import PendingPrefixes

KEYS = [bytes([i]) for i in range(8)]
ADD = st.tuples(st.just("add"), st.integers(0, 3), st.lists(st.sampled_from(KEYS), unique=True))
RESOLVE = st.tuples(st.just("resolve"), st.sampled_from(KEYS), st.none())
DROP = st.tuples(st.just("drop"), st.integers(0, 3), st.none())


@given(calls=st.lists(st.one_of(ADD, RESOLVE, DROP), max_size=40))
def test_a_content_is_pending_from_its_first_request_until_it_is_there_or_that_one_is_gone(calls):
    pending, makers = PendingPrefixes(), {}
    for call, who, keys in calls:
        match call:
            case "add":
                if str(who) in makers.values():  # a running request starts once
                    continue
                pending.add(str(who), keys)
                makers |= {key: str(who) for key in keys if key not in makers}
            case "resolve":
                pending.resolve([who])
                makers.pop(who, None)
            case "drop":
                pending.drop(str(who))
                makers = {key: maker for key, maker in makers.items() if maker != str(who)}
        assert {key for key in KEYS if pending.holds(key)} == makers.keys()
        pending.check_integrity(set(makers.values()))
        for maker in set(makers.values()):
            with pytest.raises(IntegrityError, match=f"pending for {maker}, which does not run"):
                pending.check_integrity(set(makers.values()) - {maker})


def test_a_second_request_of_one_content_does_not_take_it_over_nor_drop_it():
    pending = PendingPrefixes()
    pending.add("first", KEYS[:2])
    pending.add("second", KEYS[:3])
    pending.drop("second")
    assert [pending.holds(key) for key in KEYS[:3]] == [True, True, False]
    pending.drop("first")
    pending.drop("first")
    assert not any(map(pending.holds, KEYS))
