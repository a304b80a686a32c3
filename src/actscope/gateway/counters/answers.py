"""Counts of the gateway's answers by status, taken where they leave it: after access control and all error handlers."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from actscope.counters import counted, counting


@counting("answers")
@dataclass(slots=True)
class AnswerCounts:
    """Answers of the gateway to HTTP requests, by what their status says."""

    ok: int = counted("work", "Answers with a status below 400.")
    denied: int = counted(
        "work", "Requests that were turned away, because they had no valid token, Host or Origin (401, 403)."
    )
    refused: int = counted("work", "Requests that were not valid, or asked for what is not there (other 4xx).")
    busy: int = counted(
        "loss",
        "Requests that were turned away, because too many were in flight (429).",
        "Raise --max-in-flight, --max-streams, or the engine's own limit.",
    )
    not_up: int = counted(
        "fault",
        "Requests that were answered with 503, because no engine was up.",
        "See the engine's log, and the gateway's for why the engine cannot be used.",
    )
    failed: int = counted(
        "fault",
        "Requests that were answered with an error of the engine or of the gateway (other 5xx).",
        "See the gateway's log and the engine's for the errors.",
    )

    def add(self, status: int) -> None:
        """Count an answer."""
        self.ok += status < 400
        self.denied += status in (401, 403)
        self.busy += status == 429
        self.refused += 400 <= status < 500 and status not in (401, 403, 429)
        self.not_up += status == 503
        self.failed += status >= 500 and status != 503


class AnswerCounter:
    """ASGI middleware that counts the answers of the application."""

    def __init__(self, app: ASGIApp, counts: AnswerCounts) -> None:
        self._app = app
        self._counts = counts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request and count its answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def counted_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._counts.add(message["status"])
            await send(message)

        await self._app(scope, receive, counted_send)
