"""The scripted engine's HTTP side: the upstream dialect of OpenAI's API, and `/scripted/…` for tests."""

from __future__ import annotations

import asyncio
import codecs
import time
import zlib
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from aiohttp import web
from support.gateway.scripted import MAX_CONTEXT, SENTENCE, Part, Script, ScriptedEngine, Sequence
from support.gateway.scripted_tokens import ASSISTANT, BOS, USER

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Refused(Exception):
    """A request that the engine does not take."""

    def __init__(self, status: int, message: str, param: str | None, code: str) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"error": {"message": message, "type": "invalid_request_error", "param": param, "code": code}}


def make_app(engine: ScriptedEngine, key: str = "") -> web.Application:
    """The engine's paths; vLLM's control side is apart. With a `key`, those under /v1 need it."""
    app = web.Application(client_max_size=1 << 26, middlewares=[_guard(key)] if key else [])
    http = ScriptedHttp(engine)
    app.router.add_post("/v1/chat/completions", http.chat)
    app.router.add_post("/v1/completions", http.text)
    app.router.add_get("/v1/models", http.models)
    app.router.add_get("/health", http.health)
    app.router.add_post("/scripted/release", http.release)
    app.router.add_get("/scripted/state", http.state)
    app.router.add_post("/v1/embeddings", http.echo)
    app.router.add_post("/tokenize", http.echo)
    app.router.add_route("*", "/v1/echo", http.echo)
    app.router.add_route("*", "/v1/echo/{rest:.*}", http.echo)
    app.router.add_post("/v1/slowly", http.slowly)
    app.router.add_post("/v1/moved", http.moved)
    app.router.add_post("/sleep", http.echo)
    if not engine.is_vllm:
        _add_controls(app, ScriptedControls(engine, engine.parts[0]))
    return app


def _guard(key: str) -> Any:
    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path.startswith("/v1") and request.headers.get("authorization") != f"Bearer {key}":
            return web.json_response({"error": "Unauthorized"}, status=401)
        return await handler(request)

    return guard


def make_control_app(engine: ScriptedEngine, part: Part) -> web.Application:
    """One part's control side."""
    app = web.Application()
    _add_controls(app, ScriptedControls(engine, part))
    app.router.add_get("/v1/actscope/recording", lambda request: _recording(part))
    app.router.add_post("/v1/actscope/requests/{id}/mark", ScriptedControls(engine, part).mark)
    return app


def _add_controls(app: web.Application, controls: ScriptedControls) -> None:
    app.router.add_get("/v1/actscope/probes", controls.probes)
    app.router.add_put("/v1/actscope/probes/{id}", controls.put_probe)
    app.router.add_delete("/v1/actscope/probes/{id}", controls.delete_probe)


async def _recording(part: Part) -> web.Response:
    return web.json_response({"recording": True, "sites": [f"layers.{n}.resid_post" for n in part.layers]})


class ScriptedControls:
    """Probes of one part, and marks, which are only written down."""

    def __init__(self, engine: ScriptedEngine, part: Part) -> None:
        self._engine = engine
        self._part = part

    async def probes(self, request: web.Request) -> web.Response:
        return web.json_response(self._part.table())

    async def put_probe(self, request: web.Request) -> web.Response:
        part, name, body = self._part, request.match_info["id"], await request.json()
        if len(body["vector"]) != part.card.d_model:
            message = f"vector: expected {part.card.d_model} numbers, found {len(body['vector'])}"
            return _error(Refused(400, message, "vector", "invalid_probe"))
        if not part.has(body["site"]):
            return _error(Refused(400, f"{body['site']} is another stage's", "site", "site_elsewhere"))
        every = [(s, probe) for p in self._engine.parts if p.replica == part.replica for s, probe in p.probes.items()]
        taken = [slot for slot, probe in every if probe["id"] == name]
        slot = taken[0] if taken else next(s for s in range(100) if s not in dict(every))
        del body["vector"]
        part.put(slot, {**body, "id": name})
        part.new_generation()
        return web.json_response({"slot": slot, **part.probes[slot]})

    async def delete_probe(self, request: web.Request) -> web.Response:
        part, name = self._part, request.match_info["id"]
        for slot, probe in list(part.probes.items()):
            if probe["id"] == name:
                del part.probes[slot]
                part.new_generation()
                return web.json_response(probe)
        return _error(Refused(404, f"no probe {name!r}", None, "probe_not_found"))

    async def mark(self, request: web.Request) -> web.Response:
        found = {
            "part": self._part.number,
            "replica": self._part.replica,
            "request": request.match_info["id"],
            **await request.json(),
        }
        self._engine.marks.append(found)
        told = {"request": found["request"], "state": "pending", "running": False, "rows": 0, "missing": 0}
        return web.json_response({**told, "forgotten": [], "dropped": []})


class ScriptedHttp:
    """Handlers. The body's types are trusted: only this project's tests call."""

    def __init__(self, engine: ScriptedEngine) -> None:
        self._engine = engine

    async def health(self, request: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def models(self, request: web.Request) -> web.Response:
        model = {"id": self._engine.model, "object": "model", "created": 0, "owned_by": "x", "root": self._engine.model}
        return web.json_response({"object": "list", "data": [model]})

    async def release(self, request: web.Request) -> web.Response:
        self._engine.released.set()
        await asyncio.sleep(0)
        self._engine.released.clear()
        return web.json_response({})

    async def state(self, request: web.Request) -> web.Response:
        engine = self._engine
        state = {"headers": engine.last_headers, "aborted": engine.aborted, "marks": engine.marks}
        return web.json_response({**state, "body": engine.last_body.decode()})

    # Paths that a gateway only passes on

    async def echo(self, request: web.Request) -> web.Response:
        """What has come, and a header that is nobody's business."""
        self._engine.last_headers = dict(request.headers)
        body = await request.read()
        what = {"method": request.method, "path": request.raw_path, "n": len(body), "crc": zlib.crc32(body)}
        headers = {"x-secret": "1", "set-cookie": "a=b", "content-disposition": "inline"}
        return web.json_response(what, status=201, headers=headers)

    async def slowly(self, request: web.Request) -> web.StreamResponse:
        """Answer each line of the body as it comes; a line says what else is to happen."""
        kind = "text/event-stream" if request.query.get("events") else "application/x-test"
        response = web.StreamResponse(headers={"content-type": kind})
        await response.prepare(request)
        try:
            while line := await request.content.readline():
                await response.write(b"data: " + line.strip() + b"\n\n")
                if line == b"hang up\n":
                    assert request.transport is not None
                    request.transport.close()
                if line == b"hold\n":
                    await self._engine.released.wait()
        except (asyncio.CancelledError, ConnectionResetError):
            self._engine.aborted.append("slowly")
            raise
        return response

    async def moved(self, request: web.Request) -> web.Response:
        raise web.HTTPTemporaryRedirect("/v1/echo")

    # Completions

    async def chat(self, request: web.Request) -> web.StreamResponse:
        return await self._complete(request, chat=True)

    async def text(self, request: web.Request) -> web.StreamResponse:
        return await self._complete(request, chat=False)

    async def _complete(self, request: web.Request, chat: bool) -> web.StreamResponse:
        self._engine.last_headers = dict(request.headers)
        self._engine.last_body = await request.read()
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
        return Sequence(
            request,
            self.engine.ring_id(request),
            prompt,
            n,
            ends,
            self.script,
            self.engine.tokens.cycle(SENTENCE),
            replica=self.engine.next_replica(),
        )

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
        if self.chat:
            self._tell(answer, "prompt_token_ids", self.sequences[0].prompt)
        return web.Response(body=msgspec.json.encode(answer), content_type="application/json")

    def _whole_choice(self, index: int, seq: Sequence, text: str) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": index, "finish_reason": seq.finish_reason, "logprobs": None}
        choice |= {"message": {"role": "assistant", "content": text}} if self.chat else {"text": text}
        self._tell(choice, "token_ids", None if self.script.withhold_ids else seq.tokens)
        if not self.chat:
            self._tell(choice, "prompt_token_ids", seq.prompt)
        if self.body.get("echo") and not self._ids_wanted:
            choice["text"] = str(self.body["prompt"]) + choice["text"]
        return choice

    def _tell(self, fields: dict[str, Any], name: str, ids: list[int] | None) -> None:
        """Token ids where they are asked for; vLLM has null where they are not, or are not to be seen."""
        if self._ids_wanted:
            fields[name] = ids
        elif self.engine.is_vllm:
            fields[name] = None

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
                head = self._envelope([opening], ".chunk")
                self._tell(head, "prompt_token_ids", seq.prompt)
                await self._send(response, head)
            if self.script.swallow_at == len(seq.tokens) - 1:
                continue
            text = decoder.decode(b"".join(self.engine.tokens.bytes_of[t] for t in ids), seq.finish_reason is not None)
            choice: dict[str, Any] = {"index": index, "finish_reason": seq.finish_reason, "logprobs": None}
            choice |= {"delta": {"content": text}} if self.chat else {"text": text}
            self._tell(choice, "token_ids", None if self.script.withhold_ids else ids)
            if not self.chat:
                self._tell(choice, "prompt_token_ids", seq.prompt if first else None)
            if self.body.get("echo") and first and not self._ids_wanted:
                choice["text"] = str(self.body["prompt"]) + choice["text"]
            first = False
            if self.chat and not text and seq.finish_reason is None and self.engine.is_vllm:
                await self._send_void(response, choice)
                continue
            await self._send(response, self._envelope([choice], ".chunk"))

    async def _send_void(self, response: web.StreamResponse, choice: dict[str, Any]) -> None:
        """A token without text: vLLM's parsers send a chunk for it only if token ids are asked for."""
        if self._ids_wanted:
            await self._send(response, self._envelope([choice | {"delta": {}}], ".chunk"))

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
