"""The page that a person on call opens first: whether it works, whether it is quick, and if not, where the time goes."""

from server.monitoring.batches import BATCHES
from server.monitoring.panels import INSTANCE, Dashboard, Panel, PanelRow, Query, Variable
from server.monitoring.promql import gauge, heat, mean, per_second, quantile, select, share
from server.telemetry.declared import FROM_1_MS

_KV_USED = share(gauge("headrace_kv_blocks", 'state="used"'), gauge("headrace_kv_pool_blocks"))
_ENDED = per_second("headrace_sequences_finished_total")
_ERRORS = per_second("headrace_request_errors_total")

_NOW = PanelRow(
    "Now",
    [
        Panel(
            title="Engines that work",
            about="Red where one does not: it starts, hangs, or was given up.",
            queries=[
                Query(share(gauge("headrace_engine_up"), f"count({select('headrace_engine_up')})"), "working"),
            ],
            kind="stat",
            unit="percentunit",
            width=3,
            height=4,
            warn=1.0,
            bad=0.99,
        ),
        Panel(
            title="Alerts",
            about="Alerts of configs/prometheus/alerts.yml that fire.",
            queries=[Query('count(ALERTS{alertname=~"Headrace.*", alertstate="firing"}) or vector(0)', "firing")],
            kind="stat",
            width=3,
            height=4,
            bad=1,
        ),
        Panel(
            title="Sequences per second",
            about="Sequences that ended, whatever the reason. A request with `n` or several prompts has several.",
            queries=[Query(_ENDED, "ended")],
            kind="stat",
            unit="reqps",
            width=3,
            height=4,
        ),
        Panel(
            title="Tokens per second",
            about="Tokens generated.",
            queries=[Query(per_second("headrace_generation_tokens_total"), "generated")],
            kind="stat",
            width=3,
            height=4,
        ),
        Panel(
            title="First token, p95",
            about="95 of 100 sequences had their first token sooner.",
            queries=[Query(quantile(0.95, "headrace_time_to_first_token_seconds"), "p95")],
            kind="stat",
            unit="s",
            width=3,
            height=4,
            warn=1.0,
            bad=2.5,
        ),
        Panel(
            title="Errors",
            about="Requests answered with an error, of all sequences that ended and all such requests.",
            queries=[Query(share(_ERRORS, f"({_ERRORS} + {_ENDED})"), "errors")],
            kind="stat",
            unit="percentunit",
            width=3,
            height=4,
            warn=0.01,
            bad=0.05,
        ),
        Panel(
            title="Waiting",
            about="Sequences that wait for a place. Some at a peak are normal; a number that only grows is not.",
            queries=[Query(gauge("headrace_sequences_waiting"), "waiting")],
            kind="stat",
            width=3,
            height=4,
            warn=16,
            bad=256,
        ),
        Panel(
            title="KV pool in use",
            about="Blocks of running sequences. Near 100 % newcomers wait, and then running ones are preempted.",
            queries=[Query(_KV_USED, "used")],
            kind="stat",
            unit="percentunit",
            width=3,
            height=4,
            warn=0.9,
            bad=0.98,
            limit=1.0,
        ),
    ],
)

_REQUESTS = PanelRow(
    "Requests",
    [
        Panel(
            title="Ended, by reason",
            about="`stop` and `length` are complete answers; `abort` are mostly clients that left.",
            queries=[Query(per_second("headrace_sequences_finished_total", by="reason"), "{{reason}}")],
            unit="reqps",
            width=6,
            stacked=True,
        ),
        Panel(
            title="Goodput",
            about="Sequences whose first token came in time, and whose tokens came in time (bounds are chosen at the top).",
            queries=[
                Query(per_second("headrace_time_to_first_token_seconds_bucket", 'le="$ttft"'), "first token in time"),
                Query(per_second("headrace_time_per_output_token_seconds_bucket", 'le="$tpot"'), "tokens in time"),
                Query(_ENDED, "all that ended"),
            ],
            unit="reqps",
            width=6,
        ),
        Panel(
            title="Errors, by code",
            about="By the `code` of the error. docs/api.md says what each means, and whose fault it is.",
            queries=[Query(f"{per_second('headrace_request_errors_total', by='code')} > 0", "{{code}}")],
            unit="reqps",
            width=6,
            stacked=True,
        ),
        Panel(
            title="Running and waiting",
            about="Sequences in the engines.",
            queries=[
                Query(gauge("headrace_sequences_running"), "running"),
                Query(gauge("headrace_sequences_waiting"), "waiting"),
            ],
            width=6,
            stacked=True,
        ),
        Panel(
            title="Deadlines",
            about="Sequences that were to meet one: `kept`, `broken`, `refused` at once, or `abandoned` by the client.",
            queries=[Query(per_second("headrace_deadlines_total", by="outcome"), "{{outcome}}")],
            unit="reqps",
            width=12,
            height=6,
            stacked=True,
        ),
        Panel(
            title="Promises kept",
            about="Of the deadlines that were promised. Below 99 %: steps take longer than the server has learnt to expect.",
            queries=[
                Query(
                    share(
                        per_second("headrace_deadlines_total", 'outcome="kept"'),
                        per_second("headrace_deadlines_total", 'outcome=~"kept|broken"'),
                    ),
                    "kept",
                )
            ],
            unit="percentunit",
            width=12,
            height=6,
            limit=1.0,
        ),
    ],
)


def _quantiles(title: str, histogram: str, about: str) -> Panel:
    queries = [Query(quantile(q, histogram), f"p{100 * q:g}") for q in (0.5, 0.95, 0.99)]
    return Panel(title=title, about=about, queries=queries, unit="s", width=6)


def _heat_map(title: str, histogram: str) -> Panel:
    about = (
        "Each column is a moment, each row a bucket: two bands are two kinds of request, which a quantile would hide."
    )
    return Panel(
        title=title, about=about, queries=[Query(heat(histogram), "{{le}}")], kind="heatmap", unit="s", width=8
    )


_LATENCY = PanelRow(
    "Latency",
    [
        _quantiles("In the queue", "headrace_queue_time_seconds", "Before anything of it is computed."),
        _quantiles("First token (TTFT)", "headrace_time_to_first_token_seconds", "What a reader waits for."),
        _quantiles("Between tokens (ITL)", "headrace_inter_token_latency_seconds", "The pauses that a reader sees."),
        _quantiles("Whole answer", "headrace_request_seconds", "Depends on how long answers are; compare with tokens."),
        _heat_map("First token (TTFT)", "headrace_time_to_first_token_seconds"),
        _heat_map("Between tokens (ITL)", "headrace_inter_token_latency_seconds"),
        _heat_map("Whole answer", "headrace_request_seconds"),
    ],
)


def _open_files(process: str, by: str) -> str:
    names = (f"headrace_{process}_process_{which}_fds" for which in ("open", "max"))
    return share(*(f"max by ({by}) ({select(name)})" for name in names))


_WORK = PanelRow(
    "Work",
    [
        Panel(
            title="Tokens per second",
            about="What came in, what of it was found in the cache, and what went out.",
            queries=[
                Query(per_second("headrace_prompt_tokens_total"), "prompt"),
                Query(per_second("headrace_prefix_hit_tokens_total"), "prompt, cached"),
                Query(per_second("headrace_generation_tokens_total"), "generated"),
            ],
            width=6,
        ),
        Panel(
            title="Lengths",
            about="Mean tokens of a sequence. When these grow, latencies do.",
            queries=[
                Query(mean("headrace_request_prompt_tokens"), "prompt"),
                Query(mean("headrace_request_generation_tokens"), "answer"),
            ],
            width=6,
        ),
        Panel(
            title="Processors in use",
            about="Cores that the HTTP process and the engines keep busy. An HTTP process near 1 is the bottleneck.",
            queries=[
                Query(per_second("headrace_server_process_cpu_seconds_total"), "HTTP process"),
                Query(per_second("headrace_engine_process_cpu_seconds_total"), "engines"),
            ],
            width=6,
        ),
        Panel(
            title="Memory in use",
            about="Resident memory of the processes; KV pool and host tier included.",
            queries=[
                Query(gauge("headrace_server_process_resident_memory_bytes"), "HTTP process"),
                Query(gauge("headrace_engine_process_resident_memory_bytes"), "engines"),
                Query(gauge("headrace_keeper_process_resident_memory_bytes"), "keeper of tiers"),
            ],
            unit="bytes",
            width=6,
            stacked=True,
        ),
        Panel(
            title="Up for",
            about="Since the HTTP process was started.",
            queries=[
                Query(
                    f"time() - max by (instance) ({select('headrace_server_process_start_time_seconds')})",
                    "{{instance}}",
                )
            ],
            kind="stat",
            unit="s",
            width=6,
            height=6,
        ),
        Panel(
            title="Open files",
            about="Part of the descriptors that a process may have. Each connection is one; near 100 % new ones are refused.",
            queries=[
                Query(_open_files("server", "instance"), "HTTP process {{instance}}"),
                Query(_open_files("engine", "instance, engine"), "engine {{engine}} {{instance}}"),
            ],
            unit="percentunit",
            width=18,
            height=6,
            limit=1.0,
        ),
    ],
)

_FRONTS = PanelRow(
    "Several HTTP processes",
    [
        Panel(
            title="Connections",
            about="What each of several HTTP processes has (`--http-processes`); none of this with one.",
            queries=[Query(gauge("headrace_http_connections_open", by="process"), "{{process}}")],
        ),
        Panel(
            title="Processors",
            about="Cores that each keeps busy. Near 1 it has no more to give.",
            queries=[Query(per_second("headrace_http_process_cpu_seconds_total", by="process"), "{{process}}")],
        ),
        Panel(
            title="Up, and started again",
            about="1 while it takes connections; and how often it was started again within the last hour.",
            queries=[
                Query(gauge("headrace_http_process_up", by="process"), "{{process}} is up"),
                Query(
                    f"sum by (process) (increase({select('headrace_http_process_restarts_total')}[1h]))",
                    "{{process}} started again",
                ),
            ],
        ),
    ],
)

_STREAMS = PanelRow(
    "Resumable streams",
    [
        Panel(
            title="Kept",
            about="Open ones, and those that have ended of late. `--resume-seconds` says for how long.",
            queries=[Query(gauge("headrace_resumable_streams"), "streams")],
        ),
        Panel(
            title="Memory",
            about="Near `--resume-total-bytes` new ones are refused with 429.",
            queries=[Query(gauge("headrace_resumable_stream_bytes"), "bytes")],
            unit="bytes",
        ),
        Panel(
            title="Gone on with, and ended",
            about="Clients that came back, and why streams are kept no longer. `overrun`: more waited for a client than is kept.",
            queries=[
                Query(per_second("headrace_streams_resumed_total"), "gone on with"),
                Query(per_second("headrace_resumable_streams_ended_total", by="end"), "{{end}}"),
            ],
            unit="reqps",
        ),
    ],
)


def _by_operation(title: str, histogram: str, about: str) -> Panel:
    expression = quantile(0.95, f"gen_ai_server_{histogram}_seconds", by="gen_ai_operation_name")
    query = Query(expression, "p95 {{gen_ai_operation_name}}", exemplars=True)
    return Panel(title=title, about=about, queries=[query], unit="s")


_OPERATIONS = PanelRow(
    "By operation, with traces",
    [
        _by_operation(
            "Whole request", "request_duration", "With traces on, each point is a request: it leads to its trace."
        ),
        _by_operation(
            "First token of an operation", "time_to_first_token", "Likewise, from received to the first token."
        ),
        _by_operation("Time per token of an operation", "time_per_output_token", "Likewise, after the first token."),
    ],
)


def _bounds(first: float) -> list[str]:
    """Bounds of buckets to choose from, as Prometheus writes them; the first is what is chosen when the page opens."""
    return [str(first), *(str(bound) for bound in FROM_1_MS if bound != first and 0.01 <= bound <= 60.0)]


OVERVIEW = Dashboard(
    name="overview",
    title="Overview",
    about="Whether it works and how quick it is.",
    rows=[_NOW, _REQUESTS, _LATENCY, _OPERATIONS, _WORK, _STREAMS, _FRONTS, BATCHES],
    variables=[
        INSTANCE,
        Variable(name="ttft", title="first token within, s", values=_bounds(1.0)),
        Variable(name="tpot", title="time per token within, s", values=_bounds(0.1)),
    ],
)
