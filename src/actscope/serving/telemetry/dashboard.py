"""The Grafana dashboard of the metrics of gateway and feed."""

from __future__ import annotations

from pathlib import Path

#: The dashboard, which Grafana imports. Its data source and instances are variables.
DASHBOARD = Path(__file__).with_name("grafana.json")


def read_dashboard() -> str:
    """Return the dashboard as JSON."""
    return DASHBOARD.read_text()
