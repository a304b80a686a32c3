"""One answer of the Responses API or the Messages API: streams the engine's answer to the client and adds scores.

Neither API returns token ids. The tokens are therefore taken from the rows. The last one, which is never fed back, is missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

import aiohttp
import msgspec
from starlette.types import Send

from actscope.errors import UpstreamError
from actscope.gateway.api.completion import CompletionResponse, Fields
from actscope.gateway.api.conversation_request import MESSAGES, RESPONSES
from actscope.gateway.api.payloads import ChoiceView, encode
from actscope.gateway.scores.request_log import RequestLog
from actscope.gateway.upstream.sse import SseSplitter

_value = msgspec.json.decode
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class Dialect(Protocol):
    """Events of one API."""

    def carries(self, kind: str) -> bool:
        """Return whether events of this type get scores, if there are new ones."""

    def is_final(self, kind: str) -> bool:
        """Return whether an event of this type has the reason of the end."""

    def is_last(self, kind: str) -> bool:
        """Return whether the stream ends with an event of this type."""

    def reason(self, fields: Fields) -> str | None:
        """Return the finish reason, in the words of chat completions, that a final event or a whole answer states."""

    def cancellation(self, head: Fields) -> bytes:
        """Return the last events of a cancelled stream. `head`: the first event of it, which describes the answer."""

    def failure(self, message: str) -> bytes:
        """Return the last event of a stream whose engine has failed."""


class ResponsesDialect:
    """The Responses API. Scores are in events `*.delta` and in the last event, and all of them in its `response`."""

    _LAST = ("response.completed", "response.incomplete", "response.failed")
    _REASONS: ClassVar = {"completed": "stop", "incomplete": "length", "cancelled": "abort", "failed": "error"}

    def carries(self, kind: str) -> bool:
        """Return whether it is a delta or the last event."""
        return kind.endswith(".delta") or self.is_final(kind)

    def is_final(self, kind: str) -> bool:
        """Return whether the event has the whole response."""
        return kind in self._LAST

    def is_last(self, kind: str) -> bool:
        """Return whether the event has the whole response, or reports an error."""
        return self.is_final(kind) or kind == "error"

    def reason(self, fields: Fields) -> str | None:
        """Return the finish reason for the response's status."""
        answer = _fields(fields["response"]) if "response" in fields else fields
        return self._REASONS.get(str(_get(answer, "status")))

    def cancellation(self, head: Fields) -> bytes:
        """Return an event `response.incomplete` without a reason."""
        answer = _get(head, "response") or {}
        event = {"type": "response.incomplete", "response": {**answer, "status": "incomplete"}}
        return _event("response.incomplete", event)

    def failure(self, message: str) -> bytes:
        """Return an event `error`, with the error also where clients of completions look for it."""
        facts = {"message": message, "code": "engine_failed", "param": None}
        return _event("error", {"type": "error", **facts, "error": {"type": "upstream_error", **facts}})


class MessagesDialect:
    """The Messages API. Scores are in events `content_block_delta` and in `message_delta`, which has the reason of the end."""

    _REASONS: ClassVar = {"end_turn": "stop", "max_tokens": "length", "stop_sequence": "stop", "tool_use": "tool_calls"}

    def carries(self, kind: str) -> bool:
        """Return whether it is a delta."""
        return kind in ("content_block_delta", "message_delta")

    def is_final(self, kind: str) -> bool:
        """Return whether it is `message_delta`."""
        return kind == "message_delta"

    def is_last(self, kind: str) -> bool:
        """Return whether it is `message_stop`, or reports an error."""
        return kind in ("message_stop", "error")

    def reason(self, fields: Fields) -> str | None:
        """Return the finish reason for `stop_reason`."""
        where = _fields(fields["delta"]) if "delta" in fields else fields
        return self._REASONS.get(str(_get(where, "stop_reason")))

    def cancellation(self, head: Fields) -> bytes:
        """Return a `message_delta` without a reason, and `message_stop`."""
        delta = {"type": "message_delta", "delta": {"stop_reason": None}, "usage": {"output_tokens": 0}}
        return _event("message_delta", delta) + _event("message_stop", {"type": "message_stop"})

    def failure(self, message: str) -> bytes:
        """Return an event `error`."""
        return _event("error", {"type": "error", "error": {"type": "api_error", "message": message}})


_DIALECTS: dict[str, Dialect] = {RESPONSES: ResponsesDialect(), MESSAGES: MessagesDialect()}


class ConversationResponse(CompletionResponse):
    """Response that sends one call of the Responses API or the Messages API, with the life cycle of `CompletionResponse`."""

    _over = False

    @property
    def _dialect(self) -> Dialect:
        return _DIALECTS[self._call.path]

    def _new_log(self, request: str) -> RequestLog:
        call, matcher = self._call, self._engine.matcher
        if matcher is None:
            return super()._new_log(request)
        return matcher.new_log(request, call.response, self._model, follows_rows=True)

    def _failure(self, message: str) -> bytes:
        return self._dialect.failure(message)

    def _cancellation(self) -> bytes:
        return self._dialect.cancellation(self._last)

    async def _stream(self, response: aiohttp.ClientResponse, send: Send) -> None:
        await self._start_stream(send)
        splitter = SseSplitter()
        while data := await response.content.readany():
            out = [await self._event(event) for event in splitter.feed(data)]
            if any(out):
                await send({"type": "http.response.body", "body": b"".join(out), "more_body": True})
        if not self._over:
            raise UpstreamError("the connection closed before the end of the answer")
        self._finish_all("done", None)
        await self._send_last(send, b"")

    async def _event(self, event: bytes) -> bytes:
        """Return an event as it is sent to the client. Events that get no scores are passed through unchanged."""
        lines = event.split(b"\n")
        data = b"\n".join(line[5:] for line in lines if line.startswith(b"data:"))
        if not data.strip() or data.strip() == b"[DONE]":
            return event + b"\n\n"
        fields: Fields = _fields(data)
        kind = str(_get(fields, "type"))
        self._last = self._last or fields
        self._over = self._over or self._dialect.is_last(kind)
        if self._engine.matcher is not None:
            self._engine.matcher.drain()
        final = self._dialect.is_final(kind)
        if final:
            await self._end_all(self._dialect.reason(fields))
        if not self._views or not self._dialect.carries(kind) or not self._add_scores(fields, final):
            return event + b"\n\n"
        head = b"".join(line + b"\n" for line in lines if not line.startswith(b"data:"))
        return head + b"data: " + encode(fields) + b"\n\n"

    def _add_scores(self, fields: Fields, final: bool) -> bool:
        """Add the new scores to an event, and all scores to the response in it. Returns whether there are any."""
        view = self._views[0]
        payload = view.payload(final=final) if view is not None else None
        if payload is None:
            return False
        fields["actscope"] = payload
        if final and "response" in fields:
            fields["response"] = {**_fields(fields["response"]), "actscope": self._whole(self._logs[0])}
        return True

    def _whole(self, log: RequestLog) -> object:
        ask = self._call.ask
        assert ask is not None
        return ChoiceView(log, ask.probes, ask.prompt, ask.features).payload(final=True)

    async def _end_all(self, reason: str | None) -> None:
        for log in self._logs:
            await self._end(log, reason)

    async def _answer(self, response: aiohttp.ClientResponse, send: Send) -> None:
        body = await response.read()
        answer: Fields = _fields(body)
        if self._engine.matcher is not None:
            self._engine.matcher.drain()
        await self._end_all(self._dialect.reason(answer))
        if self._call.ask is not None:
            body = encode(answer | {"actscope": self._whole(self._logs[0])})
        await self._send_whole(send, 200, body)


def _get(fields: Fields, name: str) -> Any:
    return _value(fields[name]) if name in fields else None


def _event(kind: str, data: Mapping[str, object]) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (kind.encode(), encode(data))
