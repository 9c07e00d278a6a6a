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

TENANTS = Dashboard(
    name="tenants",
    title="Tenants",
    about="Use, shares and waits, by API key.",
    rows=[_USE, _SHARES],
    variables=[INSTANCE, Variable(name="tenant", title="tenant", series="headrace_tenant_weight", label="tenant")],
)
