"""An adapter is part of a block's name: whoever has another one shares nothing, and the worker is told whose rows are whose."""

import pytest

from engine.sequence_input import SequenceInput, adapter_rows, adapters_of
from scheduler.types.block_hash import root_hash
from tests.scheduler.sim import Engine

PROMPT = list(range(16))


def tables(first, second):
    """The prefix blocks of two requests with one prompt, the second of which comes when the first is computed."""
    engine = Engine(blocks=32, adapters={"law": "1a2b", "verse": "3c4d"})
    found = {}

    def look(step):
        found.update({chunk.request_id: chunk.block_table for chunk in step.chunks})

    engine.after_step = look
    engine.add("first", PROMPT, adapter=first, max_tokens=30, ignore_eos=True)
    for _ in range(3):
        engine.tick()
    engine.add("second", PROMPT, adapter=second, max_tokens=2, ignore_eos=True)
    engine.drain()
    prefixes = [set(found[name][:3]) for name in ("first", "second")]  # the last token of the prompt is always computed
    return *prefixes, engine.ends["second"].times.cached_tokens


@pytest.mark.parametrize("other", ["", "verse"])
def test_requests_with_different_adapters_share_no_block(other):
    first, second, cached = tables("law", other)
    assert not first & second
    assert not cached


@pytest.mark.parametrize("adapter", ["", "law"])
def test_requests_with_one_adapter_share_their_prefix(adapter):
    first, second, cached = tables(adapter, adapter)
    assert first == second
    assert cached == 12


def names(**adapters):
    """The names of the blocks of a prompt under the adapter that is loaded."""
    engine = Engine(blocks=32, adapters=adapters)
    engine.add("r", PROMPT, adapter=next(iter(adapters)), max_tokens=9, ignore_eos=True)
    engine.tick()
    return engine.scheduler._table.open["r"].block_hashes


def test_an_adapter_that_is_trained_anew_under_its_name_finds_nothing_that_was_kept_before_a_restart():
    assert len(names(law="1a2b")) == 4
    assert not set(names(law="1a2b")) & set(names(law="5e6f"))
    assert names(law="1a2b") == names(lex="1a2b"), "a new name for the same contents"
    with pytest.raises(ValueError, match="'law' has an empty digest"):
        names(law="")


def test_an_adapter_that_is_not_loaded_is_refused_by_name():
    with pytest.raises(ValueError, match=r"'prose' is not loaded \(loaded: law\)"):
        Engine(blocks=8, adapters={"law": "1a2b"}).add("r", PROMPT, adapter="prose")
    with pytest.raises(ValueError, match=r"'law' is not loaded \(loaded: none\)"):
        Engine(blocks=8).add("r", PROMPT, adapter="law")


def test_a_salt_is_never_taken_for_an_adapter():
    roots = {root_hash("m", salt, adapter) for salt, adapter in [("", ""), ("a", ""), ("", "a"), ("a", "a")]}
    assert len(roots) == 4


def test_each_row_has_the_index_of_its_adapter():
    def part(length, adapter):
        return SequenceInput(token_ids=[0] * length, start=0, block_table=[0], adapter=adapter)

    assert adapter_rows(["law", "verse"]) == {"": 0, "law": 1, "verse": 2}
    assert adapters_of([part(2, 0), part(1, 2), part(3, 1)]) == [0, 0, 2, 1, 1, 1]
    assert adapters_of([part(2, 0), part(1, 0)]) == [], "no adapter costs nothing"
