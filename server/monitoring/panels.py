"""Panels and dashboards as data, and the JSON that Grafana reads (its classic dashboard model, which all of its versions import).

Where a panel stands follows from its width and from what stands before it; ids follow from the order. So a page is a list.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from server.monitoring.catalog import Catalog, UnknownSeriesError
from server.monitoring.promql import check, selections

Kind = Literal["timeseries", "stat", "heatmap", "bargauge"]
SOURCE = {"type": "prometheus", "uid": "$source"}
COLUMNS = 24
_SCHEMA = 39  # of Grafana 10 and later; newer ones convert it as they read it


@dataclass(frozen=True, slots=True)
class Query:
    """One expression of a panel.

    Attributes:
        legend: with labels as `{{label}}`; the check holds these against the expression.
        exemplars: points of single requests are drawn too; each leads to its trace, where there are traces.
    """

    expression: str
    legend: str
    exemplars: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One picture.

    Attributes:
        about: what it shows and what to make of it; Grafana shows it at the panel's corner.
        unit: Grafana's name of it: `s`, `reqps`, `bytes`, `percentunit`, `short`.
        warn, bad: values from which a number or bar is yellow and red; None for never. With `bad` below `warn`, low is bad.
        stacked: series are parts of a whole.
        limit: highest value of the axis, where one is known.
        named: of a `stat`, its legend is shown, and not its number.
    """

    title: str
    about: str
    queries: Sequence[Query]
    kind: Kind = "timeseries"
    unit: str = "short"
    width: int = 8
    height: int = 8
    warn: float | None = None
    bad: float | None = None
    stacked: bool = False
    limit: float | None = None
    named: bool = False


@dataclass(frozen=True, slots=True)
class PanelRow:
    """A heading, and the panels below it."""

    title: str
    panels: Sequence[Panel]
    collapsed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Variable:
    """Something to choose at the top of a page.

    Attributes:
        series, label: the values of this label of this series; each is offered, and all of them.
        values: offered instead, the first of them chosen.
    """

    name: str
    title: str
    series: str = ""
    label: str = ""
    values: Sequence[str] = ()


INSTANCE = Variable(name="instance", title="server", series="headrace_engine_up", label="instance")


@dataclass(frozen=True, slots=True, kw_only=True)
class Dashboard:
    """One page. `name` is that of its file, and part of its address in Grafana."""

    name: str
    title: str
    about: str
    rows: Sequence[PanelRow]
    variables: Sequence[Variable] = field(default=(INSTANCE,))

    @property
    def panels(self) -> list[Panel]:
        """All of them, in order."""
        return [panel for row in self.rows for panel in row.panels]

    def json(self, catalog: Catalog) -> dict[str, Any]:
        """What Grafana reads.

        Raises:
            UnknownSeriesError: an expression names what does not exist.
        """
        return {
            "uid": f"headrace-{self.name}",
            "title": f"headrace / {self.title}",
            "description": self.about,
            "tags": ["headrace"],
            "schemaVersion": _SCHEMA,
            "editable": True,
            "graphTooltip": 1,  # one crosshair for all panels of the page
            "refresh": "10s",
            "time": {"from": "now-30m", "to": "now"},
            "timezone": "browser",
            "links": [_LINKS],
            "annotations": {"list": _ANNOTATIONS},
            "templating": {"list": [_SOURCE_VARIABLE, *(_variable(each) for each in self.variables)]},
            "panels": list(_placed(self.rows, catalog)),
        }


def _placed(rows: Sequence[PanelRow], catalog: Catalog) -> Iterator[dict[str, Any]]:
    y, number = 0, 0
    for row in rows:
        number += 1
        head = {"id": number, "type": "row", "title": row.title, "collapsed": row.collapsed, "panels": []}
        head["gridPos"] = {"x": 0, "y": y, "w": COLUMNS, "h": 1}
        y, x, tallest = y + 1, 0, 0
        inside: list[dict[str, Any]] = []
        for panel in row.panels:
            if x + panel.width > COLUMNS:
                y, x, tallest = y + tallest, 0, 0
            number += 1
            place = {"x": x, "y": y, "w": panel.width, "h": panel.height}
            inside.append({"id": number, "gridPos": place, **_panel(panel, catalog)})
            x, tallest = x + panel.width, max(tallest, panel.height)
        y += tallest
        if row.collapsed:
            yield {**head, "panels": inside}
        else:
            yield from (head, *inside)


def _panel(panel: Panel, catalog: Catalog) -> dict[str, Any]:
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": f"{panel.about}\n\n{_explained(panel, catalog)}",
        "datasource": SOURCE,
        "targets": [
            _target(panel, query, letter, catalog) for query, letter in zip(panel.queries, "ABCDEFGH", strict=False)
        ],
        "fieldConfig": {"defaults": _defaults(panel), "overrides": []},
        "options": _OPTIONS[panel.kind] | ({"textMode": "name"} if panel.named else {}),
    }


def _explained(panel: Panel, catalog: Catalog) -> str:
    """The series that it shows, in the words of their declarations."""
    named = dict.fromkeys(name for query in panel.queries for name, _, _ in selections(query.expression))
    return "\n".join(f"- `{name}`: {catalog.help[name]}" for name in named if name in catalog.help)


def _target(panel: Panel, query: Query, letter: str, catalog: Catalog) -> dict[str, Any]:
    labels = check(query.expression, catalog)
    if missing := sorted(set(legend_labels(query.legend)) - labels):
        raise UnknownSeriesError(f"{panel.title}: no label {', '.join(missing)} in the result of {query.expression}")
    return {
        "refId": letter,
        "datasource": SOURCE,
        "expr": query.expression,
        "legendFormat": query.legend,
        "range": panel.kind in ("timeseries", "heatmap"),
        "instant": panel.kind not in ("timeseries", "heatmap"),
        "format": "heatmap" if panel.kind == "heatmap" else "time_series",
        **({"exemplar": True} if query.exemplars else {}),
    }


def legend_labels(legend: str) -> list[str]:
    """The labels that a legend names."""
    return [part.partition("}}")[0].strip() for part in legend.split("{{")[1:]]


def _defaults(panel: Panel) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
    for bound, color in ((panel.warn, "yellow"), (panel.bad, "red")):
        if bound is not None:
            steps.append({"color": color, "value": bound})
    if panel.warn is not None and panel.bad is not None and panel.bad < panel.warn:
        steps = [
            {"color": "red", "value": None},
            {"color": "yellow", "value": panel.bad},
            {"color": "green", "value": panel.warn},
        ]
    defaults: dict[str, Any] = {"unit": panel.unit, "min": 0, "thresholds": {"mode": "absolute", "steps": steps}}
    if panel.limit is not None:
        defaults["max"] = panel.limit
    if panel.kind == "timeseries":
        stacking = {"mode": "normal" if panel.stacked else "none", "group": "A"}
        defaults["custom"] = {
            "drawStyle": "line",
            "fillOpacity": 40 if panel.stacked else 8,
            "lineWidth": 1,
            "showPoints": "never",
            "spanNulls": False,
            "stacking": stacking,
        }
        defaults["color"] = {"mode": "palette-classic"}
    else:
        defaults["color"] = {"mode": "thresholds"}
    return defaults


_OPTIONS: dict[Kind, dict[str, Any]] = {
    "timeseries": {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
        "tooltip": {"mode": "multi", "sort": "desc"},
    },
    "stat": {
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "colorMode": "background",
        "graphMode": "area",
        "justifyMode": "auto",
        "textMode": "auto",
        "orientation": "auto",
        "showPercentChange": False,
        "percentChangeColorMode": "standard",
        "wideLayout": True,
    },
    "bargauge": {
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "displayMode": "basic",
        "orientation": "horizontal",
        "showUnfilled": True,
        "valueMode": "color",
        "namePlacement": "auto",
        "sizing": "auto",
        "minVizHeight": 16,
        "maxVizHeight": 300,
        "minVizWidth": 8,
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": False, "calcs": []},
    },
    "heatmap": {
        "calculate": False,
        "cellGap": 1,
        "color": {
            "mode": "scheme",
            "scheme": "Oranges",
            "scale": "exponential",
            "exponent": 0.5,
            "steps": 64,
            "fill": "dark-orange",
            "reverse": False,
        },
        "yAxis": {"unit": "s", "axisPlacement": "left"},
        "tooltip": {"mode": "single", "yHistogram": True},
        "legend": {"show": True},
        "exemplars": {"color": "rgba(255,0,255,0.7)"},
        "filterValues": {"le": 1e-9},
        "rowsFrame": {"layout": "auto"},
        "showValue": "never",
    },
}

_LINKS = {
    "title": "headrace",
    "type": "dashboards",
    "tags": ["headrace"],
    "asDropdown": False,
    "includeVars": True,
    "keepTime": True,
    "targetBlank": False,
    "icon": "external link",
    "tooltip": "",
    "url": "",
}
LOAD_TEST_TAG = "headrace-loadtest"  # what `headrace loadtest --annotate` gives its marks
_ANNOTATIONS = [
    {
        "name": "Load tests",
        "datasource": {"type": "grafana", "uid": "-- Grafana --"},
        "enable": True,
        "hide": False,
        "iconColor": "blue",
        "target": {"type": "tags", "tags": [LOAD_TEST_TAG], "limit": 100, "matchAny": True},
    },
    {
        "name": "Engines started again",
        "datasource": SOURCE,
        "enable": True,
        "hide": False,
        "iconColor": "red",
        "expr": 'increase(headrace_engine_restarts_total{instance=~"$instance"}[$__interval]) > 0',
        "titleFormat": "engine started again",
        "textFormat": "{{instance}} {{engine}}",
    },
]
_SOURCE_VARIABLE = {
    "name": "source",
    "label": "data source",
    "type": "datasource",
    "query": "prometheus",
    "current": {"text": "Prometheus", "value": "prometheus"},
    "hide": 0,
    "refresh": 1,
}


def _variable(variable: Variable) -> dict[str, Any]:
    head = {"name": variable.name, "label": variable.title, "hide": 0}
    if variable.values:
        first, *_ = variable.values
        options = [{"text": each, "value": each, "selected": each == first} for each in variable.values]
        current = {"text": first, "value": first, "selected": True}
        return {**head, "type": "custom", "query": ",".join(variable.values), "options": options, "current": current}
    query = f"label_values({variable.series}, {variable.label})"
    return {
        **head,
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": query, "refId": "values"},
        "refresh": 2,  # whenever the time changes: engines come and go
        "includeAll": True,
        "multi": True,
        "allValue": ".*",  # also what has no such label
        "current": {"text": ["All"], "value": ["$__all"]},
        "sort": 1,
    }
