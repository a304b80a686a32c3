"""The scripted engine's HTTP side: the upstream dialect of OpenAI's API, and `/scripted/…` for tests."""

from __future__ import annotations

import asyncio
import codecs
import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from aiohttp import web

from actscope.testing.scripted import MAX_CONTEXT, SENTENCE, Script, ScriptedEngine, Sequence
from actscope.testing.scripted_tokens import ASSISTANT, BOS, USER

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Refused(Exception):
    """A request that the engine does not take."""

    def __init__(self, status: int, message: str, param: str | None, code: str) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"error": {"message": message, "type": "invalid_request_error", "param": param, "code": code}}


def make_app(engine: ScriptedEngine) -> web.Application:
    """The engine's paths."""
    app = web.Application(client_max_size=1 << 26)
    http = ScriptedHttp(engine)
    app.router.add_post("/v1/chat/completions", http.chat)
    app.router.add_post("/v1/completions", http.text)
    app.router.add_get("/v1/models", http.models)
    app.router.add_get("/health", http.health)
    app.router.add_get("/v1/actscope/probes", http.probes)
    app.router.add_put("/v1/actscope/probes/{id}", http.put_probe)
    app.router.add_delete("/v1/actscope/probes/{id}", http.delete_probe)
    app.router.add_post("/scripted/release", http.release)
    app.router.add_get("/scripted/state", http.state)
    return app


class ScriptedHttp:
    """Handlers. The body's types are trusted: only this project's tests call."""

    def __init__(self, engine: ScriptedEngine) -> None:
        self._engine = engine

    async def health(self, request: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def models(self, request: web.Request) -> web.Response:
        return web.json_response(
            {"object": "list", "data": [{"id": self._engine.model, "object": "model", "created": 0, "owned_by": "x"}]}
        )

    async def release(self, request: web.Request) -> web.Response:
        self._engine.released.set()
        await asyncio.sleep(0)
        self._engine.released.clear()
        return web.json_response({})

    async def state(self, request: web.Request) -> web.Response:
        return web.json_response({"headers": self._engine.last_headers, "aborted": self._engine.aborted})

    # Probes

    async def probes(self, request: web.Request) -> web.Response:
        return web.json_response(self._engine.table())

    async def put_probe(self, request: web.Request) -> web.Response:
        engine, name, body = self._engine, request.match_info["id"], await request.json()
        if len(body["vector"]) != engine.card.d_model:
            message = f"vector: expected {engine.card.d_model} numbers, found {len(body['vector'])}"
            return _error(Refused(400, message, "vector", "invalid_probe"))
        taken = [s for s, p in engine.probes.items() if p["id"] == name]
        slot = taken[0] if taken else next(s for s in range(100) if s not in engine.probes)
        del body["vector"]
        engine.put(slot, {**body, "id": name})
        engine.new_generation()
        return web.json_response({"slot": slot, **engine.probes[slot]})

    async def delete_probe(self, request: web.Request) -> web.Response:
        engine, name = self._engine, request.match_info["id"]
        for slot, probe in list(engine.probes.items()):
            if probe["id"] == name:
                del engine.probes[slot]
                engine.new_generation()
                return web.json_response(probe)
        return _error(Refused(404, f"no probe {name!r}", None, "probe_not_found"))

    # Completions

    async def chat(self, request: web.Request) -> web.StreamResponse:
        return await self._complete(request, chat=True)

    async def text(self, request: web.Request) -> web.StreamResponse:
        return await self._complete(request, chat=False)

    async def _complete(self, request: web.Request, chat: bool) -> web.StreamResponse:
        self._engine.last_headers = dict(request.headers)
        body = await request.json()
        script = msgspec.convert(body.get("scripted") or {}, Script)
        if script.redirect:
            raise web.HTTPTemporaryRedirect(script.redirect)
        try:
            call = ScriptedCall(self._engine, body, request.headers["x-request-id"], chat, script)
        except Refused as refused:
            return _error(refused)
        try:
            return await (call.stream(request) if body.get("stream") else call.whole())
        except (asyncio.CancelledError, ConnectionResetError):  # while it waited, or while it wrote
            for seq in call.sequences:
                self._engine.end(seq, aborted=True)
            raise


class ScriptedCall:
    """One completion request: its choices one after the other, token by token."""

    def __init__(self, engine: ScriptedEngine, body: dict[str, Any], name: str, chat: bool, script: Script) -> None:
        self.engine, self.body, self.chat, self.script = engine, body, chat, script
        if body.get("model") not in (None, engine.model):
            raise Refused(404, f"The model `{body['model']}` does not exist.", "model", "model_not_found")
        if chat and not engine.has_chat_template:
            raise Refused(400, "this model has no chat template: use /v1/completions", "messages", "no_chat_template")
        if script.refuse:
            raise Refused(script.refuse, "scripted refusal", None, "scripted")
        self.id = f"{'chatcmpl' if chat else 'cmpl'}-{name}"
        self.sequences = [self._sequence(r, p) for r, p in self._requests()]

    def _requests(self) -> list[tuple[str, list[int]]]:
        n = self.body.get("n") or 1
        stems = (
            [(self.id, self._render())] if self.chat else [(f"{self.id}-{i}", p) for i, p in enumerate(self._prompts())]
        )
        return [(stem if n == 1 else f"{i}_{stem}", prompt) for stem, prompt in stems for i in range(n)]

    def _render(self) -> list[int]:
        turns = [[USER, *self.engine.tokens.encode(str(m["content"]))] for m in self.body["messages"]]
        return [BOS, *(t for turn in turns for t in turn), ASSISTANT]

    def _prompts(self) -> list[list[int]]:
        prompt = self.body["prompt"]
        many = prompt if isinstance(prompt, list) and not isinstance(prompt[0], int) else [prompt]
        return [[BOS, *self.engine.tokens.encode(p)] if isinstance(p, str) else p for p in many]

    def _sequence(self, request: str, prompt: list[int]) -> Sequence:
        wanted = self.body.get("max_completion_tokens") or self.body.get("max_tokens") or 16
        if len(prompt) + wanted > MAX_CONTEXT:
            message = f"at most {MAX_CONTEXT} tokens fit, {len(prompt)} + {wanted} were asked for"
            raise Refused(400, message, "messages", "context_length_exceeded")
        ends = self.script.eos_after is not None and self.script.eos_after < wanted
        n = self.script.eos_after + 1 if ends and self.script.eos_after is not None else wanted
        return Sequence(request, prompt, n, ends, self.script, self.engine.tokens.cycle(SENTENCE))

    async def whole(self) -> web.Response:
        texts = []
        for seq in self.sequences:
            async for _ in self.engine.run(seq):
                pass
            texts.append(b"".join(self.engine.tokens.bytes_of[t] for t in seq.tokens).decode("utf-8", "replace"))
        choices = [
            self._whole_choice(i, seq, text) for i, (seq, text) in enumerate(zip(self.sequences, texts, strict=True))
        ]
        answer = self._envelope(choices, "") | {"usage": self._usage()}
        if self.chat and self._ids_wanted:
            answer["prompt_token_ids"] = self.sequences[0].prompt
        return web.json_response(answer)

    def _whole_choice(self, index: int, seq: Sequence, text: str) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": index, "finish_reason": seq.finish_reason, "logprobs": None}
        choice |= {"message": {"role": "assistant", "content": text}} if self.chat else {"text": text}
        if self._ids_wanted:
            choice["token_ids"] = seq.tokens
            if not self.chat:
                choice["prompt_token_ids"] = seq.prompt
        return choice

    async def stream(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        try:
            for index, seq in enumerate(self.sequences):
                await self._stream_one(response, index, seq)
        except ConnectionAbortedError:
            assert request.transport is not None
            request.transport.close()
            return response
        except RuntimeError as error:
            await self._send(
                response, {"error": {"message": str(error), "type": "server_error", "param": None, "code": 500}}
            )
            return response
        if (self.body.get("stream_options") or {}).get("include_usage"):
            await self._send(response, self._envelope([], ".chunk") | {"usage": self._usage()})
        await response.write(b"data: [DONE]\n\n")
        return response

    async def _stream_one(self, response: web.StreamResponse, index: int, seq: Sequence) -> None:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        first = True
        async for ids in self.engine.run(seq):
            if first and self.chat:
                opening = {"index": index, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
                extra = {"prompt_token_ids": seq.prompt} if self._ids_wanted else {}
                await self._send(response, self._envelope([opening], ".chunk") | extra)
            text = decoder.decode(b"".join(self.engine.tokens.bytes_of[t] for t in ids), seq.finish_reason is not None)
            choice: dict[str, Any] = {"index": index, "finish_reason": seq.finish_reason, "logprobs": None}
            choice |= {"delta": {"content": text}} if self.chat else {"text": text}
            if self._ids_wanted:
                choice["token_ids"] = ids
                if first and not self.chat:
                    choice["prompt_token_ids"] = seq.prompt
            first = False
            await self._send(response, self._envelope([choice], ".chunk"))

    @property
    def _ids_wanted(self) -> bool:
        return self.body.get("return_token_ids") is True

    async def _send(self, response: web.StreamResponse, event: dict[str, Any]) -> None:
        if self.script.stamp:
            event["sent_ns"] = time.monotonic_ns()
        await response.write(b"data: " + msgspec.json.encode(event) + b"\n\n")

    def _envelope(self, choices: list[dict[str, Any]], suffix: str) -> dict[str, Any]:
        name = f"chat.completion{suffix}" if self.chat else "text_completion"
        return {"id": self.id, "object": name, "created": 1_700_000_000, "model": self.engine.model, "choices": choices}

    def _usage(self) -> dict[str, int]:
        prompt, made = len(self.sequences[0].prompt), sum(len(s.tokens) for s in self.sequences)
        return {"prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made}


def _error(refused: Refused) -> web.Response:
    return web.json_response(refused.body, status=refused.status)
