"""One completion: the engine's answer written through, with scores added on the way."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import aiohttp
import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from actscope.errors import UpstreamError
from actscope.gateway.asking import Call
from actscope.gateway.log import RequestLog, State
from actscope.gateway.problems import Problem, error_object, problem_response
from actscope.gateway.sessions import Flight, Sessions
from actscope.gateway.sse import SseSplitter
from actscope.gateway.upstream import Engine, Upstream
from actscope.gateway.wire import ChoiceView, encode

_log = logging.getLogger(__name__)
_decode = msgspec.json.Decoder().decode

_FAILURES = (aiohttp.ClientError, UpstreamError, OSError, asyncio.TimeoutError, msgspec.DecodeError)
_DONE = b"data: [DONE]\n\n"


class CompletionResponse(Response):
    """Sends one call to the engine and its answer to the client, while the logs of its choices are written.

    The client going away, or a cancellation, closes the connection to the engine, which aborts the request.
    """

    def __init__(
        self,
        call: Call,
        upstream: Upstream,
        engine: Engine,
        sessions: Sessions,
        grace_seconds: float,
        headers: dict[str, str],
    ) -> None:
        self._call = call
        self._upstream = upstream
        self._engine = engine
        self._sessions = sessions
        self._grace_seconds = grace_seconds
        self._headers_up = {**headers, "x-request-id": call.request_id, "content-type": "application/json"}
        self._model = call.model or (engine.card.model if engine.card else "")
        self._logs = [self._new_log(request) for request in call.choices]
        self._views = self._new_views()
        self._started = self._ended = self._broken = False
        self._last: dict[str, Any] = {}
        self.background = None
        self.status_code = 200
        self.flight = Flight(call.response, self._logs)

    def _new_log(self, request: str) -> RequestLog:
        call, matcher = self._call, self._engine.matcher
        if matcher is None:
            return RequestLog(request, response=call.response, model=self._model, texts=self._engine.texts)
        return matcher.new_log(request, call.response, self._model, follows_rows=not call.stream)

    def _new_views(self) -> list[ChoiceView | None]:
        ask = self._call.ask
        if ask is None:
            return [None] * len(self._logs)
        return [ChoiceView(log, ask.probes, ask.prompt) for log in self._logs]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._sessions.begin(self.flight)
        work = asyncio.create_task(self._work(send))
        watch = asyncio.create_task(self._watch(receive))
        self.flight.on_cancel(work.cancel)
        try:
            await work
        except asyncio.CancelledError:
            work.cancel()
            if not self.flight.cancelled:
                raise
            self._finish_all("aborted", "abort")
            if not self._ended:
                await self._say_cancelled(scope, receive, send)
        finally:
            watch.cancel()
            self._finish_all("aborted", "abort")
            self._sessions.end(self.flight)

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        if not self._ended:
            self.flight.cancel()

    # The engine's answer

    async def _work(self, send: Send) -> None:
        async with self._engine.in_use():
            await self._relay(send)

    async def _relay(self, send: Send) -> None:
        try:
            response = await self._engine.send("POST", self._call.path, self._call.body, self._headers_up)
        except _FAILURES as error:
            await self._fail(send, error)
            return
        try:
            if response.status != 200:
                await self._refuse(response, send)
            elif response.content_type == "text/event-stream":
                await self._stream(response, send)
            else:
                await self._answer(response, send)
        except _FAILURES as error:
            await self._fail(send, error)
        finally:
            response.close()

    async def _refuse(self, response: aiohttp.ClientResponse, send: Send) -> None:
        """The engine did not take the request: pass on what it says."""
        body = await response.read()
        self._forget()
        if not _is_error(body):
            status = response.status if 400 <= response.status < 500 else 502
            text = body[:500].decode("utf-8", "replace").strip()
            body = encode(error_object(status, f"the engine answered {response.status}: {text}", code="engine_failed"))
        await self._send_whole(send, response.status, body)

    async def _fail(self, send: Send, error: BaseException) -> None:
        """The engine broke off: tell the client, in the stream if that has begun."""
        reason = str(error) or type(error).__name__
        _log.warning("request %s: the engine failed: %s", self._call.response, reason)
        self._finish_all("failed", "error", reason)
        message = f"the engine failed while it answered: {reason}"
        if self._started:
            body = b"data: " + encode(error_object(502, message, code="engine_failed")) + b"\n\n"
            await self._send_last(send, body)
            return
        self._forget()
        if isinstance(error, aiohttp.ClientConnectorError):
            problem = self._upstream.not_up()
        else:
            problem = Problem(502, message, code="engine_failed")
        whole = problem_response(problem)
        await self._send_whole(send, whole.status_code, bytes(whole.body), problem.headers or {})

    async def _say_cancelled(self, scope: Scope, receive: Receive, send: Send) -> None:
        """End the client's answer, if the client is still there to read it."""
        if not self._started:
            problem = Problem(409, f"request {self._call.response} was cancelled", code="request_cancelled")
            await problem_response(problem)(scope, receive, send)
            return
        await self._send_last(send, b"".join(self._ending(i) for i in range(len(self._logs))) + _DONE)

    def _ending(self, index: int) -> bytes:
        """The last chunk of a cancelled choice."""
        view = self._views[index]
        choice: dict[str, Any] = {"index": index, "finish_reason": "abort"}
        is_chat = self._call.path.endswith("/chat/completions")
        choice["delta" if is_chat else "text"] = {} if is_chat else ""
        if view is not None:
            choice["actscope"] = view.payload(final=True)
        head = {key: self._last[key] for key in ("id", "object", "created", "model") if key in self._last}
        return b"data: " + encode({**head, "choices": [choice]}) + b"\n\n"

    def _finish_all(self, state: State, reason: str | None, error: str | None = None) -> None:
        for log in self._logs:
            log.finish(state, reason, error)

    def _forget(self) -> None:
        for log in self._logs:
            log.finish("failed", "error")
            self._sessions.remove(log)

    async def _send_whole(self, send: Send, status: int, body: bytes, headers: dict[str, str] | Any = None) -> None:
        response = Response(body, status, headers, "application/json")
        response.headers["x-request-id"] = self._call.response
        self._ended = True
        await send({"type": "http.response.start", "status": status, "headers": response.raw_headers})
        await self._send_last(send, body)

    async def _send_last(self, send: Send, body: bytes) -> None:
        """End the answer. From now on a disconnect means nothing."""
        self._ended = True
        await send({"type": "http.response.body", "body": body, "more_body": False})

    # Streaming

    async def _stream(self, response: aiohttp.ClientResponse, send: Send) -> None:
        await self._start_stream(send)
        splitter = SseSplitter()
        while True:
            data = await response.content.readany()
            if not data:
                raise UpstreamError("the connection closed before the end of the answer")
            out = [self._plain(event) or await self._rich(event) for event in splitter.feed(data)]
            if splitter.done or self._broken:
                self._finish_all("done", None)
                await self._send_last(send, b"".join(out))
                return
            if out:
                await send({"type": "http.response.body", "body": b"".join(out), "more_body": True})

    async def _start_stream(self, send: Send) -> None:
        self._started = True
        headers = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-cache"),
            (b"x-accel-buffering", b"no"),
            (b"x-request-id", self._call.response.encode()),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})

    def _plain(self, event: bytes) -> bytes | None:
        """An event that is not a chunk goes through as it came."""
        if event == b"data: [DONE]":
            return _DONE
        return None if event.startswith(b"data:") else event + b"\n\n"

    async def _rich(self, event: bytes) -> bytes:
        chunk = _decode(event[5:])
        if chunk.get("error"):
            self._broken = True
            self._finish_all("failed", "error", str(chunk["error"]))
            return event + b"\n\n"
        self._last = chunk
        if self._engine.matcher is not None:
            self._engine.matcher.drain()
        self._take_prompt(chunk)
        if not chunk.get("choices"):
            return b"data: " + encode(chunk) + b"\n\n"
        for choice in chunk["choices"]:
            if choice.get("index", 0) < len(self._logs):
                await self._add(choice)
        return b"data: " + encode(chunk) + b"\n\n"

    def _take_prompt(self, answer: dict[str, Any]) -> list[int] | None:
        """The prompt's tokens, which all choices of a chat share and of which the client is told if it asked."""
        prompt = answer.get("prompt_token_ids") if self._call.wants_token_ids else answer.pop("prompt_token_ids", None)
        if prompt is not None and self._call.stream:
            for log in self._logs:
                log.set_prompt(prompt)
        return prompt

    def _take_ids(self, choice: dict[str, Any]) -> tuple[list[int] | None, list[int]]:
        """The prompt's tokens, if they stand here, and the tokens of this choice."""
        found = choice.get("prompt_token_ids"), choice.get("token_ids") or []
        if not self._call.wants_token_ids:
            choice.pop("token_ids", None)
            choice.pop("prompt_token_ids", None)
        return found

    async def _add(self, choice: dict[str, Any]) -> None:
        """Write one choice of a chunk to its log, and give it what its view has to say."""
        index = choice.get("index", 0)
        log, view = self._logs[index], self._views[index]
        prompt, ids = self._take_ids(choice)
        if prompt is not None:
            log.set_prompt(prompt)
        if ids and log.n_prompt is not None:
            log.add_tokens(ids)
        reason = choice.get("finish_reason")
        if reason is not None:
            await self._end(log, reason)
        payload = view.payload(final=reason is not None) if view is not None else None
        if payload is not None:
            choice["actscope"] = payload

    async def _end(self, log: RequestLog, reason: str | None) -> None:
        """Wait a moment for rows that are still to come, then close the log."""
        if log.owes_rows and self._engine.matcher is not None:
            try:
                async with asyncio.timeout(self._grace_seconds):
                    while log.owes_rows:
                        await log.changed()
            except TimeoutError:
                pass
        log.finish("done", reason)

    # All at once

    async def _answer(self, response: aiohttp.ClientResponse, send: Send) -> None:
        answer = _decode(await response.read())
        if self._engine.matcher is not None:
            self._engine.matcher.drain()
        prompt = self._take_prompt(answer)
        for choice in answer.get("choices") or ():
            if choice.get("index", 0) < len(self._logs):
                await self._settle(choice, prompt)
        await self._send_whole(send, 200, encode(answer))

    async def _settle(self, choice: dict[str, Any], prompt: list[int] | None) -> None:
        index = choice.get("index", 0)
        log, view = self._logs[index], self._views[index]
        own_prompt, ids = self._take_ids(choice)
        prompt = own_prompt if own_prompt is not None else prompt
        if prompt is not None:
            log.settle(prompt, ids)
        await self._end(log, choice.get("finish_reason"))
        if view is not None:
            choice["actscope"] = view.payload(final=True)


def _is_error(body: bytes) -> bool:
    try:
        found = _decode(body)
    except msgspec.DecodeError:
        return False
    return isinstance(found, dict) and isinstance(found.get("error"), dict)
