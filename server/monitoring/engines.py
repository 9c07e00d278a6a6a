"""The engines beside each other: who works, how much, how long its steps take, and who had to be started again.

A server with one engine gives its series no label `engine`; then there is one line, with the server's name.
"""

from server.monitoring.panels import INSTANCE, Dashboard, Panel, PanelRow, Query, Variable
from server.monitoring.promql import gauge, mean, per_second, quantile, select, share

_BY = "instance, engine"
_NAME = "{{engine}} {{instance}}"
_CHOSEN = 'engine=~"$engine"'


def _now(series: str) -> Query:
    return Query(gauge(series, _CHOSEN, by=_BY), _NAME)


def _rate(counter: str) -> Query:
    return Query(per_second(counter, _CHOSEN, by=_BY), _NAME)


_STATE = PanelRow(
    "State",
    [
        Panel(
            title="Works",
            about="1 while it is ready and nothing hangs, drained or not.",
            queries=[_now("headrace_engine_up")],
            kind="stat",
            width=8,
            height=5,
            warn=1.0,
            bad=1.0,
        ),
        Panel(
            title="Started again",
            about="Within the last hour: after a death, or as asked.",
            queries=[
                Query(f"sum by ({_BY}) (increase({select('headrace_engine_restarts_total', _CHOSEN)}[1h]))", _NAME),
            ],
            kind="stat",
            width=8,
            height=5,
            warn=1.0,
            bad=3.0,
        ),
        Panel(
            title="Last start, by phase",
            about="How long each phase of the engine's last start took.",
            queries=[
                Query(gauge("headrace_startup_phase_seconds", _CHOSEN, by=f"{_BY}, phase"), "{{engine}} {{phase}}"),
                Query(gauge("headrace_engine_start_seconds", _CHOSEN, by=_BY), "{{engine}} until it was ready"),
            ],
            kind="bargauge",
            unit="s",
            width=8,
            height=5,
        ),
        Panel(
            title="What runs",
            about="Version, and the device of each engine. Two versions: an update is under way, or was forgotten.",
            queries=[
                Query(
                    f"sum by ({_BY}, version, python, device) ({select('headrace_build_info', _CHOSEN)})",
                    "{{version}}, Python {{python}} on {{device}}: {{engine}}",
                ),
            ],
            kind="stat",
            width=24,
            height=3,
            named=True,
        ),
        Panel(
            title="Canary",
            about="Checks with --canary in the last hour, by what came of them. `differs` and `failed`: what is computed or kept "
            "is not what it was at the start.",
            queries=[
                Query(
                    f"sum by (path, outcome) (increase({select('headrace_canary_checks_total')}[1h]))",
                    "{{path}} {{outcome}}",
                ),
            ],
            kind="bargauge",
            width=12,
            height=5,
        ),
        Panel(
            title="Taken over",
            about="Sequences that it went on with because the engine that had them ended, per second.",
            queries=[_rate("headrace_replayed_requests_total")],
            unit="reqps",
        ),
        Panel(title="Running", about="Sequences in its steps.", queries=[_now("headrace_sequences_running")]),
        Panel(title="Waiting", about="Sequences in its queue.", queries=[_now("headrace_sequences_waiting")]),
    ],
)

_STEPS = PanelRow(
    "Steps",
    [
        Panel(title="Steps per second", about="0 while nothing is asked.", queries=[_rate("headrace_steps_total")]),
        Panel(
            title="Duration of a step, p99",
            about="How long running streams wait for each other's work; a prompt's chunks make it longer.",
            queries=[Query(quantile(0.99, "headrace_step_seconds", _CHOSEN, by=_BY), _NAME)],
            unit="s",
        ),
        Panel(
            title="Tokens of a step",
            about="Mean: tokens decoded and tokens of prompts. The budget is `max_step_tokens`.",
            queries=[Query(mean("headrace_step_tokens", _CHOSEN, by=_BY), _NAME)],
        ),
        Panel(
            title="Tokens guessed ahead",
            about="Guesses that were right as a share of generated tokens (what steps were spared), and of all guesses.",
            queries=[
                Query(
                    share(
                        per_second("headrace_speculation_accepted_tokens_total", _CHOSEN, by=_BY),
                        per_second("headrace_generation_tokens_total", _CHOSEN, by=_BY),
                    ),
                    f"{_NAME} of tokens",
                ),
                Query(
                    share(
                        per_second("headrace_speculation_accepted_tokens_total", _CHOSEN, by=_BY),
                        per_second("headrace_speculation_proposed_tokens_total", _CHOSEN, by=_BY),
                    ),
                    f"{_NAME} of guesses",
                ),
            ],
            unit="percentunit",
            width=12,
            limit=1.0,
        ),
        Panel(
            title="Steps on CUDA graphs",
            about="Share of all steps. On a GPU that decodes it nears 100 %; failed recordings are tried again.",
            queries=[
                Query(
                    share(
                        per_second("headrace_graph_steps_total", _CHOSEN, by=_BY),
                        per_second("headrace_steps_total", _CHOSEN, by=_BY),
                    ),
                    _NAME,
                )
            ],
            unit="percentunit",
            width=12,
            limit=1.0,
        ),
        Panel(
            title="Recordings of CUDA graphs",
            about="Since the server started, by what became of them.",
            queries=[
                Query(
                    gauge("headrace_graph_recordings_total", _CHOSEN, by=f"{_BY}, outcome"), f"{_NAME} {{{{outcome}}}}"
                )
            ],
            width=12,
        ),
    ],
)

_WORK = PanelRow(
    "Work",
    [
        Panel(
            title="Tokens generated per second",
            about="Where the lines differ, the router sends more to one, or one is slower.",
            queries=[_rate("headrace_generation_tokens_total")],
        ),
        Panel(
            title="Prompt tokens per second",
            about="With and without those found in the cache.",
            queries=[_rate("headrace_prompt_tokens_total")],
        ),
        Panel(
            title="Found in the cache",
            about="Share of prompt tokens. The router sends prompts to the engine that has the beginning.",
            queries=[
                Query(
                    share(
                        per_second("headrace_prefix_hit_tokens_total", _CHOSEN, by=_BY),
                        per_second("headrace_prefix_query_tokens_total", _CHOSEN, by=_BY),
                    ),
                    _NAME,
                )
            ],
            unit="percentunit",
            limit=1.0,
        ),
        Panel(
            title="KV pool in use",
            about="Blocks of running sequences.",
            queries=[
                Query(
                    share(
                        gauge("headrace_kv_blocks", 'state="used"', _CHOSEN, by=_BY),
                        gauge("headrace_kv_pool_blocks", _CHOSEN, by=_BY),
                    ),
                    _NAME,
                )
            ],
            unit="percentunit",
            limit=1.0,
        ),
        Panel(
            title="Preemptions per second",
            about="Sequences that gave up their blocks to others.",
            queries=[_rate("headrace_preemptions_total")],
        ),
        Panel(
            title="Processors in use",
            about="Cores that it keeps busy.",
            queries=[_rate("headrace_engine_process_cpu_seconds_total")],
        ),
        Panel(
            title="Memory in use",
            about="Resident memory of its process.",
            queries=[_now("headrace_engine_process_resident_memory_bytes")],
            unit="bytes",
        ),
    ],
)

_HAND_OVERS = PanelRow(
    "Roles and hand-overs",
    [
        Panel(
            title="Roles",
            about="What each engine is meant for; `mixed` for both.",
            queries=[
                Query(f"sum by ({_BY}, role) ({select('headrace_engine_role', _CHOSEN)} == 1)", "{{engine}}: {{role}}"),
            ],
            kind="stat",
            width=6,
            named=True,
        ),
        Panel(
            title="Roles changed, in an hour",
            about="By the server, for the phase that was behind (`--role-switching`). Many, to and fro: the bounds cannot be "
            "kept with these engines.",
            queries=[
                Query(
                    f"sum by ({_BY}, role, behind) (increase({select('headrace_role_switches_total', _CHOSEN)}[1h]))",
                    "{{engine}} to {{role}}, as {{behind}} was behind",
                ),
            ],
            width=6,
        ),
        Panel(
            title="Hand-overs per second",
            about="What came of sequences whose prompt a prefill engine computed. Many that `computed`: transfers are late.",
            queries=[Query(per_second("headrace_hand_overs_total", by="outcome"), "{{outcome}}")],
            unit="reqps",
            width=12,
            stacked=True,
        ),
        Panel(
            title="From the first token to the next",
            about="Where another engine went on: the pause that a hand-over costs.",
            queries=[Query(quantile(q, "headrace_hand_over_seconds"), f"p{100 * q:g}") for q in (0.5, 0.99)],
            unit="s",
            width=6,
        ),
        Panel(
            title="Tokens handed over per second",
            about="By how the engine that goes on came by their KV.",
            queries=[Query(per_second("headrace_hand_over_tokens_total", by="how"), "{{how}}")],
            width=6,
            stacked=True,
        ),
    ],
)

ENGINES = Dashboard(
    name="engines",
    title="Engines",
    about="The engines of a server beside each other.",
    rows=[_STATE, _STEPS, _WORK, _HAND_OVERS],
    variables=[INSTANCE, Variable(name="engine", title="engine", series="headrace_engine_up", label="engine")],
)
