"""Shared state of the routes, as a FastAPI dependency."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request

from actscope.gateway.api.completion import CompletionResponse
from actscope.gateway.api.completion_request import Call
from actscope.gateway.api.events import OpenStreams
from actscope.gateway.api.proxy import Passing
from actscope.gateway.counters.answers import AnswerCounts
from actscope.gateway.counters.reports import GatewayCounters
from actscope.gateway.scores.request_store import Sessions
from actscope.gateway.settings import GatewaySettings
from actscope.gateway.telemetry.observer import LogObserver
from actscope.gateway.telemetry.tracing import Tracing
from actscope.gateway.upstream.engine import EngineConnection
from actscope.gateway.upstream.upstream import Upstream
from actscope.serving.telemetry.gpus import Gpus


@dataclass(frozen=True, slots=True)
class Gateway:
    """The components of one running gateway."""

    settings: GatewaySettings
    upstream: Upstream
    sessions: Sessions
    streams: OpenStreams
    passing: Passing = field(default_factory=Passing)
    answers: AnswerCounts = field(default_factory=AnswerCounts)
    observer: LogObserver = field(default_factory=LogObserver)
    gpus: Gpus = field(default_factory=Gpus)
    tracing: Tracing | None = None

    @property
    def counters(self) -> GatewayCounters:
        """Return the counters of the gateway and its engine."""
        return GatewayCounters(self.upstream, self.sessions, self.answers)

    def answer(
        self, call: Call, engine: EngineConnection, headers: dict[str, str], kind: type[CompletionResponse]
    ) -> CompletionResponse:
        """Return the response to a call, with a span of its own if spans are sent.

        Args:
            call: The call, which has been admitted.
            engine: Engine to which it is sent.
            headers: Headers of the client that are forwarded. The span replaces `traceparent`.
            kind: Class of the response.
        """
        span = self.tracing.begin(call.path, call.model, headers) if self.tracing else None
        response = kind(call, self.upstream, engine, self.sessions, self.settings.row_grace_seconds, headers)
        if self.tracing and span is not None:
            self.tracing.follow(span, response.flight, call.path, call.n)
        return response


async def _gateway(request: Request) -> Gateway:
    found: Gateway = request.app.state.gateway
    return found


#: Parameter type with which a route receives its gateway.
Here = Annotated[Gateway, Depends(_gateway)]
