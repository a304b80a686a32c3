"""OpenTelemetry: one span for each request that the gateway serves, and metrics, with the names of the GenAI conventions.

A client's `traceparent` is continued, and the engine gets the gateway's span as its parent, so vLLM's own spans lie below it.
The names are those of https://github.com/open-telemetry/semantic-conventions-genai (`gen_ai.…`); probes have none there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from actscope._version import __version__
from actscope.clock import monotonic_ns
from actscope.errors import MissingExtra
from actscope.gateway.scores.request_log import RequestLog
from actscope.gateway.scores.request_store import Flight

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span
    from opentelemetry.util.types import AttributeValue

_OPERATIONS = {"/v1/completions": "text_completion"}
_PROVIDER = "actscope"
#: Bucket ends that the conventions advise, in seconds.
_DURATIONS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
_FIRST = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
_EACH = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
_SHUTDOWN_MS = 3000


class Tracing:
    """Makes the spans and metrics of a gateway's requests. What it does for a request takes microseconds; sending is on a thread.

    Args:
        spans: Provider of the tracer.
        metrics: Provider of the meter.
    """

    def __init__(self, spans: TracerProvider, metrics: MeterProvider) -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._spans, self._metrics = spans, metrics
        self._tracer = spans.get_tracer("actscope.gateway", __version__)
        self._propagator = TraceContextTextMapPropagator()
        meter = metrics.get_meter("actscope.gateway", __version__)
        self._duration = meter.create_histogram(
            "gen_ai.server.request.duration",
            "s",
            "Duration of a request.",
            explicit_bucket_boundaries_advisory=_DURATIONS,
        )
        self._first = meter.create_histogram(
            "gen_ai.server.time_to_first_token",
            "s",
            "Time to the first token.",
            explicit_bucket_boundaries_advisory=_FIRST,
        )
        self._each = meter.create_histogram(
            "gen_ai.server.time_per_output_token",
            "s",
            "Mean time of a token after the first one.",
            explicit_bucket_boundaries_advisory=_EACH,
        )

    def begin(self, path: str, model: str, headers: dict[str, str]) -> Span:
        """Start the span of a request.

        Args:
            path: Path of the API.
            model: Model that the client named, or "".
            headers: Headers for the engine. `traceparent` and `tracestate` are read, and replaced by those of this span.
        """
        from opentelemetry.trace import SpanKind, set_span_in_context

        operation = _OPERATIONS.get(path, "chat")
        about: dict[str, AttributeValue] = {"gen_ai.operation.name": operation, "gen_ai.provider.name": _PROVIDER}
        if model:
            about["gen_ai.request.model"] = model
        span = self._tracer.start_span(
            f"{operation} {model}".strip(), self._propagator.extract(headers), SpanKind.SERVER, about
        )
        self._propagator.inject(headers, set_span_in_context(span))
        return span

    def follow(self, span: Span, flight: Flight, path: str, n: int) -> None:
        """End the span when a completion ends, with what its logs say then. `n` choices belong to each prompt."""
        flight.on_end = lambda: self._end(span, flight, path, n)

    def _end(self, span: Span, flight: Flight, path: str, n: int) -> None:
        from opentelemetry.trace import Status, StatusCode

        logs = flight.logs
        error = _error_of(flight)
        span.set_attributes(_facts(flight, n))
        if error:
            span.set_attribute("error.type", error)
            span.set_status(Status(StatusCode.ERROR, next((log.error for log in logs if log.error), None)))
        span.end()
        about: dict[str, AttributeValue] = {
            "gen_ai.operation.name": _OPERATIONS.get(path, "chat"), "gen_ai.provider.name": _PROVIDER,
        }  # fmt: skip
        # Of a request that failed the model may be a name that a client made up: it would be a series of its own.
        about |= {"error.type": error} if error else {"gen_ai.request.model": logs[0].model}
        began = min(log.began_ns for log in logs)
        self._duration.record((monotonic_ns() - began) / 1e9, about)
        for log in () if error else logs:
            times = log.events.token_seconds(log.n_prompt or 0)
            if len(times):
                self._first.record(float(times[0]), about)
            if log.completion_tokens > 1 and len(times) > 1:
                self._each.record(float(times[-1] - times[0]) / (log.completion_tokens - 1), about)

    def close(self) -> None:
        """Send what has not been sent, for at most 3 s each, and stop."""
        self._spans.force_flush(_SHUTDOWN_MS)
        self._spans.shutdown()
        self._metrics.shutdown(_SHUTDOWN_MS)


def _facts(flight: Flight, n: int) -> dict[str, AttributeValue]:
    logs: Sequence[RequestLog] = flight.logs
    return {
        "gen_ai.response.id": flight.response,
        "gen_ai.response.model": logs[0].model,
        "gen_ai.response.finish_reasons": [log.finish_reason or log.state for log in logs],
        "gen_ai.usage.input_tokens": sum(log.n_prompt or 0 for log in logs[::n]),
        "gen_ai.usage.output_tokens": sum(log.completion_tokens for log in logs),
    }


def _error_of(flight: Flight) -> str:
    """Return `error.type` of a completion, or ""."""
    if flight.cancelled or any(log.state == "aborted" for log in flight.logs):
        return "cancelled"
    failed = [log for log in flight.logs if log.state == "failed"]
    return "" if not failed else "engine_failed" if any(log.error for log in failed) else "refused"


def open_tracing(endpoint: str) -> Tracing | None:
    """Return what sends spans and metrics to a collector; None without an endpoint.

    The SDK's own variables (OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES, OTEL_EXPORTER_OTLP_HEADERS, …) apply too.

    Args:
        endpoint: Base URL of the collector's OTLP over HTTP, such as http://localhost:4318; "" for none.

    Raises:
        MissingExtra: OpenTelemetry's SDK is not installed.
    """
    if not endpoint:
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
        from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise MissingExtra("otel", error.name or "opentelemetry") from error
    own = Resource({SERVICE_NAME: "actscope", SERVICE_VERSION: __version__})
    resource = Resource.create().merge(own).merge(OTELResourceDetector().detect())
    base = endpoint.rstrip("/")
    spans = TracerProvider(resource=resource, shutdown_on_exit=False)
    spans.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(f"{base}/v1/traces")))
    reader = PeriodicExportingMetricReader(OTLPMetricExporter(f"{base}/v1/metrics"))
    return Tracing(spans, MeterProvider([reader], resource, shutdown_on_exit=False))
