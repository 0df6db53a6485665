"""The Grafana dashboard shows the metrics that there are."""

from __future__ import annotations

import json
import re
from pathlib import Path

from server.metrics import Metrics

DASHBOARD = Path(__file__).parents[2] / "server" / "dashboards" / "streamgen.json"
SERIES = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
LEFT_OUT: set[str] = set()
"""Metrics that no panel shows, on purpose."""


def test_panels_and_metrics_are_the_same() -> None:
    panels = json.loads(DASHBOARD.read_text("utf-8"))["panels"]
    expressions = [target["expr"] for panel in panels for target in panel.get("targets", ())]
    shown = set(re.findall(r"\bstreamgen_\w+", " ".join(expressions)))
    exported = {m.name: {m.name + suffix for suffix in SERIES[m.type]} for m in Metrics().registry.collect()}
    unknown = shown - set().union(*exported.values())
    assert not unknown, f"panels ask for series that the server does not export: {sorted(unknown)}"
    missing = {name for name, series in exported.items() if not series & shown} - LEFT_OUT
    assert not missing, f"give each a panel in {DASHBOARD.name}, or a place in LEFT_OUT: {sorted(missing)}"
