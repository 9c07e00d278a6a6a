"""The collector is off inside, and afterwards as it was."""

import gc

import pytest

from loadtest.collector import collector_off


@pytest.mark.parametrize("before", [True, False])
def test_it_is_off_inside_and_then_as_it_was(before):
    (gc.enable if before else gc.disable)()
    try:
        with pytest.raises(ZeroDivisionError), collector_off():
            with collector_off():
                pass
            assert not gc.isenabled(), "one inside another leaves it off"
            raise ZeroDivisionError
        assert gc.isenabled() == before
    finally:
        gc.enable()
