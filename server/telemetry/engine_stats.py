"""What an engine reports of itself (`EngineStats`) as metrics, which go on over its restarts."""

from collections.abc import Iterable
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from scheduler.types.messages import EngineStats, TierStats


@dataclass(frozen=True, slots=True)
class EngineMetric:
    """A field of `EngineStats` as a metric. `label`: (name, value) of a family that several fields share."""

    field: str
    name: str
    help: str
    counter: bool = True
    label: tuple[str, str] | None = None


_RECORDINGS = ("headrace_graph_recordings", "CUDA graphs of steps that were to be recorded.")
_BLOCKS = ("headrace_kv_blocks", "KV blocks of the pool by state; they sum up to the pool.")
ENGINE_METRICS = (
    EngineMetric("running", "headrace_sequences_running", "Sequences running.", counter=False),
    EngineMetric(
        "running_idle",
        "headrace_idle_sequences_running",
        "Sequences running on what nobody else needs: those of batches.",
        counter=False,
    ),
    EngineMetric("waiting", "headrace_sequences_waiting", "Sequences waiting in the engine.", counter=False),
    EngineMetric(
        "blocks_total", "headrace_kv_pool_blocks", "KV blocks of the pool, whatever their state.", counter=False
    ),
    EngineMetric("blocks_used", *_BLOCKS, counter=False, label=("state", "used")),
    EngineMetric("blocks_cached", *_BLOCKS, counter=False, label=("state", "cached")),
    EngineMetric("blocks_free", *_BLOCKS, counter=False, label=("state", "free")),
    EngineMetric("prefix_query_tokens", "headrace_prefix_query_tokens", "Prompt tokens looked up in the prefix cache."),
    EngineMetric("prefix_hit_tokens", "headrace_prefix_hit_tokens", "Prompt tokens found in the prefix cache."),
    EngineMetric("prompt_tokens", "headrace_prompt_tokens", "Prompt tokens received."),
    EngineMetric("generation_tokens", "headrace_generation_tokens", "Tokens generated."),
    EngineMetric("preemptions", "headrace_preemptions", "Times a running sequence gave up its blocks."),
    EngineMetric("swapped_out", "headrace_preemptions_swapped", "Preemptions whose KV was saved to a lower tier."),
    EngineMetric("recomputed_tokens", "headrace_recomputed_tokens", "Tokens computed again after a preemption."),
    EngineMetric(
        "drafts_proposed", "headrace_speculation_proposed_tokens", "Tokens that were guessed ahead and verified."
    ),
    EngineMetric("drafts_accepted", "headrace_speculation_accepted_tokens", "Guessed tokens that were right."),
    EngineMetric("steps", "headrace_steps", "Engine steps."),
    EngineMetric("integrity_checks", "headrace_integrity_checks", "Checks of the block pool's invariants."),
    EngineMetric("integrity_failures", "headrace_integrity_failures", "Checks that found an invariant broken."),
    EngineMetric("graph_steps", "headrace_graph_steps", "Steps that ran on a CUDA graph."),
    EngineMetric("graphs_recorded", *_RECORDINGS, label=("outcome", "recorded")),
    EngineMetric("graphs_failed", *_RECORDINGS, label=("outcome", "failed")),
)


_COPIES = ("headrace_kv_tier_copies", "Ranges copied to and from a tier; adjacent blocks are copied as one range.")
TIER_METRICS = (  # fields of `TierStats`, each with the tier as a label
    EngineMetric("up", "headrace_kv_tier_up", "1, or 0 once the tier has failed and is no longer used.", counter=False),
    EngineMetric("blocks", "headrace_kv_tier_blocks", "KV blocks kept in a tier below the device.", counter=False),
    EngineMetric("bytes", "headrace_kv_tier_bytes", "Bytes that a tier's KV blocks take.", counter=False),
    EngineMetric(
        "block_load_seconds",
        "headrace_kv_tier_block_load_seconds",
        "To load one KV block from a tier, as lately measured, or assumed before that; the router counts on it.",
        counter=False,
    ),
    EngineMetric("loaded", "headrace_kv_tier_loaded_blocks", "KV blocks loaded from a tier instead of computed."),
    EngineMetric("saved", "headrace_kv_tier_saved_blocks", "KV blocks copied to a tier."),
    EngineMetric(
        "spared", "headrace_kv_tier_spared_blocks", "KV blocks not copied because the tier already had a valid copy."
    ),
    EngineMetric("load_copies", *_COPIES, label=("direction", "load")),
    EngineMetric("save_copies", *_COPIES, label=("direction", "save")),
    EngineMetric(
        "failed", "headrace_kv_tier_failed_blocks", "KV blocks that were damaged or gone when they were loaded."
    ),
    EngineMetric(
        "evicted", "headrace_kv_tier_evicted_blocks", "KV blocks evicted from a tier to make room for others."
    ),
)

Family = GaugeMetricFamily | CounterMetricFamily


class EngineCollector(Collector):
    """`EngineStats` as metrics. A restarted engine counts from zero again; the metrics continue from where they were."""

    def __init__(self) -> None:
        self.stats = EngineStats()
        self._before = EngineStats()  # the sum over the incarnations that ended

    def engine_ended(self) -> None:
        """Keep the counters of the incarnation that ended, and drop its gauges."""
        for tier, stats in self.stats.tiers.items():
            _add_counters(self._before.tiers.setdefault(tier, TierStats(up=False)), stats, TIER_METRICS)
        _add_counters(self._before, self.stats, ENGINE_METRICS)
        self.stats = EngineStats()

    def collect(self) -> Iterable[Metric]:
        """The families, in the order of the tables."""
        families: dict[str, Family] = {}
        for metric in ENGINE_METRICS:
            _sample(families, metric, self.stats, self._before, {})
        for metric in TIER_METRICS:
            for tier in sorted(self.stats.tiers.keys() | self._before.tiers.keys()):
                now = self.stats.tiers.get(tier, TierStats(up=False))
                _sample(families, metric, now, self._before.tiers.get(tier, TierStats(up=False)), {"tier": tier})
        return families.values()


def _add_counters(total: object, ended: object, metrics: Iterable[EngineMetric]) -> None:
    for metric in metrics:
        if metric.counter:
            setattr(total, metric.field, getattr(total, metric.field) + getattr(ended, metric.field))


def _sample(
    families: dict[str, Family], metric: EngineMetric, now: object, before: object, labels: dict[str, str]
) -> None:
    """Add one value to its family. A gauge shows the present incarnation only: nothing is left of those that ended."""
    labels = labels | dict([metric.label] if metric.label else [])
    if metric.name not in families:
        kind = CounterMetricFamily if metric.counter else GaugeMetricFamily
        families[metric.name] = kind(metric.name, metric.help, labels=list(labels))
    families[metric.name].add_metric(
        list(labels.values()), getattr(now, metric.field) + (getattr(before, metric.field) if metric.counter else 0)
    )
