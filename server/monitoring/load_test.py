"""What a load test did to the server: the same time axis for what came in, how it was answered, and what it cost.

`headrace loadtest replay ... --annotate URL` marks the beginning and the end of a run; every page shows these marks.
"""

from server.monitoring.panels import Dashboard, Panel, PanelRow, Query
from server.monitoring.promql import gauge, mean, per_second, quantile, share

LOAD_TEST = Dashboard(
    name="load-test",
    title="Load test",
    about="Offered load, answers and cost on one time axis; marks are the runs of `headrace loadtest --annotate`.",
    rows=[
        PanelRow(
            "Load and answers",
            [
                Panel(
                    title="Sequences per second",
                    about="Ended, and answered with an error.",
                    queries=[
                        Query(per_second("headrace_sequences_finished_total"), "ended"),
                        Query(per_second("headrace_request_errors_total"), "errors"),
                    ],
                    unit="reqps",
                    width=12,
                ),
                Panel(
                    title="Running and waiting",
                    about="A queue that grows through the run: the rate is not sustained.",
                    queries=[
                        Query(gauge("headrace_sequences_running"), "running"),
                        Query(gauge("headrace_sequences_waiting"), "waiting"),
                    ],
                    width=12,
                    stacked=True,
                ),
                Panel(
                    title="First token",
                    about="By the server's clock, from when the request was received. The load tester's own report counts from "
                    "when it was due.",
                    queries=[
                        Query(quantile(q, "headrace_time_to_first_token_seconds"), f"p{100 * q:g}")
                        for q in (0.5, 0.9, 0.99)
                    ],
                    unit="s",
                    width=12,
                ),
                Panel(
                    title="Between tokens",
                    about="As they arrive from the engine.",
                    queries=[
                        Query(quantile(q, "headrace_inter_token_latency_seconds"), f"p{100 * q:g}")
                        for q in (0.5, 0.9, 0.99)
                    ],
                    unit="s",
                    width=12,
                ),
            ],
        ),
        PanelRow(
            "What it cost",
            [
                Panel(
                    title="Tokens per second",
                    about="Generated, and tokens of prompts that were computed.",
                    queries=[
                        Query(per_second("headrace_generation_tokens_total"), "generated"),
                        Query(
                            f"{per_second('headrace_prompt_tokens_total')} - "
                            f"{per_second('headrace_prefix_hit_tokens_total')}",
                            "prompt, computed",
                        ),
                    ],
                    width=12,
                ),
                Panel(
                    title="Tokens of a step",
                    about="Mean. A batch that no longer grows with the load has reached its bound.",
                    queries=[Query(mean("headrace_step_tokens"), "tokens")],
                    width=12,
                ),
                Panel(
                    title="KV pool in use",
                    about="Blocks of running sequences.",
                    queries=[
                        Query(
                            share(gauge("headrace_kv_blocks", 'state="used"'), gauge("headrace_kv_pool_blocks")), "used"
                        )
                    ],
                    unit="percentunit",
                    limit=1.0,
                    width=12,
                ),
                Panel(
                    title="Preemptions per second",
                    about="Work that is done twice, or copied away and back.",
                    queries=[Query(per_second("headrace_preemptions_total"), "preemptions")],
                    unit="ops",
                    width=12,
                ),
            ],
        ),
    ],
)
