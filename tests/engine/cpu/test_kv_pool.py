"""The memory behind the KV pools."""

from pathlib import Path

import pytest
import torch

from engine.cpu.kv_pool import KvPool
from engine.models.registry import read_config

MAPS = Path("/proc/self/maps")


@pytest.fixture(scope="module")
def pool(smollm2_source):
    return KvPool(read_config(smollm2_source), blocks=6, block_size=8)


def test_a_block_is_one_contiguous_range_and_the_views_are_of_it(pool):
    assert pool.storage[3].is_contiguous()
    assert pool.storage[3].numel() * 4 == 8 * pool.bytes_per_token
    pool.storage.zero_()
    pool.rows[5][3 * 8 + 2] = torch.arange(pool.rows[5].shape[1], dtype=torch.float32)
    assert pool.storage[3, 2, 5].flatten().tolist() == pool.rows[5][26].tolist()
    keys, values = pool.keys[5][:, 26], pool.values[5][:, 26]
    assert torch.cat((keys.flatten(), values.flatten())).tolist() == list(range(pool.rows[5].shape[1]))
    assert pool.storage.count_nonzero() == pool.rows[5].shape[1] - 1


@pytest.mark.skipif(not MAPS.exists(), reason="reads Linux's list of mappings")
def test_the_pool_is_private_memory(pool):
    """Huge pages are advised; shared memory would get none."""
    address = pool.storage.data_ptr()
    for line in MAPS.read_text().splitlines():
        begin, end = (int(bound, 16) for bound in line.split()[0].split("-"))
        if begin <= address < end:
            assert line.split()[1] == "rw-p"
            return
    pytest.fail("the pool is mapped nowhere")
