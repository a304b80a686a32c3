"""Prometheus scrapes a gateway: who may, what it gets, and that its numbers are those of the API."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from prometheus_client.core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from support.gateway.stage import TOKEN, Place, Stage, chat, chunks, picture

from actscope.errors import SettingsError
from actscope.gateway import GatewaySettings

DOCS = Path(__file__).parents[2] / "docs"
SCRAPER = "token-of-the-scraper"
OPENMETRICS = {"accept": "application/openmetrics-text; version=1.0.0"}
#: What vLLM's server has, and a family of the gateway's own name.
VLLM = """# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 2.0
# HELP process_cpu_seconds_total Total user and system CPU time spent in seconds.
# TYPE process_cpu_seconds_total counter
process_cpu_seconds_total 12.5
# HELP actscope_engine_up Not the gateway's.
# TYPE actscope_engine_up gauge
actscope_engine_up 7.0
"""


@pytest.fixture
def watched(stage: Stage) -> Place:
    stage.engine()
    return stage.gateway(scrape_token=SCRAPER)


@pytest.fixture
def scraper(watched: Place) -> Iterator[httpx.Client]:
    headers = {"authorization": f"Bearer {SCRAPER}"}
    with httpx.Client(base_url=watched.url, headers=headers, trust_env=False, timeout=30) as client:
        yield client


def scraped(client: httpx.Client) -> dict[str, Metric]:
    """Families of a scrape in OpenMetrics, by name; the older format has them too."""
    answer = client.get("/metrics", headers=OPENMETRICS)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    found: list[Metric] = list(parse_openmetrics(answer.text))  # type: ignore[no-untyped-call]
    plain = client.get("/metrics")
    assert plain.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert {m.name for m in parse_text(plain.text) if m.samples} == {m.name for m in found if m.samples}
    names = [m.name for m in found]
    assert len(names) == len(set(names)), "no family is defined twice"
    assert all(m.documentation for m in found)
    return {m.name: m for m in found}


def value(families: dict[str, Metric], name: str, **labels: str) -> float:
    """The sum of all samples of a name with these labels."""
    samples = [s for m in families.values() for s in m.samples if s.name == name]
    return sum(s.value for s in samples if labels.items() <= s.labels.items())


def test_the_scrapers_token_opens_the_metrics_and_nothing_else(watched: Place, scraper: httpx.Client) -> None:
    assert scraper.get("/metrics").status_code == 200
    others = [
        ("POST", "/metrics"), ("GET", "/metrics/"), ("GET", "/"), ("GET", "/v1/models"), ("GET", "/v1/actscope/info"),
        ("GET", "/v1/actscope/metrics"), ("POST", "/v1/chat/completions"), ("GET", "/openapi.json"),
    ]  # fmt: skip
    for method, path in others:
        answer = scraper.request(method, path)
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "scrape_only"), (method, path)
    health = scraper.get("/health")  # as for every stranger
    assert (health.status_code, health.content) == (200, b"")
    assert scraper.get("/metrics", headers={"x-api-key": TOKEN}).status_code == 403
    assert httpx.get(f"{watched.url}/?token={SCRAPER}", trust_env=False).status_code == 401


def test_without_a_token_nothing_is_scraped(watched: Place) -> None:
    for headers in ({}, {"authorization": "Bearer wrong-token-wrong"}, {"x-api-key": SCRAPER}):
        assert httpx.get(f"{watched.url}/metrics", headers=headers, trust_env=False).status_code == 401
    with watched.client() as client:
        assert client.get("/metrics").status_code == 200


def test_without_a_token_of_its_own_an_empty_one_opens_nothing(place: Place) -> None:
    for given in ("Bearer", 'Bearer ""', "Basic Og=="):
        answer = httpx.get(f"{place.url}/metrics", headers=[(b"authorization", given.encode())], trust_env=False)
        assert answer.status_code == 401


def test_a_scrapers_token_must_be_long_and_another_one() -> None:
    for token in ("short", TOKEN):
        with pytest.raises(SettingsError, match="scrape_token: expected at least 8 characters, other than the token"):
            GatewaySettings(token=TOKEN, scrape_token=token)
    assert SCRAPER not in repr(GatewaySettings(token=TOKEN, scrape_token=SCRAPER))


def test_every_score_is_in_its_probes_histogram_once(watched: Place, scraper: httpx.Client) -> None:
    """With an exemplar whose request can be looked up; and tokens at or over the threshold are counted."""
    with watched.client() as client:
        found = [picture(chunks(client, chat(actscope=True, max_tokens=6))) for _ in range(3)]
        families = scraped(scraper)
        for probe in ("danger", "joy"):
            cells = [v for one in found for (_, name), v in one.cells.items() if name == probe and v is not None]
            assert value(families, "actscope_probe_score_bucket", probe=probe, le="+Inf") == len(cells) > 10
            assert value(families, "actscope_probe_score_bucket", probe=probe, le="0.5") == sum(v <= 0.5 for v in cells)
        over = sum(v >= 0.5 for one in found for (_, n), v in one.cells.items() if n == "danger" and v is not None)
        assert value(families, "actscope_probe_over_threshold_tokens_total", probe="danger") == over > 0
        assert value(families, "actscope_probe_over_threshold_tokens_total", probe="joy") == 0
        assert value(families, "actscope_probe_threshold", probe="danger") == 0.5
        assert value(families, "actscope_probe_info", site="layers.5.resid_post", probe="joy") == 1
        [request] = {
            s.exemplar.labels["request_id"] for s in families["actscope_probe_score"].samples if s.exemplar
        } & {found[-1].request}
        assert client.get(f"/v1/actscope/requests/{request}").status_code == 200
        again = scraped(scraper)
        assert value(again, "actscope_probe_score_bucket", le="+Inf") == value(
            families, "actscope_probe_score_bucket", le="+Inf"
        )


def test_scores_of_a_running_request_are_counted_before_it_ends_and_not_again(stage: Stage) -> None:
    engine, place = stage.engine(), stage.gateway()
    body = {"stream": True, **chat(actscope=True, max_tokens=8, scripted={"hold_after": 4})}
    with place.client() as client, client.stream("POST", "/v1/chat/completions", json=body) as response:
        lines = response.iter_lines()
        first = [next(lines) for _ in range(8)]  # four chunks, and the empty lines between them
        with place.client() as other:
            families = scraped(other)
            shown = value(families, "actscope_probe_score_bucket", probe="joy", le="+Inf")
            assert shown > 0 and value(families, "actscope_request_seconds_count") == 0
            assert value(families, "actscope_gateway_in_flight", kind="completion") == 1
            engine.release()
            events = [line.removeprefix("data: ") for line in [*first, *lines] if line.startswith("data: {")]
            found = picture([json.loads(event) for event in events])
            cells = [v for (_, probe), v in found.cells.items() if probe == "joy" and v is not None]
            after = scraped(other)
    assert value(after, "actscope_probe_score_bucket", probe="joy", le="+Inf") == len(cells) > shown
    assert value(after, "actscope_gateway_in_flight", kind="completion") == 0


def test_the_counters_are_those_of_info(watched: Place, scraper: httpx.Client) -> None:
    """Every one, of every process; but those that the requests in between have moved."""
    with watched.client() as client:
        chunks(client, chat(actscope=True, max_tokens=4))
        info = client.get("/v1/actscope/info").json()
        families = scraped(scraper)
    compared = 0
    for source in info["counters"]:
        labels = {"source": source["source"], "engine": source["engine"] or "", "part": str(source["part"])}
        for name, shown in source["values"].items():
            now = value(families, f"actscope_{name}_total", **labels) + value(families, f"actscope_{name}", **labels)
            assert now == shown or name == "answers_ok", name
            compared += 1
    assert compared > 25


def test_tokens_and_times_of_a_request_are_counted(watched: Place, scraper: httpx.Client) -> None:
    with watched.client() as client:
        body = {"stream_options": {"include_usage": True}, **chat(max_tokens=5)}
        usage = chunks(client, body)[-1]["usage"]
        families = scraped(scraper)
    assert value(families, "actscope_request_tokens_total", kind="prompt", source="gateway") == usage["prompt_tokens"]
    assert value(families, "actscope_request_tokens_total", kind="completion") == usage["completion_tokens"] == 5
    assert value(families, "actscope_request_seconds_count", source="gateway") == 1
    assert value(families, "actscope_first_token_seconds_count") == 1
    assert value(families, "actscope_token_gap_seconds_count") == 4
    assert value(families, "actscope_token_gap_seconds_sum") < value(families, "actscope_request_seconds_sum")


def test_processes_and_rings_are_shown(watched: Place, scraper: httpx.Client) -> None:
    families = scraped(scraper)
    assert {s.labels["process"] for s in families["actscope_process_cpu_seconds"].samples} == {"gateway", "engine"}
    assert value(families, "actscope_process_resident_memory_bytes", process="gateway") > 1e6
    assert [s.value for s in families["actscope_ring_lag_steps"].samples] == [0]
    assert value(families, "actscope_ring_rows_capacity") == 1 << 17
    assert value(families, "actscope_engine_up") == 1
    assert value(families, "actscope_engine_metrics_up") == 0, "the scripted engine has no metrics of its own"


def test_every_metric_is_on_the_page_about_them(watched: Place, scraper: httpx.Client) -> None:
    """And counters are on that of the counters."""
    with watched.client() as client:
        chunks(client, chat(max_tokens=4))
        info = client.get("/v1/actscope/info").json()
    counters = {f"actscope_{name}" for source in info["counters"] for name in source["values"]}
    named = set(re.findall(r"`(actscope_\w+?)(?:_total)?`", (DOCS / "prometheus.md").read_text()))
    assert set(scraped(scraper)) - counters - named == set()


# --- the metrics of the engine's own server ---


@contextmanager
def server(*, text: str = VLLM, kind: str = "text/plain; version=0.0.4", waits: bool = False) -> Iterator[str]:
    """A server without actscope, with metrics."""
    go_on = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/metrics" and waits:
                go_on.wait(30)
            body = {"/metrics": text, "/v1/models": '{"data": []}'}.get(self.path, "").encode()
            self.send_response(200)
            self.send_header("content-type", kind if self.path == "/metrics" else "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *given: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{http.server_address[1]}"
        finally:
            go_on.set()
            http.shutdown()
            thread.join()


def test_the_engines_own_metrics_follow_the_gateways(stage: Stage) -> None:
    """Both in one answer, in both formats; a name that both have is the gateway's."""
    with server() as url, stage.gateway(upstream=url).client() as client:
        families = scraped(client)
        assert value(families, "vllm:num_requests_running", model_name="m") == 2
        assert value(families, "process_cpu_seconds_total") == 12.5
        assert (value(families, "actscope_engine_up"), value(families, "actscope_engine_metrics_up")) == (1, 1)
        assert "vllm:" not in client.get("/metrics", params={"engine": "false"}).text
        assert "vllm:" not in client.get("/v1/actscope/metrics").text


@pytest.mark.parametrize("text", ["no metrics at all {", "<html>", "a 1\n" + "x" * 70_000], ids=["bad", "page", "long"])
def test_metrics_of_the_engine_that_cannot_be_read_are_left_out(stage: Stage, text: str) -> None:
    with server(text=text) as url, stage.gateway(upstream=url).client() as client:
        families = scraped(client)
        assert (value(families, "actscope_engine_up"), value(families, "actscope_engine_metrics_up")) == (1, 0)


def test_an_engine_whose_metrics_are_late_is_not_waited_for(stage: Stage) -> None:
    with server(waits=True) as url, stage.gateway(upstream=url).client(timeout=10) as client:
        answer = client.get("/metrics")
        assert answer.status_code == 200
        assert "actscope_engine_metrics_up 0.0" in answer.text


def test_without_an_engine_the_gateway_is_still_scraped(stage: Stage) -> None:
    with stage.gateway(up=False).client() as client:
        families = scraped(client)
    assert value(families, "actscope_engine_up") == 0
    assert {s.labels["process"] for s in families["actscope_process_cpu_seconds"].samples} == {"gateway"}
