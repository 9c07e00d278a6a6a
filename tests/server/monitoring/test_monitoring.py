"""The files of configs/prometheus and configs/grafana are what the metrics say, and name nothing that does not exist.

A real Prometheus is asked by `make dashboards-check` (tests/e2e/real_prometheus.py).
"""

import json
import re
from dataclasses import replace

import pytest
import yaml

from server.monitoring import files as monitoring
from server.monitoring import rules
from server.monitoring.catalog import Catalog, UnknownSeriesError, catalog
from server.monitoring.files import DASHBOARDS, files
from server.monitoring.panels import COLUMNS, Panel, PanelRow, Query
from server.monitoring.promql import check, selections
from tests.e2e.dashboards.check import queries
from tests.source_tree import ROOT

CONFIGS = ROOT / "configs"
KNOWN = Catalog(
    labels={
        "a_total": frozenset({"instance", "code"}),
        "b": frozenset({"instance", "engine"}),
        "c_bucket": frozenset({"instance", "le"}),
    },
    help={"b": "What b is."},
)


def test_the_files_are_what_the_metrics_say():
    made = files()
    folders = (CONFIGS / "prometheus", CONFIGS / "grafana")
    there = {str(path.relative_to(CONFIGS)) for folder in folders for path in folder.rglob("*") if path.is_file()}
    assert there - {"prometheus/tests/alerts.yml"} == made.keys()
    assert [name for name in made if (CONFIGS / name).read_text(encoding="utf-8") != made[name]] == [], "make docs"


def names_in_files() -> set[str]:
    """Every series that any of the files names, as text, rule tests included."""
    texts = [*files().values(), (CONFIGS / "prometheus/tests/alerts.yml").read_text(encoding="utf-8")]
    return set(re.findall(r"\bheadrace_\w+", "\n".join(re.sub(r'"(uid|description)": .*', "", text) for text in texts)))


def test_every_series_that_a_file_names_is_a_metric():
    recorded = {part for rule in rules.RECORDINGS for part in re.findall(r"headrace_\w+", rule.name)}
    named = names_in_files() - recorded
    assert len(named) > 40 and not named - catalog().labels.keys()


@pytest.mark.parametrize("gone", ["headrace_engine_up", "headrace_tenant_errors_total", "headrace_kv_blocks"])
def test_a_metric_that_is_renamed_stops_the_writing(gone, monkeypatch):
    full = catalog()
    left = Catalog({name: labels for name, labels in full.labels.items() if name != gone}, full.help)
    monkeypatch.setattr(monitoring, "catalog", lambda: left)
    with pytest.raises(UnknownSeriesError, match=gone):
        files()


def test_a_label_that_is_renamed_stops_the_writing(monkeypatch):
    full = catalog()
    changed = {**full.labels, "headrace_kv_tier_up": frozenset({"instance", "job", "engine", "level"})}
    monkeypatch.setattr(monitoring, "catalog", lambda: Catalog(changed, full.help))
    with pytest.raises(UnknownSeriesError, match="headrace_kv_tier_up has no label tier"):
        files()


@pytest.mark.parametrize(
    ("expression", "labels"),
    [
        ("b", {"instance", "engine"}),
        ("sum(b)", {"instance", "engine"}),
        ("sum by (engine) (b)", {"engine"}),
        ('sum by (code) (rate(a_total{code=~"x|y", instance=~"$instance"}[$__rate_interval]))', {"code"}),
        ("histogram_quantile(0.9, sum by (le) (rate(c_bucket[5m])))", {"le"}),
        ("max by (instance) (sum by (instance, engine) (b))", {"instance"}),
        ("sum by (instance) (b) / (sum by (instance) (rate(a_total[1h])) > 0) or vector(0)", {"instance"}),
        ('b and on (instance) a_total{code="sum by (x) (b)"} offset 5m', {"instance", "engine", "code"}),
    ],
)
def test_what_an_expression_leaves_is_known(expression, labels):
    assert check(expression, KNOWN) >= labels if "offset" in expression else check(expression, KNOWN) == labels


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ("d", "no series d"),
        ("rate(a[5m])", "no series a"),
        ('b{tier="x"}', "b has no label tier"),
        ("sum by (tier) (b)", "b has no label tier"),
        ("sum by (engine) (b) + sum by (engine) (rate(a_total[5m]))", "a_total has no label engine"),
        ("sum by (le) (max by (instance) (c_bucket) / b)", "b has no label le"),
        ("1 + 2", "no series"),
        ("sum(b) by (engine)", "which can be checked"),
    ],
)
def test_what_does_not_exist_is_found(expression, said):
    with pytest.raises(UnknownSeriesError, match=re.escape(said)):
        check(expression, KNOWN)


def test_a_legend_with_a_label_that_the_result_lacks_is_found():
    page = replace(
        DASHBOARDS[0],
        rows=[PanelRow("r", [Panel(title="t", about="a", queries=[Query("sum by (engine) (b)", "{{ instance }}")])])],
    )
    with pytest.raises(UnknownSeriesError, match="no label instance in the result"):
        page.json(KNOWN)


def pages() -> dict[str, dict]:
    return {name: json.loads(text) for name, text in files().items() if name.endswith(".json")}


def panels(page: dict) -> list[dict]:
    return [inner for panel in page["panels"] for inner in (panel, *panel.get("panels", ()))]


def test_panels_stand_beside_each_other_without_overlap():
    for name, page in pages().items():
        numbers = [panel["id"] for panel in panels(page)]
        assert numbers == list(range(1, len(numbers) + 1)), name
        taken = set()
        for panel in panels(page):
            at = panel["gridPos"]
            cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
            assert at["x"] + at["w"] <= COLUMNS and not cells & taken, f"{name}: {panel['title']}"
            taken |= cells


def test_every_panel_says_what_it_shows_in_the_metrics_own_words():
    known = catalog()
    for page in pages().values():
        assert page["uid"] in ("headrace-overview", *(f"headrace-{each.name}" for each in DASHBOARDS))
        for panel in panels(page):
            for target in panel.get("targets", ()):
                for name, _, _ in selections(target["expr"]):
                    assert name == "ALERTS" or f"`{name}`: {known.help[name]}" in panel["description"]


UNSHOWN = {
    "headrace_server_process_virtual_memory_bytes": "resident memory is what a machine runs out of",
    "headrace_engine_process_virtual_memory_bytes": "the same",
    "headrace_keeper_process_virtual_memory_bytes": "the same",
    "headrace_engine_process_start_time_seconds": "Engines show how long it took, and how often it was started again",
    "headrace_keeper_process_start_time_seconds": "the KV cache page shows how often it was started again",
    "headrace_keeper_process_open_fds": "it has one connection for each engine, and a file for each segment of the disk tier",
    "headrace_keeper_process_max_fds": "the same",
}


def test_every_metric_is_in_a_panel_or_has_a_reason_why_not():
    shown = {name for page in DASHBOARDS for panel in page.panels for name in named(panel)}
    every = {family.name: {sample.name for sample in family.samples} for family in monitoring_families()}
    blank = {name for name, series in every.items() if not series & shown}
    assert blank == UNSHOWN.keys()


def named(panel: Panel) -> set[str]:
    return {name for query in panel.queries for name, _, _ in selections(query.expression)}


def test_the_real_check_chooses_a_value_for_every_variable():
    asked = [expression for _, _, _, expression in queries()]
    assert len(asked) > 90 and not [expression for expression in asked if "$" in expression]


def test_bounds_of_objectives_are_bounds_of_buckets():
    """Else the rate of `le="..."` is empty, for ever and in silence."""
    known = {
        (sample.name, sample.labels["le"])
        for family in monitoring_families()
        for sample in family.samples
        if "le" in sample.labels
    }
    chosen = {each.name: each.values for each in DASHBOARDS[0].variables}
    for name in ("time_to_first_token", "time_per_output_token"):
        bounds = {bound for series, bound in known if series == f"headrace_{name}_seconds_bucket"}
        assert str(rules.TTFT_BOUND) in bounds
        assert set(chosen["ttft"]) | set(chosen["tpot"]) <= bounds


def monitoring_families():
    from server.telemetry.metrics import every_family

    return every_family(["engine"])


def test_alerts_name_labels_that_their_measures_have():
    known = catalog()
    known = known.with_rules(rules.recorded(known))
    for alert in rules.ALERTS:
        has = frozenset().union(*(check(measure.expression, known) for measure in alert.measures))
        named = set(re.findall(r"\$labels\.(\w+)", alert.summary + alert.what_to_do))
        assert named <= has, alert.name


def test_every_alert_has_a_rule_test():
    tested = yaml.safe_load((CONFIGS / "prometheus/tests/alerts.yml").read_text(encoding="utf-8"))
    fired = {
        case["alertname"]
        for group in tested["tests"]
        for case in group.get("alert_rule_test", ())
        if case["exp_alerts"]
    }
    assert fired == {alert.name for alert in rules.ALERTS}


def test_a_matcher_of_our_errors_has_no_code_of_a_clients():
    (rule,) = (rule for rule in rules.RECORDINGS if "failed" in rule.name)
    codes = set(re.search(r'code=~"([^"]*)"', rule.expression).group(1).split("|"))
    assert {"internal_error", "engine_died", "unavailable"} <= codes
    assert not codes & {"queue_full", "invalid_value", "not_found"}
