"""Stores that end with their test."""

import pytest

from engine.kv_store.disk.disk_store import DiskStore
from engine.kv_store.disk.record import size_of
from tests.engine.kv_store.disk.disk_parts import SIZE


@pytest.fixture
def open_store(tmp_path):
    """Opens stores in one folder; each is checked and closed before the next, and at the end."""
    current: list[DiskStore] = []

    def end() -> None:
        while current:
            current[-1].check_integrity()
            current.pop().close()

    def start(*, size: int = SIZE, blocks: int = 64, fingerprint: str = "model", **other) -> DiskStore:
        end()
        limit = blocks * size_of(size)
        store = DiskStore(tmp_path / "kv", block_bytes=size, fingerprint=fingerprint, limit_bytes=limit, **other)
        current.append(store)
        store.check_integrity()
        return store

    yield start
    end()
