"""Whether KV that lies in a lower tier is loaded or computed anew: what measured bandwidth and measured speed say.

Both are means over what was seen lately, so that a slow disk, a busy one or a fast processor change the answer by themselves. A
prefix is needed from its beginning, so what is loaded is its first part and what is computed the rest; where to cut is the
smallest sum of the two times (CacheGen, section 5.3, decides for each chunk in the same way; arXiv 2310.07240).

What belongs here: the estimate. Never: which contents are where, transfers.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence

_GUESS = 4e8  # bytes a second of a tier of which nothing is said: low for any that is worth having
_MEMORY = 0.8  # of the past that each new measurement keeps
_TELLING_BYTES = 2**20  # a smaller transfer measures latency, not bandwidth
_HOPE = 1.02  # a tier that does not pay is taken to be this much faster each time it is asked about, until it is tried again


class LoadOrRecompute:
    """The estimate of one scheduler, for tiers of any names. Seconds are the workers' own.

    Args:
        block_bytes: of one block on the device.
        block_size: tokens of one block.
        telling_tokens: prompt tokens from which a step says how fast prompts are computed.
        bandwidth: bytes a second that tiers are taken to give, by name, until a transfer has been seen.
    """

    def __init__(
        self, block_bytes: int, block_size: int, telling_tokens: int, bandwidth: Mapping[str, float] | None = None
    ) -> None:
        self._block_bytes = block_bytes
        self._block_size = block_size
        self._telling = telling_tokens
        self._bandwidth: dict[str, float] = defaultdict(lambda: _GUESS, bandwidth or {})
        self._queued: dict[str, int] = defaultdict(int)
        self._token_seconds: float | None = None
        self._seen: set[str] = set()  # tiers that a load has been measured of; the others are given the chance to be

    # --- what was seen ---

    def saw_step(self, prompt_tokens: int, tokens: int, seconds: float) -> None:
        """A step ended. It tells the price of a prompt token if prompts were most of it."""
        if prompt_tokens >= self._telling and 2 * prompt_tokens > tokens and seconds > 0:
            price = seconds / tokens
            old = self._token_seconds
            self._token_seconds = price if old is None else _MEMORY * old + (1 - _MEMORY) * price

    def queued(self, tier: str, blocks: int) -> None:
        """So many blocks (fewer, if negative) wait to be loaded from the tier."""
        self._queued[tier] += blocks * self._block_bytes

    def saw_transfer(self, tier: str, blocks: int, seconds: float) -> None:
        """A load ended."""
        size = blocks * self._block_bytes
        if size >= _TELLING_BYTES and seconds > 0:
            old = self._bandwidth[tier] if tier in self._seen else size / seconds
            self._bandwidth[tier] = _MEMORY * old + (1 - _MEMORY) * size / seconds
            self._seen.add(tier)

    # --- what follows ---

    def block_seconds(self, tier: str) -> float:
        """To load one block."""
        return self._block_bytes / self._bandwidth[tier]

    def recompute_seconds(self, tokens: int) -> float | None:
        """To compute so many prompt tokens; None before any were seen."""
        return None if self._token_seconds is None else tokens * self._token_seconds

    def pays(self, tier: str) -> bool:
        """Whether a block is loaded sooner than computed, nothing else waiting: only then is it worth keeping there."""
        return self._sooner(tier, 1)

    def swap_pays(self, tier: str) -> bool:
        """Whether blocks are written and read again sooner than computed."""
        return self._sooner(tier, 2)

    def _sooner(self, tier: str, ways: int) -> bool:
        computed = self.recompute_seconds(self._block_size)
        if computed is None or tier not in self._seen or ways * self.block_seconds(tier) < computed:
            return True
        self._bandwidth[tier] *= _HOPE
        return False

    def to_load(self, sources: Sequence[str]) -> int:
        """How many leading blocks of a run to load, where block i lies in `sources[i]`; the others are computed."""
        per_block = self.recompute_seconds(self._block_size)
        if per_block is None or not self._seen.issuperset(sources):
            return len(sources)
        best, best_seconds = 0, len(sources) * per_block
        loading: dict[str, float] = {}  # tiers load side by side; the last of them to finish is waited for
        for count, tier in enumerate(sources, 1):
            waits = self._queued[tier] / self._bandwidth[tier]
            loading[tier] = loading.get(tier, waits) + self.block_seconds(tier)
            seconds = max(loading.values()) + (len(sources) - count) * per_block
            if seconds < best_seconds:
                best, best_seconds = count, seconds
        return best
