"""Prometheus scrapes a feed: who may, and that the numbers are those of `GET /stats`."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
from prometheus_client.core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from support.feed.feeding import TOKEN, feeding

from actscope.feed.answers import FeedCounts

DOCS = Path(__file__).parents[2] / "docs"
SCRAPER = "token-of-the-scraper"


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


def test_the_metrics_of_a_feed_are_its_statistics() -> None:
    """In both formats, with the token of scrapers, which opens nothing else; without a token it is 401."""
    with feeding(scrape_token=SCRAPER) as feed, httpx.Client(base_url=feed.url, trust_env=False, timeout=30) as http:
        with feed.client(group="a-group") as client:
            client.wait_for_data(100)
            client.take(64)
        answer = http.get("/metrics", headers=bearer(SCRAPER) | {"accept": "application/openmetrics-text"})
        stats = http.get("/stats", headers=bearer(TOKEN)).json()
        families: list[Metric] = list(parse_openmetrics(answer.text))  # type: ignore[no-untyped-call]
        found = {(s.name, *s.labels.values()): s.value for m in families for s in m.samples}
        for name in FeedCounts.__annotations__:
            suffix = "" if name == "held_rows" else "_total"
            assert found[f"actscope_feed_{name}{suffix}",] == stats["counts"][name] or name.startswith("filled"), name
        assert found["actscope_feed_delivered_rows_total",] >= 64
        assert found["actscope_feed_group_rows_total", "a-group"] == stats["groups"]["a-group"]["rows"] >= 64
        assert found["actscope_feed_state", "serving"] == 1
        assert found["actscope_process_resident_memory_bytes", "", "0", "generator"] > 1e6
        assert found["actscope_feed_site_mean_norm", stats["sites"].popitem()[0]] > 0
        plain = http.get("/metrics", headers=bearer(TOKEN))
        assert {m.name for m in parse_text(plain.text)} == {m.name for m in families}
        named = set(re.findall(r"`(actscope_\w+?)(?:_total)?`", (DOCS / "prometheus.md").read_text()))
        assert {m.name for m in families} - named == set(), "every metric is documented"
        assert http.get("/metrics").status_code == 401
        for path in ("/", "/stats", "/activations", "/near"):
            assert http.get(path, headers=bearer(SCRAPER)).status_code == 403, path
