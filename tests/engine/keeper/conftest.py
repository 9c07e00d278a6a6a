"""Keepers that end with their test, their books checked."""

import pytest

from tests.engine.keeper.keepers import KeeperThread


@pytest.fixture
def keeper(tmp_path):
    thread = KeeperThread(tmp_path)
    yield thread
    thread.check_integrity()
    thread.close()


@pytest.fixture
def store(keeper):
    """The host tier of one engine."""
    store = keeper.host()
    yield store
    keeper.check_integrity()
    store.close()
