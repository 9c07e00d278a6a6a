"""What a reader must know before he believes a run's figures, besides what makes it invalid."""

from math import inf

from loadtest.report.records import LoadRun

SHAREABLE = (
    "shareable"  # in a run's plan: the share of its prompts' tokens that its requests have from earlier ones of the run
)
FITTED_COSTS = (
    "costs_fitted"  # in a simulated run's plan: whether its hardware's constants were fitted to measured runs
)
UNFITTED = "{} has constants that were not fitted to measured runs: read which is better, not how many milliseconds"
_SLACK = 0.02  # of the prompts' tokens: chat templates and the like


def cautions(run: LoadRun) -> list[str]:
    """A sentence for each."""
    found = [] if run.plan.get(FITTED_COSTS, True) else [UNFITTED.format(run.plan.get("hardware"))]
    cached, shareable = cached_share(run), run.plan.get(SHAREABLE)
    if cached is None or shareable is None or cached <= shareable + _SLACK:
        return found
    return [
        *found,
        f"{cached:.1%} of the prompts was found in the server's cache, and its requests share only {shareable:.1%}: the cache had "
        "texts of an earlier run, so times to the first token are shorter than the load would have them",
    ]


def measured_text(run: LoadRun) -> str:
    """From when to when figures are; empty without warm-up and cool-down."""
    begin, end = run.window
    if run.measured is run:
        return ""
    until = "its end" if end == inf else f"{end:g} s"
    counted = f"{len(run.measured.records):,} of {len(run.records):,} requests"
    return f"measured from {begin:g} s to {until}, without warm-up and cool-down: {counted}"


def failed_share(run: LoadRun) -> float:
    """The share of the requests that have no complete answer though somebody waited for it."""
    awaited = [record for record in run.records if record.awaited]
    return sum(not record.ok for record in awaited) / len(awaited) if awaited else 0.0


def cached_share(run: LoadRun) -> float | None:
    """Cached tokens of the prompts, over complete answers that tell both; None if none does."""
    told = [
        (record.cached_tokens, record.prompt_tokens)
        for record in run.records
        if record.ok and record.cached_tokens is not None and record.prompt_tokens is not None
    ]
    total = sum(prompt for _, prompt in told)
    return sum(cached for cached, _ in told) / total if total else None
