"""Whether KV in a lower tier is loaded or computed again, judging by measured bandwidth and measured speed.

Both are means over recent measurements, so that a slow disk, a busy one or a fast processor change the answer by themselves. A
prefix is needed from its beginning, so its first part is loaded and the rest is computed; the cut is where the sum of the two
times is smallest (CacheGen, section 5.3, decides for each chunk in the same way; arXiv 2310.07240).

What belongs here: the estimate. Never: which contents are where, transfers.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence

_GUESS = 4e8  # bytes per second of a tier about which nothing is known: low for any that is worth having
_MEMORY = 0.8  # weight of the past beside a new measurement
_TELLING_BYTES = 2**20  # a smaller transfer measures latency, not bandwidth
_HOPE = 1.02  # a tier that does not pay is assumed to be this much faster with each question, until it is tried again


class LoadOrRecompute:
    """The estimate of one scheduler, for tiers of any names. Times are in seconds, as the workers measure them.

    Args:
        block_bytes: size of one block on the device.
        block_size: tokens of one block.
        telling_tokens: least prompt tokens of a step that shows how fast prompts are computed.
        bandwidth: assumed bytes per second of each tier, by name, until a transfer has been measured.
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
        self._seen: set[str] = set()  # tiers of which a load has been measured; the others are given a chance

    # --- what was seen ---

    def on_step(self, prompt_tokens: int, tokens: int, seconds: float) -> None:
        """A step ended. It shows the cost of a prompt token if most of it was prompts."""
        if prompt_tokens >= self._telling and 2 * prompt_tokens > tokens and seconds > 0:
            cost = seconds / tokens
            old = self._token_seconds
            self._token_seconds = cost if old is None else _MEMORY * old + (1 - _MEMORY) * cost

    def queued(self, tier: str, blocks: int) -> None:
        """`blocks` more blocks (fewer, if negative) wait to be loaded from the tier."""
        self._queued[tier] += blocks * self._block_bytes

    def on_transfer(self, tier: str, blocks: int, seconds: float) -> None:
        """A load ended."""
        size = blocks * self._block_bytes
        if size >= _TELLING_BYTES and seconds > 0:
            old = self._bandwidth[tier] if tier in self._seen else size / seconds
            self._bandwidth[tier] = _MEMORY * old + (1 - _MEMORY) * size / seconds
            self._seen.add(tier)

    # --- what follows ---

    def block_seconds(self, tier: str) -> float:
        """Seconds to load one block."""
        return self._block_bytes / self._bandwidth[tier]

    def recompute_seconds(self, tokens: int) -> float | None:
        """Seconds to compute `tokens` prompt tokens; None before any were measured."""
        return None if self._token_seconds is None else tokens * self._token_seconds

    def pays(self, tier: str) -> bool:
        """Whether loading a block is faster than computing it, with nothing queued: only then is it worth keeping there."""
        return self._sooner(tier, 1)

    def swap_pays(self, tier: str) -> bool:
        """Whether writing blocks and reading them again is faster than computing them."""
        return self._sooner(tier, 2)

    def _sooner(self, tier: str, ways: int) -> bool:
        computed = self.recompute_seconds(self._block_size)
        if computed is None or tier not in self._seen or ways * self.block_seconds(tier) < computed:
            return True
        self._bandwidth[tier] *= _HOPE
        return False

    def to_load(self, sources: Sequence[str]) -> int:
        """How many leading blocks of a run to load, if block i is in the tier `sources[i]`; the others are computed."""
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
