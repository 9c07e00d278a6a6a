"""`loadtest.quality` between real servers: one against itself, and fast against exact."""

import asyncio

import pytest

from loadtest.quality import compare

TEXT = (
    "The bridge had been built before anyone now living was born, and nobody in the village could say by whom. It had three "
    "arches, of which the middle one was the widest, and in a dry summer one could see the stone with the date. "
) * 3


def test_a_server_agrees_with_itself(server):
    found = asyncio.run(compare(server.url, server.url, TEXT, window=64))
    assert found.positions > 100
    assert found.agreement == 1
    assert found.reference == found.candidate
    assert 1 < found.reference < 100


@pytest.mark.long
def test_fast_is_close_to_exact(server, exact_server):
    found = asyncio.run(compare(exact_server.url, server.url, TEXT, window=64))
    assert found.agreement > 0.9
    assert abs(found.candidate / found.reference - 1) < 0.03
