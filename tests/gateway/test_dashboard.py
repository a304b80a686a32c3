"""The Grafana dashboard asks for metrics that there are, with labels that they have, and each panel has a place of its own."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.feed.feeding import feeding
from support.gateway.stage import Place, chat, chunks
from typer.testing import CliRunner

from actscope.cli.app import app
from actscope.serving.telemetry.dashboard import DASHBOARD, read_dashboard

DOCS = Path(__file__).parents[2] / "docs"
_METRIC = re.compile(r"\b((?:actscope_|vllm:)\w+)")
_LABELS = re.compile(r"by \(([^)]*)\)|(\w+)=~?\"|\{\{(\w+)\}\}")


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(read_dashboard())
    return found


def targets(dashboard: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Expression and legend of every query, those of variables too."""
    for panel in dashboard["panels"]:
        yield from ((one["expr"], one["legendFormat"]) for one in panel.get("targets", ()))
    yield from ((one["query"]["query"], "") for one in dashboard["templating"]["list"] if one["type"] == "query")


def in_scrapes(client: httpx.Client) -> dict[str, set[str]]:
    """Names of samples, and labels of each, in the scrapes of a gateway and of a feed."""
    chunks(client, chat(actscope=True, max_tokens=4))
    with feeding() as feed, feed.client(group="g") as consumer:
        consumer.wait_for_data(100)
        consumer.take(10)
        headers = {"authorization": f"Bearer {feed.server.settings.token}"}
        texts = [client.get("/metrics").text, httpx.get(f"{feed.url}/metrics", headers=headers, trust_env=False).text]
    found: dict[str, set[str]] = {}
    for text in texts:
        for family in text_string_to_metric_families(text):
            for name in {family.name, *(sample.name for sample in family.samples)}:
                found.setdefault(name, set()).update(*(s.labels for s in family.samples if s.name == name))
    return found


def test_every_metric_of_the_dashboard_is_in_a_scrape_with_its_labels(place: Place, dashboard: dict[str, Any]) -> None:
    """Those of vLLM, of its processes and of GPUs are not there without them: they are in the tables, and tested elsewhere."""
    counters = set(re.findall(r"^\| `(\w+)` \|", (DOCS / "counters.md").read_text(), re.M))
    gpus = set(re.findall(r"`(actscope_gpu_\w+)`", (DOCS / "prometheus.md").read_text()))
    with place.client() as client:
        there = in_scrapes(client)
    seen = set()
    for expression, legend in targets(dashboard):
        for name in _METRIC.findall(expression):
            seen.add(name)
            counter = name.removeprefix("actscope_").removesuffix("_total")
            assert name in there or counter in counters or name in gpus or name.startswith("vllm:"), name
            asked = {
                label.strip() for found in _LABELS.findall(expression + legend) for label in "".join(found).split(",")
            }
            known = there.get(name, set())
            assert not known or asked - {"instance", "le", ""} <= known | {"probe", "engine"}, (name, asked, known)
    assert len(seen) > 30


def test_panels_have_places_of_their_own(dashboard: dict[str, Any]) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert taken.isdisjoint(cells), panel["title"]
        taken |= cells
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))


def test_metrics_dashboard_prints_it() -> None:
    done = CliRunner().invoke(app, ["metrics", "dashboard"])
    assert (done.exit_code, done.output) == (0, DASHBOARD.read_text())
