"""Requests become OpenTelemetry spans and metrics with GenAI's names, which continue the client's trace and go to a collector."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import HistogramDataPoint, InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from support.gateway.stage import TOKEN, Place, Stage, await_engine, chat, chunks
from support.waiting import until

from actscope.errors import SettingsError
from actscope.gateway import GatewaySettings
from actscope.gateway.app import create_app
from actscope.gateway.server import GatewayServer
from actscope.gateway.telemetry.tracing import Tracing
from actscope.serving.listening import listen, uvicorn_config

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "vendor=x"}


@dataclass
class Watched:
    """A gateway in a thread of the test, whose spans and metrics stay in memory."""

    place: Place
    spans: InMemorySpanExporter
    metrics: InMemoryMetricReader

    def span(self) -> ReadableSpan:
        """The one that has ended last."""
        return until(lambda: self.spans.get_finished_spans(), what="a span")[-1]

    def points(self) -> dict[str, list[HistogramDataPoint]]:
        found = self.metrics.get_metrics_data()
        assert found is not None
        scopes = [scope for resource in found.resource_metrics for scope in resource.scope_metrics]
        return {one.name: list(one.data.data_points) for scope in scopes for one in scope.metrics}  # type: ignore[arg-type]


@pytest.fixture
def watched(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watched]:
    stage.engine()
    monkeypatch.setenv("ACTSCOPE_RUNTIME_DIR", str(stage.directory))
    spans, metrics, provider = InMemorySpanExporter(), InMemoryMetricReader(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    given = GatewaySettings(port=0, token=TOKEN, discovery_seconds=0.05)
    sock = listen(given)
    settings = GatewaySettings(port=sock.getsockname()[1], token=TOKEN, discovery_seconds=0.05)
    app = create_app(settings, tracing=Tracing(provider, MeterProvider([metrics])))
    server = GatewayServer(uvicorn_config(app, settings), app, settings, sock)
    started = threading.Event()
    server.on_started = lambda taken: started.set()
    thread = threading.Thread(target=server.run_here)
    thread.start()
    try:
        assert started.wait(30)
        place = Place(settings.url)
        await_engine(place)
        yield Watched(place, spans, metrics)
    finally:
        server.should_exit = True
        thread.join(30)


def test_a_request_is_a_span_that_continues_the_clients_trace(watched: Watched) -> None:
    """With the tokens that the usage says, and with metrics that have as many requests."""
    with watched.place.client(headers=TRACEPARENT) as client:
        body = {"model": "scripted", "stream_options": {"include_usage": True}, **chat(max_tokens=5)}
        found = chunks(client, body)
    span = watched.span()
    assert span.name == "chat scripted" and span.parent is not None and span.context is not None
    assert (f"{span.context.trace_id:032x}", f"{span.parent.span_id:016x}") == (TRACE, PARENT)
    usage, about = found[-1]["usage"], dict(span.attributes or {})
    assert about == {
        "gen_ai.operation.name": "chat", "gen_ai.provider.name": "actscope", "gen_ai.request.model": "scripted",
        "gen_ai.response.id": found[0]["id"], "gen_ai.response.model": "scripted", "gen_ai.response.finish_reasons": ("length",),
        "gen_ai.usage.input_tokens": usage["prompt_tokens"], "gen_ai.usage.output_tokens": usage["completion_tokens"],
    }  # fmt: skip
    points = watched.points()
    assert points.keys() == {
        f"gen_ai.server.{n}" for n in ("request.duration", "time_to_first_token", "time_per_output_token")
    }
    assert all(len(found) == 1 and found[0].count == 1 and found[0].sum > 0 for found in points.values())
    assert span.end_time is not None and span.start_time is not None
    assert points["gen_ai.server.request.duration"][0].sum == pytest.approx(
        (span.end_time - span.start_time) / 1e9, abs=0.1
    )


def test_the_engine_gets_the_gateways_span_as_its_parent(watched: Watched) -> None:
    """vLLM's own spans lie below it then. Without tracing the client's header goes through as it is."""
    from opentelemetry.sdk.trace import TracerProvider

    headers = dict(TRACEPARENT)
    span = Tracing(TracerProvider(), MeterProvider()).begin("/v1/completions", "m", headers)
    context = span.get_span_context()
    assert headers == {"traceparent": f"00-{TRACE}-{context.span_id:016x}-01", "tracestate": "vendor=x"}
    assert f"{context.span_id:016x}" != PARENT


def test_choices_of_one_prompt_count_its_tokens_once(watched: Watched) -> None:
    with watched.place.client() as client:
        usage = client.post("/v1/chat/completions", json=chat(max_tokens=3, n=2)).json()["usage"]
    about: dict[str, Any] = dict(watched.span().attributes or {})
    assert watched.span().parent is None
    assert about["gen_ai.usage.input_tokens"] == usage["prompt_tokens"]
    assert about["gen_ai.usage.output_tokens"] == usage["completion_tokens"]
    assert about["gen_ai.response.finish_reasons"] == ("length", "length")


@pytest.mark.parametrize(
    ("script", "model", "error"),
    [({"error_after": 2}, "scripted", "engine_failed"), ({"refuse": 400}, "a-name-that-a-client-made-up", "refused")],
)
def test_a_request_that_fails_is_an_error_without_a_series_of_its_own(
    watched: Watched, script: dict[str, int], model: str, error: str
) -> None:
    with watched.place.client() as client:
        client.post(
            "/v1/chat/completions", json={"stream": True, "model": model, **chat(max_tokens=5, scripted=script)}
        )
    span = watched.span()
    assert span.attributes is not None and span.attributes["error.type"] == error and not span.status.is_ok
    points = watched.points()
    assert points.keys() == {"gen_ai.server.request.duration"}
    assert dict(points["gen_ai.server.request.duration"][0].attributes or {}) == {
        "gen_ai.operation.name": "chat", "gen_ai.provider.name": "actscope", "error.type": error,
    }  # fmt: skip


# --- a collector ---


@dataclass
class Collector:
    """What has arrived over HTTP."""

    url: str
    traces: list[ExportTraceServiceRequest] = field(default_factory=list)
    metrics: list[ExportMetricsServiceRequest] = field(default_factory=list)


@contextmanager
def collector() -> Iterator[Collector]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.path == "/v1/traces":
                found.traces.append(ExportTraceServiceRequest.FromString(body))
            elif self.path == "/v1/metrics":
                found.metrics.append(ExportMetricsServiceRequest.FromString(body))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *given: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        found = Collector(f"http://127.0.0.1:{http.server_address[1]}")
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        try:
            yield found
        finally:
            http.shutdown()
            thread.join()


def test_a_collector_receives_spans_and_metrics_when_the_gateway_ends(stage: Stage) -> None:
    stage.engine()
    with collector() as received:
        with stage.gateway(otlp_endpoint=received.url + "/").client() as client:
            chunks(client, chat(max_tokens=4))
        stage.gateway_process.terminate()
        assert stage.gateway_process.wait(20) in (
            0,
            -15,
        )  # uvicorn ends by the signal that it got, after all has been closed
        [resource] = received.traces[0].resource_spans
        assert {a.key: a.value.string_value for a in resource.resource.attributes}["service.name"] == "actscope"
        assert [span.name for span in resource.scope_spans[0].spans] == ["chat"]
        names = {m.name for m in received.metrics[-1].resource_metrics[0].scope_metrics[0].metrics}
        assert "gen_ai.server.time_to_first_token" in names


def test_a_collector_that_is_not_there_costs_no_request(stage: Stage) -> None:
    stage.engine()
    with stage.gateway(otlp_endpoint="http://127.0.0.1:9").client() as client:
        assert chunks(client, chat(max_tokens=4))
        assert client.get("/health").status_code == 200


def test_an_endpoint_that_is_no_address_is_refused() -> None:
    with pytest.raises(SettingsError, match="otlp_endpoint: expected http://host:port, found 'localhost:4318'"):
        GatewaySettings(otlp_endpoint="localhost:4318")
