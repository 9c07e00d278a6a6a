"""Where KV blocks are, what was found of prompts, and what moves between the tiers."""

from server.monitoring.panels import Dashboard, Panel, PanelRow, Query
from server.monitoring.promql import gauge, per_second, select, share

_QUERIED = per_second("headrace_prefix_query_tokens_total")
_POOL = PanelRow(
    "Pool",
    [
        Panel(
            title="Blocks, by state",
            about="`used` belong to running sequences, `cached` can be shared or evicted, `free` hold nothing.",
            queries=[Query(gauge("headrace_kv_blocks", by="state"), "{{state}}")],
            stacked=True,
        ),
        Panel(
            title="In use",
            about="At 100 % newcomers wait, and running sequences are preempted as others grow.",
            queries=[
                Query(
                    share(gauge("headrace_kv_blocks", 'state="used"'), gauge("headrace_kv_pool_blocks")), "all engines"
                )
            ],
            unit="percentunit",
            limit=1.0,
        ),
        Panel(
            title="Preemptions",
            about="Sequences that gave up their blocks, and those whose KV was saved below. Many: the pool is too small.",
            queries=[
                Query(per_second("headrace_preemptions_total"), "all"),
                Query(per_second("headrace_preemptions_swapped_total"), "swapped"),
            ],
            unit="ops",
        ),
    ],
)

_PREFIXES = PanelRow(
    "Prefixes",
    [
        Panel(
            title="Found in the cache",
            about="Share of prompt tokens that need not be computed.",
            queries=[Query(share(per_second("headrace_prefix_hit_tokens_total"), _QUERIED), "found")],
            unit="percentunit",
            limit=1.0,
        ),
        Panel(
            title="Prompt tokens",
            about="Looked up and found, per second.",
            queries=[
                Query(_QUERIED, "looked up"),
                Query(per_second("headrace_prefix_hit_tokens_total"), "found"),
            ],
        ),
        Panel(
            title="Computed twice",
            about="Tokens computed again after a preemption, per second: work that a larger pool or a tier would save.",
            queries=[Query(per_second("headrace_recomputed_tokens_total"), "recomputed")],
        ),
    ],
)


def _by_tier(title: str, about: str, *counters: tuple[str, str]) -> Panel:
    queries = [
        Query(per_second(f"headrace_kv_tier_{name}_total", by="tier"), f"{{{{tier}}}} {said}".strip())
        for name, said in counters
    ]
    return Panel(title=title, about=about, queries=queries, unit="ops", width=6)


_TIERS = PanelRow(
    "Tiers below the device",
    [
        Panel(
            title="Up",
            about="0: it failed, and is not used until the engine is started again. The rest serves without it.",
            queries=[Query(f"min by (tier) ({select('headrace_kv_tier_up')})", "{{tier}}")],
            kind="stat",
            width=6,
            warn=1.0,
            bad=1.0,
        ),
        Panel(
            title="Bytes",
            about="What the blocks in a tier take, as each engine knows it: several engines share one host tier.",
            queries=[Query(gauge("headrace_kv_tier_bytes", by="engine, tier"), "{{tier}} {{engine}}")],
            unit="bytes",
            width=6,
        ),
        Panel(
            title="Blocks",
            about="KV blocks in a tier, as each engine knows it.",
            queries=[Query(gauge("headrace_kv_tier_blocks", by="engine, tier"), "{{tier}} {{engine}}")],
            width=6,
        ),
        Panel(
            title="To load a block",
            about="As lately measured, or assumed before that. The router counts on it where loading is sooner than computing.",
            queries=[
                Query(gauge("headrace_kv_tier_block_load_seconds", by="engine, tier"), "{{tier}} {{engine}}"),
            ],
            unit="s",
            width=6,
        ),
        _by_tier("Loaded", "Blocks loaded instead of computed, per second.", ("loaded_blocks", "")),
        _by_tier(
            "Saved",
            "Blocks saved to a tier, and those that need not be because it had them.",
            ("saved_blocks", "saved"),
            ("spared_blocks", "spared"),
        ),
        _by_tier(
            "Lost",
            "Blocks evicted to make room, and blocks that were damaged or gone when they were loaded: "
            "the latter are computed again, and should not happen.",
            ("evicted_blocks", "evicted"),
            ("failed_blocks", "failed"),
        ),
        Panel(
            title="Copies",
            about="Ranges copied. Few copies for many blocks are good: neighbours are copied as one range.",
            queries=[
                Query(per_second("headrace_kv_tier_copies_total", by="tier, direction"), "{{tier}} {{direction}}"),
            ],
            unit="ops",
            width=6,
        ),
        Panel(
            title="Blocks in a copy",
            about="Loaded and saved blocks for each range that was copied.",
            queries=[
                Query(
                    share(
                        per_second("headrace_kv_tier_loaded_blocks_total", by="tier"),
                        per_second("headrace_kv_tier_copies_total", 'direction="load"', by="tier"),
                    ),
                    "{{tier}} load",
                ),
                Query(
                    share(
                        per_second("headrace_kv_tier_saved_blocks_total", by="tier"),
                        per_second("headrace_kv_tier_copies_total", 'direction="save"', by="tier"),
                    ),
                    "{{tier}} save",
                ),
            ],
            width=6,
        ),
    ],
)

_KEEPER = PanelRow(
    "Keeper of the tiers",
    [
        Panel(
            title="Works",
            about="The process that keeps the tiers of several engines, one on each machine. Empty with one engine, or no tier.",
            queries=[Query(f"min by (instance) ({select('headrace_keeper_up')})", "{{instance}}")],
            kind="stat",
            height=6,
            warn=1.0,
            bad=1.0,
        ),
        Panel(
            title="Started again, in an hour",
            about="It died, or it hung and was killed. What it had in memory is there for the next one; meanwhile engines compute.",
            queries=[
                Query(
                    f"sum by (instance, reason) (increase({select('headrace_keeper_restarts_total')}[1h]))",
                    "{{reason}} {{instance}}",
                )
            ],
            kind="stat",
            height=6,
            warn=1.0,
            bad=3.0,
        ),
        Panel(
            title="Processor in use",
            about="Cores that it keeps busy: its part of finding, copying to the disk, and packing.",
            queries=[Query(per_second("headrace_keeper_process_cpu_seconds_total", by="instance"), "{{instance}}")],
            height=6,
        ),
    ],
)

_CHECKS = PanelRow(
    "Integrity",
    [
        Panel(
            title="Checks of the block pool",
            about="Checks of its invariants between requests; one that fails is a bug of ours: please report it.",
            queries=[
                Query(per_second("headrace_integrity_checks_total"), "checks"),
                Query(per_second("headrace_integrity_failures_total"), "failures"),
            ],
            unit="ops",
        )
    ],
)

KV_CACHE = Dashboard(
    name="kv-cache",
    title="KV cache",
    about="Where KV blocks are, what was found of prompts, and what moves between tiers.",
    rows=[_POOL, _PREFIXES, _TIERS, _KEEPER, _CHECKS],
)
