"""Who uses the server, how much, and how long each waits. A tenant is an API key, by the name the operator gave it."""

from server.monitoring.panels import INSTANCE, Dashboard, Panel, PanelRow, Query, Variable
from server.monitoring.promql import gauge, per_second, quantile, select, share

_NAME = "{{tenant}}"
_CHOSEN = 'tenant=~"$tenant"'


def _rate(counter: str) -> list[Query]:
    return [Query(per_second(counter, _CHOSEN, by="tenant"), _NAME)]


_USE = PanelRow(
    "Use",
    [
        Panel(
            title="Sequences per second",
            about="Sequences that ended.",
            queries=_rate("headrace_tenant_sequences_total"),
            unit="reqps",
            stacked=True,
        ),
        Panel(
            title="Tokens generated per second",
            about="What each tenant was given.",
            queries=_rate("headrace_tenant_generation_tokens_total"),
            stacked=True,
        ),
        Panel(
            title="Prompt tokens per second",
            about="What each tenant sent.",
            queries=_rate("headrace_tenant_prompt_tokens_total"),
            stacked=True,
        ),
        Panel(
            title="Found in the cache",
            about="Share of a tenant's prompt tokens that need not be computed.",
            queries=[
                Query(
                    share(
                        per_second("headrace_tenant_cached_tokens_total", _CHOSEN, by="tenant"),
                        per_second("headrace_tenant_prompt_tokens_total", _CHOSEN, by="tenant"),
                    ),
                    _NAME,
                )
            ],
            unit="percentunit",
            limit=1.0,
        ),
        Panel(
            title="Tokens in an hour",
            about="Prompt and answer, of the last hour.",
            queries=[
                Query(
                    f"sum by (tenant) (increase({select('headrace_tenant_prompt_tokens_total', _CHOSEN)}[1h])"
                    f" + increase({select('headrace_tenant_generation_tokens_total', _CHOSEN)}[1h]))",
                    _NAME,
                )
            ],
            kind="bargauge",
        ),
        Panel(
            title="Errors per second",
            about="Requests answered with an error. One tenant alone: look at what it sends.",
            queries=_rate("headrace_tenant_errors_total"),
            unit="reqps",
            stacked=True,
        ),
    ],
)

_SHARES = PanelRow(
    "Shares and waits",
    [
        Panel(
            title="Open sequences",
            about="Waiting and running.",
            queries=[Query(gauge("headrace_tenant_sequences_open", _CHOSEN, by="tenant"), _NAME)],
            stacked=True,
        ),
        Panel(
            title="In the queue, p95",
            about="With `--scheduling fair`, who was served least comes first: waits follow use.",
            queries=[Query(quantile(0.95, "headrace_tenant_queue_seconds", _CHOSEN, by="tenant"), _NAME)],
            unit="s",
        ),
        Panel(
            title="Share of the tokens, and share that was given",
            about="A tenant's part of all tokens generated, and its part of all weights (`--tenant-weights`). "
            "They agree only where all tenants ask for more than their share.",
            queries=[
                Query(
                    f"{per_second('headrace_tenant_generation_tokens_total', _CHOSEN, by='tenant')}"
                    f" / scalar({per_second('headrace_tenant_generation_tokens_total')})",
                    "{{tenant}} has",
                ),
                Query(
                    f"max by (tenant) ({select('headrace_tenant_weight', _CHOSEN)})"
                    f" / scalar(sum(max by (tenant) ({select('headrace_tenant_weight')})))",
                    "{{tenant}} was given",
                ),
            ],
            unit="percentunit",
            limit=1.0,
        ),
    ],
)

_KEYS = PanelRow(
    "Keys, where what each uses is counted",
    [
        Panel(
            title="Tokens of a key per second",
            about="Prompts and answers. A tenant may have several keys.",
            queries=[
                Query(
                    f"{per_second('headrace_key_prompt_tokens_total', by='key')}"
                    f" + {per_second('headrace_key_generation_tokens_total', by='key')}",
                    "{{key}}",
                )
            ],
            stacked=True,
        ),
        Panel(
            title="Found in the cache for a key",
            about="Share of its prompt tokens.",
            queries=[
                Query(
                    share(
                        per_second("headrace_key_cached_tokens_total", by="key"),
                        per_second("headrace_key_prompt_tokens_total", by="key"),
                    ),
                    "{{key}}",
                )
            ],
            unit="percentunit",
            limit=1.0,
        ),
        Panel(
            title="Requests of a key per second",
            about="And those of them that were answered with an error.",
            queries=[
                Query(per_second("headrace_key_requests_total", by="key"), "{{key}}"),
                Query(f"{per_second('headrace_key_errors_total', by='key')} > 0", "{{key}}, errors"),
            ],
            unit="reqps",
        ),
        Panel(
            title="Requests over a limit per second",
            about="Answered 429 for a limit that the file of keys gives to the key. Nobody else waits for them.",
            queries=[Query(per_second("headrace_key_limited_total", by="key, limit"), "{{key}}: {{limit}}")],
            unit="reqps",
            stacked=True,
        ),
        Panel(
            title="Open requests of a key",
            about="What `concurrent_requests` bounds.",
            queries=[Query(gauge("headrace_key_requests_open", by="key"), "{{key}}")],
        ),
        Panel(
            title="The file of keys",
            about="Keys in use, changes that were read, and writes of what they used that failed (they are tried again). "
            "A file that was refused leaves the keys as they were.",
            queries=[
                Query(gauge("headrace_api_keys"), "keys"),
                Query(f"1 - {gauge('headrace_api_keys_file_up')} > 0", "the file is refused"),
                Query(
                    f"sum by (outcome) (increase({select('headrace_api_keys_reads_total')}[1h]))",
                    "{{outcome}} in an hour",
                ),
                Query(
                    f"sum(increase({select('headrace_usage_write_failures_total')}[1h]))", "failed writes in an hour"
                ),
            ],
        ),
    ],
)

TENANTS = Dashboard(
    name="tenants",
    title="Tenants",
    about="Use, shares and waits, by API key.",
    rows=[_USE, _SHARES, _KEYS],
    variables=[INSTANCE, Variable(name="tenant", title="tenant", series="headrace_tenant_weight", label="tenant")],
)
