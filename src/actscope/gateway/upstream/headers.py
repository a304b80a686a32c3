"""Which headers go through the gateway: these and no others, either way."""

from __future__ import annotations

from collections.abc import Mapping

#: Of a client's headers, those that reach the engine on every route. `X-Request-Id` is not among them: by it rows are told
#: apart, so the gateway makes it, and it is unique.
FORWARDED = frozenset({"accept", "content-type", "traceparent", "tracestate"})

#: And those that mean something to an engine on the routes that are passed on as they are, and to vLLM on all of them.
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

#: Of an engine's headers, those that a client gets.
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
    """Of a completion's headers, those that may reach the engine."""
    return _of(headers, FORWARDED | _DIALECT - {"content-length"})


def passed(headers: Mapping[str, str]) -> dict[str, str]:
    """The same for a request that is passed on as it is, with its length if that is known."""
    return _of(headers, FORWARDED | _DIALECT)


def returned(headers: Mapping[str, str]) -> dict[str, str]:
    """Of an answer's headers, those that may reach the client. A length is of the bytes as they came: not if unpacked."""
    kept = _RETURNED - {"content-length"} if "content-encoding" in headers else _RETURNED
    return _of(headers, kept)


def _of(headers: Mapping[str, str], names: frozenset[str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name.lower() in names}
