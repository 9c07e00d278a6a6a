"""Content addresses of full KV blocks.

A key stands for everything on which the KV in a block depends. So the same key is valid in every store and on every machine,
and two requests may share a block exactly if their keys are equal.
"""

from array import array
from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import NamedTuple

HASH_BYTES = 16  # a chance collision takes about 2^64 blocks; the pool compares the token ids as well


class BlockKey(NamedTuple):
    """The name of a block's content. `hash` is valid in every tier and on every machine; equal with other ids, it is a miss."""

    hash: bytes
    token_ids: tuple[int, ...]


@lru_cache(maxsize=256)  # most requests have one of few
def root_hash(fingerprint: str, cache_salt: str = "", adapter: str = "") -> bytes:
    """The parent hash of a sequence's first block.

    Args:
        fingerprint: model and KV format, as one string; equal only if KV is interchangeable.
        cache_salt: a tenant's secret; prefixes are shared only between equal salts.
        adapter: digest of the LoRA adapter's contents, whatever it is called; empty: none.
    """
    digest = blake2b(digest_size=HASH_BYTES, person=b"headrace-root")
    parts = [fingerprint, cache_salt, adapter] if adapter else [fingerprint, cache_salt]
    for part in (text.encode("utf-8", "surrogatepass") for text in parts):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.digest()


def block_hash(parent: bytes, token_ids: Sequence[int]) -> bytes:
    """The hash of a block that holds `token_ids` after the prefix with the hash `parent`."""
    return blake2b(array("I", token_ids).tobytes(), digest_size=HASH_BYTES, key=parent).digest()


def block_names(root: bytes, token_ids: Sequence[int], block_size: int) -> list[bytes]:
    """The hashes of all full blocks of a sequence, from its `root_hash` on."""
    names, parent = [], root
    for begin in range(0, len(token_ids) - block_size + 1, block_size):
        parent = block_hash(parent, token_ids[begin : begin + block_size])
        names.append(parent)
    return names
