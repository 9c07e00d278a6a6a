"""Asks a real Prometheus for every panel and every alert after a real load: `make dashboards-check`.

Needs the programs prometheus and promtool (Debian: `apt install prometheus`; or PROMETHEUS=FOLDER where they are), npm, and some
two minutes. Not part of CI. None of the expressions may be empty or an error, and each label of a legend must be one of the answer.
Grafana itself is not asked: it draws what Prometheus answers, and the pages fit its own types (`schema.py`).
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

from server.monitoring.catalog import catalog
from server.monitoring.files import DASHBOARDS
from server.monitoring.panels import Panel, Query, legend_labels
from server.monitoring.rules import ALERTS, RECORDINGS, recorded
from tests.e2e.dashboards.real_prometheus import MissingProgramError, RealPrometheus, program
from tests.e2e.dashboards.schema import check_schema
from tests.e2e.dashboards.traffic import FLAGS, KEYS, Traffic, key_file
from tests.e2e.server_process import ServerProcess
from tests.source_tree import ROOT

KEY = next(iter(KEYS.values()))
SETTLE = 4.0  # seconds: scrapes and rules that follow the load
# Counters that the load must have moved, or panels that show nothing but zeros would pass.
MOVED = (
    *("headrace_preemptions_total", "headrace_preemptions_swapped_total", "headrace_prefix_hit_tokens_total"),
    *("headrace_kv_tier_loaded_blocks_total", "headrace_kv_tier_saved_blocks_total", "headrace_kv_tier_copies_total"),
    *("headrace_engine_restarts_total", "headrace_replayed_requests_total", "headrace_request_errors_total"),
    *("headrace_hand_overs_total", "headrace_hand_over_tokens_total"),
    *('headrace_keeper_restarts_total{reason="died"}', 'headrace_resumable_streams_ended_total{end="delivered"}'),
    *(f'headrace_deadlines_total{{outcome="{outcome}"}}' for outcome in ("kept", "refused")),
    *(
        f'headrace_tenant_{name}_total{{tenant="{tenant}"}}'
        for tenant in KEYS
        for name in ("generation_tokens", "errors")
    ),
)
CHOSEN = {"$__rate_interval": "1m", "$__interval": "1m", "$instance": ".*", "$engine": ".*", "$tenant": ".*"}


@dataclass(frozen=True, slots=True)
class Finding:
    """What Prometheus had for one expression. `trouble`: why that is not enough."""

    where: str
    what: str
    expression: str
    series: int
    trouble: str = ""


def chosen(expression: str, variables: Sequence[object]) -> str:
    """The expression with what a page chooses when it is opened."""
    first = {f"${each.name}": each.values[0] for each in variables if each.values}
    for name, value in (CHOSEN | first).items():
        expression = expression.replace(name, value)
    return expression


def asked(
    prometheus: RealPrometheus, where: str, what: str, expression: str, seconds: float, legend: str = ""
) -> Finding:
    """Ask for an expression: over the last seconds, or now where that is 0."""
    try:
        found = prometheus.lately(expression, seconds) if seconds else prometheus.now(expression)
    except ValueError as error:
        return Finding(where, what, expression, 0, str(error))
    missing = [label for label in legend_labels(legend) if not any(one.get(label) for one in found)]
    trouble = "empty" if not found else f"no label {', '.join(missing)}" if missing else ""
    return Finding(where, what, expression, len(found), trouble)


def queries() -> Iterator[tuple[str, Panel, Query, str]]:
    for page in DASHBOARDS:
        for panel in page.panels:
            for query in panel.queries:
                yield page.title, panel, query, chosen(query.expression, page.variables)


def findings(prometheus: RealPrometheus, seconds: float) -> Iterator[Finding]:
    """Of every panel, variable, rule and alert, and of the scrape itself."""
    yield from pages(prometheus, seconds)
    yield from rules(prometheus, seconds)
    for counter in MOVED:
        yield asked(prometheus, "load", "has moved it", f"{counter} > 0", seconds)
    for name in sorted(prometheus.label_values("__name__", '{job="headrace"}') - known_series()):
        yield Finding("scrape", "unknown series", name, 1, "unknown")
    for target in prometheus.targets():
        if target["health"] != "up":
            yield Finding("scrape", target["scrapeUrl"], "", 0, target["lastError"])


def pages(prometheus: RealPrometheus, seconds: float) -> Iterator[Finding]:
    for page, panel, query, expression in queries():
        over = 0.0 if panel.kind == "bargauge" else seconds
        yield asked(prometheus, page, panel.title, expression, over, query.legend)
    for page in DASHBOARDS:
        for variable in page.variables:
            if variable.series:
                values = prometheus.label_values(variable.label, variable.series)
                expression = f"label_values({variable.series}, {variable.label})"
                yield Finding(page.title, variable.title, expression, len(values), "" if values else "empty")


def rules(prometheus: RealPrometheus, seconds: float) -> Iterator[Finding]:
    for rule in RECORDINGS:
        yield asked(prometheus, "rules", rule.name, rule.name, seconds)
    for alert in ALERTS:
        for measure in alert.measures:
            yield asked(prometheus, "alerts", alert.name, measure.expression, seconds)
    for rule in prometheus.rules():
        if rule["health"] != "ok":
            yield Finding("rules", rule["name"], rule["query"], 0, rule.get("lastError") or rule["health"])


def known_series() -> set[str]:
    """What the files may name, and what Prometheus notes about each scrape and each alert."""
    known = catalog()
    own = {
        "up",
        "ALERTS",
        "ALERTS_FOR_STATE",
        "scrape_duration_seconds",
        "scrape_samples_scraped",
        "scrape_series_added",
    }
    return own | {"scrape_samples_post_metric_relabeling"} | known.labels.keys() | recorded(known).keys()


def promtool() -> None:
    """Rules, their tests and the configuration, as Prometheus' own tool sees them. Raises CalledProcessError."""
    folder, tool = ROOT / "configs" / "prometheus", program("promtool")
    for arguments in (
        ["check", "rules", *(str(folder / name) for name in ("rules.yml", "alerts.yml"))],
        ["check", "config", "--syntax-only", str(folder / "prometheus.yml")],
        ["test", "rules", str(folder / "tests" / "alerts.yml")],
    ):
        subprocess.run([tool, *arguments], check=True)


def lint(url: str) -> None:
    """`promtool check metrics` of what the server says. Raises CalledProcessError."""
    text = httpx.get(f"{url}/metrics", headers={"Authorization": f"Bearer {KEY}"}, timeout=30).content
    subprocess.run([program("promtool"), "check", "metrics"], input=text, check=True)
    print("promtool check metrics: clean")


def watched(seconds: float, folder: Path) -> list[Finding]:
    """Start server and Prometheus, load the server for so long, and ask."""
    keys = key_file(folder)
    server = ServerProcess(*FLAGS, "--kv-disk-path", str(folder / "kv"), "--api-keys", str(keys))
    try:
        prometheus = RealPrometheus(folder, server.url.removeprefix("http://"), KEY)
        try:
            traffic = Traffic(server, keys)
            traffic.run(seconds)
            print(f"{traffic.answered} requests answered, {traffic.refused} refused; one engine killed")
            lint(server.url)
            time.sleep(SETTLE)
            return list(findings(prometheus, seconds))
        finally:
            prometheus.stop()
    finally:
        server.stop()


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 1 if an expression is empty or an error, 2 if a program is missing. Raises CalledProcessError: a file is wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.e2e.dashboards.check", description=__doc__)
    parser.add_argument("--seconds", type=float, default=45.0, help="of load [%(default)g]")
    seconds = parser.parse_args(argv).seconds
    try:
        program("prometheus")
        promtool()
        with tempfile.TemporaryDirectory() as folder:
            check_schema(Path(folder))
    except MissingProgramError as error:
        print(error, file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        found = watched(seconds, Path(folder))
    for each in found:
        print(f"{each.trouble or 'ok':8} {each.series:4} {each.where:10} {each.what:32} {each.expression}")
    bad = [each for each in found if each.trouble]
    print(f"{len(found)} expressions, {len(bad)} of them empty or an error")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
