"""What the memory plans of all devices ask: how long a sequence may be, how many blocks that takes. No torch."""

import logging
from collections.abc import Sequence

from configs.model.config import ModelConfig
from configs.model.encoder import EncoderConfig
from configs.model.source import ModelError
from configs.settings import Settings
from engine.kv_store.tiers import TierEntry
from engine.machine import free_memory

log = logging.getLogger("headrace.engine")

GIB = 2**30
MIN_TOKENS = 16  # a pool that holds fewer is of no use
SCORED_ROWS = 128  # rows of logits held at once when a prompt is scored: 25 MB at a vocabulary of 49,152


def longest_sequence(settings: Settings, config: ModelConfig | EncoderConfig) -> int:
    """How many tokens a sequence may have.

    Raises:
        ModelError: more are asked for than the model is made for, and the settings do not allow that.
    """
    made_for = config.max_model_len
    asked = settings.max_model_len or made_for
    if asked <= made_for:
        return asked
    beyond = f"--max-model-len {asked} is more than the {made_for} tokens the model is made for"
    if not settings.allow_long_max_model_len:
        raise ModelError(f"{beyond}; leave the flag out, lower it, or set --allow-long-max-model-len.")
    log.warning("%s: what it answers past that length may be worthless", beyond)
    return asked


def longest_held(settings: Settings, longest: int, blocks: int) -> int:
    """How many of the `longest` tokens of a sequence a pool of `blocks` blocks holds; a warning if fewer than were asked for."""
    held = blocks * settings.block_size
    if held < longest and settings.max_model_len is not None:
        log.warning(
            "max_model_len is %d, but the KV pool of %d blocks (kv_blocks) of %d tokens holds only %d: a request may have no more",
            longest, blocks, settings.block_size, held,
        )  # fmt: skip
    return min(longest, held)


def check_host_memory(tiers: Sequence[TierEntry]) -> None:
    """Where the model itself is on another device: whether the host has the memory that tiers below it will take.

    Raises:
        ModelError: it does not.
    """
    here, bound = [tier for tier in tiers if tier.host_bytes], free_memory()
    needed, available = sum(tier.host_bytes for tier in here), int(bound.amount)
    if here and needed > available:
        names, flags = (
            " and ".join(words) for words in zip(*((tier.name, tier.sized_by) for tier in here), strict=True)
        )
        raise ModelError(
            f"the KV tier {names} needs {gib(needed)} and {gib(available)} are available ({bound.source}); lower {flags}."
        )


def asked_blocks(blocks: int, fitting: int, least: int, block_bytes: int) -> int:
    """The number of blocks that the operator asks for.

    Raises:
        ModelError: they do not fit, or hold next to nothing.
    """
    if blocks > fitting:
        raise ModelError(
            f"--kv-blocks {blocks} takes {gib(blocks * block_bytes)} and {gib(fitting * block_bytes)} are left for the "
            f"KV cache; at most {fitting} blocks fit."
        )
    if blocks < least:
        raise ModelError(f"--kv-blocks {blocks} holds fewer than {MIN_TOKENS} tokens; at least {least} are needed.")
    return blocks


def covering(tokens: int, block_size: int) -> int:
    """How many blocks hold `tokens` tokens."""
    return -(-tokens // block_size)


def gib(size: int) -> str:
    """A number of bytes, for people to read."""
    return f"{size / GIB:.2f} GiB"
