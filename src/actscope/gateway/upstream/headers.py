"""Allow-lists of the headers that pass through the gateway, in both directions. All other headers are removed."""

from __future__ import annotations

from collections.abc import Mapping

#: Client headers that are forwarded to the engine on every route. `X-Request-Id` is excluded: it identifies a request's rows, so
#: the gateway generates it and guarantees that it is unique.
FORWARDED = frozenset({"accept", "content-type", "traceparent", "tracestate"})

#: Client headers with a meaning on proxied routes, and to vLLM on all routes.
_DIALECT = frozenset(
    {
        "accept-language",
        "anthropic-beta",
        "anthropic-version",
        "content-length",
        "endpoint-load-metrics-format",
        "idempotency-key",
        "openai-beta",
        "x-data-parallel-rank",
        "x-session-id",
        "x-vllm-priority",
    }
)

#: Engine headers that are returned to the client.
_RETURNED = frozenset(
    {
        "allow",
        "content-disposition",
        "content-length",
        "content-type",
        "endpoint-load-metrics",
        "etag",
        "openai-processing-ms",
        "retry-after",
        "x-request-id",
    }
)


def forwarded(headers: Mapping[str, str]) -> dict[str, str]:
    """Return the headers of a completion request that are forwarded to the engine."""
    return _of(headers, FORWARDED | _DIALECT - {"content-length"})


def passed(headers: Mapping[str, str]) -> dict[str, str]:
    """Return the headers of a proxied request that are forwarded to the engine, Content-Length included."""
    return _of(headers, FORWARDED | _DIALECT)


def returned(headers: Mapping[str, str]) -> dict[str, str]:
    """Return the headers of an engine's answer that are returned to the client.

    Content-Length is removed if the answer was compressed: it counts the compressed bytes, and aiohttp decompresses the body.
    """
    kept = _RETURNED - {"content-length"} if "content-encoding" in headers else _RETURNED
    return _of(headers, kept)


def _of(headers: Mapping[str, str], names: frozenset[str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name.lower() in names}
