"""One completion: streams the engine's answer to the client and adds scores.

Answers are decoded into fields whose values stay raw JSON bytes. All fields that the gateway neither adds nor removes arrive
exactly as the engine wrote them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Annotated, Any

import aiohttp
import msgspec
from msgspec import Raw
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from actscope.clock import monotonic_ns
from actscope.errors import UpstreamError
from actscope.gateway.api.completion_request import Call
from actscope.gateway.api.payloads import ChoiceView, encode
from actscope.gateway.scores.request_log import RequestLog, State
from actscope.gateway.scores.request_store import Flight, Sessions
from actscope.gateway.scores.token_times import TokenTimes
from actscope.gateway.timeline.send_buffer import Chunks, SendBuffer
from actscope.gateway.upstream.engine import EngineConnection
from actscope.gateway.upstream.sse import SseSplitter, read_whole
from actscope.gateway.upstream.upstream import Upstream
from actscope.serving.connections import transport_of
from actscope.serving.errors import Problem, error_object, problem_response

_log = logging.getLogger(__name__)
_value = msgspec.json.decode
_fields = msgspec.json.Decoder(dict[str, Raw]).decode
_many_fields = msgspec.json.Decoder(list[dict[str, Raw]]).decode
_token_ids = msgspec.json.Decoder(list[Annotated[int, msgspec.Meta(ge=0, lt=1 << 31)]] | None).decode
_number = msgspec.json.Decoder(Annotated[int, msgspec.Meta(ge=0)] | None).decode
_text = msgspec.json.Decoder(str | None).decode

Fields = dict[str, Any]
"""A JSON object whose values are raw JSON bytes, or Python values that are still to be encoded."""

_NULL = Raw(b"null")
_IDS = ("prompt_token_ids", "token_ids")
_MALFORMED = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_FAILURES = (aiohttp.ClientError, UpstreamError, OSError, asyncio.TimeoutError, *_MALFORMED)
#: Maximum size in bytes of a refusal of the engine.
_MOST_REFUSAL_BYTES = 1 << 20
_DONE = b"data: [DONE]\n\n"
#: Bytes of the empty chunk that ends a chunked body.
_LAST_CHUNK_BYTES = 5


def _reason_of(error: BaseException) -> str:
    """Say why an engine failed. aiohttp's words for a connection that ended early are about the transfer's encoding."""
    if isinstance(error, (aiohttp.ClientPayloadError, aiohttp.ServerDisconnectedError, ConnectionResetError)):
        return "it closed the connection. It may have stopped: its terminal or log has the reason"
    return str(error) or type(error).__name__


class LateRows:
    """Deadline until which the ending choices of one answer wait for late rows. Choices that end together share it.

    A deadline holds for `grace_seconds`. In the same time after it no choice waits: those that ended with the ones that did
    wait have had the same time. So an answer of many choices whose rows never come is held up once.
    """

    def __init__(self, grace_seconds: float) -> None:
        self._grace_seconds = grace_seconds
        self._deadline = float("-inf")

    def deadline(self, now: float) -> float:
        """Return the deadline of a choice that ends `now`, in seconds of the same clock. It may have passed."""
        if now > self._deadline + self._grace_seconds:
            self._deadline = now + self._grace_seconds
        return self._deadline


class CompletionResponse(Response):
    """Response that sends one call to the engine, streams its answer to the client, and writes the logs of its choices.

    If the client disconnects or the request is cancelled, the connection to the engine is closed, which aborts the request.

    Args:
        call: The parsed request.
        upstream: Used to describe a failed connection.
        engine: Engine to which the call is sent.
        sessions: Store of the request logs.
        grace_seconds: Time in seconds that ending choices wait, together, for rows that have not been published yet.
        headers: Headers of the client that are forwarded.

    Attributes:
        flight: Handle with which the request can be cancelled.
    """

    def __init__(
        self,
        call: Call,
        upstream: Upstream,
        engine: EngineConnection,
        sessions: Sessions,
        grace_seconds: float,
        headers: dict[str, str],
    ) -> None:
        self._call = call
        self._upstream = upstream
        self._engine = engine
        self._sessions = sessions
        self._late_rows = LateRows(grace_seconds)
        self._headers_up = {**headers, "x-request-id": call.request_id, "content-type": "application/json"}
        self._model = call.model or (engine.card.model if engine.card else "")
        self._logs = [self._new_log(request) for request in call.choices]
        self._views = self._new_views()
        self._started = self._ended = self._broken = False
        self._read_ns = 0
        self._unsent: list[TokenTimes] = []
        self._buffer = SendBuffer.of(None)
        self._last: Fields = {}
        self._verbatim = call.ask is None and call.wants_token_ids >= call.has_token_ids
        self._has_nulls = engine.kind == "vllm"
        self.background = None
        self.status_code = 200
        self.flight = Flight(call.response, self._logs)

    def _new_log(self, request: str) -> RequestLog:
        call, matcher = self._call, self._engine.matcher
        if matcher is None:
            return RequestLog(request, response=call.response, model=self._model, texts=self._engine.texts)
        follows_rows = not (call.stream and call.has_token_ids)
        return matcher.new_log(request, call.response, self._model, follows_rows=follows_rows)

    def _new_views(self) -> list[ChoiceView | None]:
        ask = self._call.ask
        if ask is None:
            return [None] * len(self._logs)
        return [ChoiceView(log, ask.probes, ask.prompt, ask.features) for log in self._logs]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer. Finish the logs of all choices however it ends."""
        self._sessions.begin(self.flight)
        self._buffer = SendBuffer.of(transport_of(scope))
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
        asked_ns = monotonic_ns()
        for log in self._logs:
            log.times.asked_ns = asked_ns
        try:
            response = await self._engine.endpoint.send("POST", self._call.path, self._call.body, self._headers_up)
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
        except Exception as error:  # boundary: whatever the engine's answer has set off, the client is told
            _log.exception("request %s: the engine's answer could not be read", self._call.response)
            await self._fail(send, error)
        finally:
            response.close()

    async def _refuse(self, response: aiohttp.ClientResponse, send: Send) -> None:
        """Send the engine's refusal with its status, and drop the logs. A body in another format is wrapped in OpenAI's."""
        body = await read_whole(response, _MOST_REFUSAL_BYTES)
        self._forget()
        status = response.status if 400 <= response.status < 600 else 502
        if not _is_error(body):
            status = status if status < 500 else 502
            text = body[:500].decode("utf-8", "replace").strip()
            body = encode(error_object(status, f"the engine answered {response.status}: {text}", code="engine_failed"))
        await self._send_whole(send, status, body)

    async def _fail(self, send: Send, error: BaseException) -> None:
        """Report a failure of the engine to the client: as the last event if streaming has begun, else as the answer."""
        reason = _reason_of(error)
        _log.warning("request %s: the engine failed: %s", self._call.response, reason)
        self._finish_all("failed", "error", reason)
        message = f"the engine failed while it answered: {reason}"
        if self._started:
            await self._send_last(send, self._failure(message))
            return
        self._forget()
        if isinstance(error, aiohttp.ClientConnectorError):
            problem = self._upstream.not_up()
        else:
            problem = Problem(502, message, code="engine_failed")
        whole = problem_response(problem)
        await self._send_whole(send, whole.status_code, bytes(whole.body), problem.headers or {})

    async def _say_cancelled(self, scope: Scope, receive: Receive, send: Send) -> None:
        """End the answer of a cancelled request: 400, or a last chunk for each choice if streaming has begun.

        OpenAI's clients send a request again after 408, 409, 429 and 5xx, and would undo the cancellation.
        """
        if not self._started:
            message, headers = f"request {self._call.response} was cancelled", {"x-should-retry": "false"}
            problem = Problem(400, message, code="request_cancelled", headers=headers)
            await problem_response(problem)(scope, receive, send)
            return
        await self._send_last(send, self._cancellation())

    def _failure(self, message: str) -> bytes:
        """Return the last event of a stream whose engine has failed."""
        return b"data: " + encode(error_object(502, message, code="engine_failed")) + b"\n\n"

    def _cancellation(self) -> bytes:
        """Return the last events of a cancelled stream."""
        return b"".join(self._ending(i) for i in range(len(self._logs))) + _DONE

    def _ending(self, index: int) -> bytes:
        """Return the last chunk of a cancelled choice."""
        view = self._views[index]
        choice: dict[str, object] = {"index": index, "finish_reason": "abort"}
        choice["delta" if self._call.is_chat else "text"] = {} if self._call.is_chat else ""
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

    async def _send_whole(self, send: Send, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        response = Response(body, status, headers, "application/json")
        response.headers["x-request-id"] = self._call.response
        self._ended = True
        await send({"type": "http.response.start", "status": status, "headers": response.raw_headers})
        await self._send_last(send, body)

    async def _send_last(self, send: Send, body: bytes) -> None:
        """Send the end of the answer. A later disconnect does not cancel the request."""
        self._ended = True
        await send({"type": "http.response.body", "body": body, "more_body": False})

    # Streaming

    async def _stream(self, response: aiohttp.ClientResponse, send: Send) -> None:
        await self._start_stream(send)
        splitter = SseSplitter()
        while True:
            data = await response.content.readany()
            self._read_ns = monotonic_ns()
            if not data:
                raise UpstreamError("the connection closed before the end of the answer")
            out = [await self._event(event) for event in splitter.feed(data) if not self._broken]
            if splitter.done or self._broken:
                self._finish_all("done", None)
                body, chunks = b"".join(out), self._leaving()
                await self._send_last(send, body)
                self._buffer.add(_framed(body) + _LAST_CHUNK_BYTES, chunks)
                return
            if any(out):
                body, chunks = b"".join(out), self._leaving()
                await send({"type": "http.response.body", "body": body, "more_body": True})
                self._buffer.add(_framed(body), chunks)

    async def _start_stream(self, send: Send) -> None:
        self._started = True
        headers = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-cache"),
            (b"x-accel-buffering", b"no"),
            (b"x-request-id", self._call.response.encode()),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})

    def _leaving(self) -> Chunks:
        """Return the chunks of tokens that are about to be sent."""
        unsent, self._unsent = self._unsent, []
        chunks = [(times, times.n_chunks) for times in unsent]
        self._buffer.begin(chunks)
        return chunks

    async def _event(self, event: bytes) -> bytes:
        """Return an event as it is sent to the client. Events other than chunks are passed through unchanged."""
        if event == b"data: [DONE]":
            return _DONE
        if not event.startswith(b"data:"):
            return event + b"\n\n"
        chunk: Fields = _fields(event[5:])
        if _get(chunk, "error"):
            self._broken = True
            self._finish_all("failed", "error", str(_get(chunk, "error")))
            return event + b"\n\n"
        self._last = chunk
        choices = _many_fields(chunk["choices"]) if bytes(chunk.get("choices", _NULL)) != b"null" else []
        await self._take_chunk(chunk, choices)
        if self._verbatim:
            return event + b"\n\n"
        if choices:
            chunk["choices"] = choices
        return b"" if self._is_void(chunk, choices) else b"data: " + encode(chunk) + b"\n\n"

    async def _take_chunk(self, chunk: Fields, choices: list[Fields]) -> None:
        if self._engine.matcher is not None:
            self._engine.matcher.drain()
        prompt = self._take_ids(chunk)["prompt_token_ids"]
        if prompt is not None:
            for log in self._logs:
                log.set_prompt(prompt)
        for choice in choices:
            if _index(choice) < len(self._logs):
                await self._add(choice)

    def _is_void(self, chunk: Fields, choices: list[Fields]) -> bool:
        """Return whether a chunk only carried token ids that the client did not request, and is empty without them."""
        return (
            self._has_nulls
            and self._call.is_chat
            and bool(choices)
            and "usage" not in chunk
            and all(map(_says_nothing, choices))
        )

    def _take_ids(self, fields: Fields) -> dict[str, list[int] | None]:
        """Return the token ids in `fields`, and remove them unless the client requested them (for vLLM: set them to null)."""
        found = {name: _token_ids(fields[name]) if name in fields else None for name in _IDS}
        if not self._call.wants_token_ids:
            for name in _IDS:
                if self._has_nulls and name in fields:
                    fields[name] = _NULL
                else:
                    fields.pop(name, None)
        return found

    async def _add(self, choice: Fields) -> None:
        """Append one choice of a chunk to its log, and add the new `actscope` payload to the choice."""
        log, view = self._logs[_index(choice)], self._views[_index(choice)]
        withheld = self._call.has_token_ids and bytes(choice.get("token_ids", b"")) == b"null"
        found = self._take_ids(choice)
        if found["prompt_token_ids"] is not None:
            self._set_prompt(_index(choice), found["prompt_token_ids"])
        if withheld or (found["token_ids"] and log.n_prompt is None):
            log.follow_rows()  # vLLM withholds the token ids of hidden reasoning
        elif not log.follows_rows and found["token_ids"]:
            log.add_tokens(found["token_ids"])
            log.times.read(log.present, self._read_ns)
            self._unsent.append(log.times)
        reason = _text(choice.get("finish_reason", _NULL))
        if reason is not None:
            await self._end(log, reason)
        payload = view.payload(final=reason is not None) if view is not None else None
        if payload is not None:
            choice["actscope"] = payload

    def _set_prompt(self, index: int, prompt: list[int]) -> None:
        """Set the prompt's tokens in all choices of one prompt. vLLM may send them with the first choice only."""
        first = index - index % self._call.n
        for log in self._logs[first : first + self._call.n]:
            log.set_prompt(prompt)

    async def _end(self, log: RequestLog, reason: str | None) -> None:
        """Wait for rows that are still expected, until the answer's deadline for late rows, then close the log."""
        if log.owes_rows and self._engine.may_have_rows(log):
            try:
                async with asyncio.timeout_at(self._late_rows.deadline(asyncio.get_running_loop().time())):
                    while log.owes_rows:
                        await log.changed()
            except TimeoutError:
                pass
        if self._engine.matcher is not None:
            self._engine.matcher.flush(log)
        log.finish("done", reason)

    # Without streaming

    async def _answer(self, response: aiohttp.ClientResponse, send: Send) -> None:
        body = await read_whole(response)
        answer: Fields = _fields(body)
        if self._engine.matcher is not None:
            self._engine.matcher.drain()
        prompt = self._take_ids(answer)["prompt_token_ids"]
        choices = _many_fields(answer.get("choices", b"[]"))
        for choice in choices:
            if _index(choice) < len(self._logs):
                await self._settle(choice, prompt)
        await self._send_whole(send, 200, body if self._verbatim else encode(answer | {"choices": choices}))

    async def _settle(self, choice: Fields, prompt: list[int] | None) -> None:
        log, view = self._logs[_index(choice)], self._views[_index(choice)]
        found = self._take_ids(choice)
        prompt = prompt if found["prompt_token_ids"] is None else found["prompt_token_ids"]
        if prompt is not None and found["token_ids"] is not None:
            log.settle(prompt, found["token_ids"])
        await self._end(log, _text(choice.get("finish_reason", _NULL)))
        if view is not None:
            choice["actscope"] = view.payload(final=True)


def _framed(body: bytes) -> int:
    """Return the bytes that a piece of a chunked body takes on the connection."""
    return len(b"%x\r\n\r\n" % len(body)) + len(body) if body else 0


def _get(fields: Fields, name: str) -> Any:
    return _value(fields[name]) if name in fields else None


def _index(choice: Fields) -> int:
    return _number(choice.get("index", _NULL)) or 0


def _says_nothing(choice: Fields) -> bool:
    bare = ("logprobs", "finish_reason", *_IDS)
    return (
        bytes(choice.get("delta", b"")) == b"{}"
        and "actscope" not in choice
        and all(bytes(choice.get(name, _NULL)) == b"null" for name in bare)
    )


def _is_error(body: bytes) -> bool:
    try:
        found = _value(body)
    except _MALFORMED:
        return False
    return isinstance(found, dict) and isinstance(found.get("error"), dict)
