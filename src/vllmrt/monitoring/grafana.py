"""The dashboard, as Grafana takes it: `JSON model`_.

.. _JSON model: https://grafana.com/docs/grafana/latest/dashboards/build-dashboards/view-dashboard-json-model/
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from vllmrt.monitoring.panels import PANELS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from vllmrt.monitoring.panels import Panel

DASHBOARD = "vllm-dashboard.json"
_COLUMNS, _HEIGHT = 24, 8
_SCHEMA = 39
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}


def as_text() -> str:
    """Return the dashboard as a file has it."""
    return json.dumps(dashboard(), indent=2) + "\n"


def dashboard() -> dict[str, Any]:
    """Return the dashboard; which Prometheus, model and server it shows is chosen in it."""
    return {
        "uid": "vllmrt-vllm",
        "title": "vLLM",
        "tags": ["vllm", "vllmrt"],
        "schemaVersion": _SCHEMA,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "templating": {"list": [_datasource(), _choice("model_name"), _choice("instance")]},
        "panels": [
            _panel(number, panel, place) for number, (panel, place) in enumerate(zip(PANELS, _places(), strict=True), 1)
        ],
    }


def provisioning(folder: Path, prometheus: str) -> dict[str, str]:
    """Return the files that let a Grafana begin with the dashboard, by their places below `folder`.

    Args:
        folder: where they will lie.
        prometheus: the address of its Prometheus.
    """
    source = {"name": "Prometheus", "uid": "vllmrt", "type": "prometheus", "url": prometheus, "isDefault": True}
    provider = {"name": "vllmrt", "type": "file", "options": {"path": str(folder / "dashboards")}}
    return {
        "provisioning/datasources/vllmrt.yml": json.dumps({"apiVersion": 1, "datasources": [source]}),
        "provisioning/dashboards/vllmrt.yml": json.dumps({"apiVersion": 1, "providers": [provider]}),
        f"dashboards/{DASHBOARD}": as_text(),
    }


def _places() -> Iterator[dict[str, int]]:
    """Yield where each panel goes: side by side, as long as they fit."""
    x = y = 0
    for panel in PANELS:
        if x + panel.width > _COLUMNS:
            x, y = 0, y + _HEIGHT
        yield {"x": x, "y": y, "w": panel.width, "h": _HEIGHT}
        x += panel.width


def _panel(number: int, panel: Panel, place: dict[str, int]) -> dict[str, Any]:
    heatmap = panel.kind == "heatmap"
    targets = [
        {
            "refId": chr(ord("A") + index),
            "datasource": _SOURCE,
            "expr": query,
            "legendFormat": legend,
            "format": "heatmap" if heatmap else "time_series",
        }
        for index, (legend, query) in enumerate(panel.queries.items())
    ]
    return {
        "id": number,
        "title": panel.title,
        "type": panel.kind,
        "datasource": _SOURCE,
        "gridPos": place,
        "targets": targets,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "options": _OF_HEATMAPS if heatmap else {"legend": {"displayMode": "list", "placement": "bottom"}},
    }


# the buckets are Prometheus' own, so that Grafana has nothing to count
_OF_HEATMAPS = {"calculate": False, "yAxis": {"unit": "short"}, "cellGap": 1, "legend": {"show": True}}


def _datasource() -> dict[str, Any]:
    return {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"}


def _choice(label: str) -> dict[str, Any]:
    query = f"label_values(vllm:num_requests_running, {label})"
    return {
        "name": label,
        "type": "query",
        "datasource": _SOURCE,
        "query": {"query": query, "refId": label},
        "refresh": 2,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }
