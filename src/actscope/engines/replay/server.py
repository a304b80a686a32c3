"""The replay's HTTP side, for the gateway on the same machine: health, the model, the probes, and a clear no to questions."""

from __future__ import annotations

import socket
import threading
from pathlib import Path
from typing import Any, Protocol

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from actscope.engines.replay.facts import RecordedModel
from actscope.errors import ActscopeError, ProbeError, RingError
from actscope.probes import Bank, Probe, probe_from_json
from actscope.ring.runtime import EngineCard

MAX_BODY = 32 << 20


class Replayed(Protocol):
    """What is served. The methods may be called from any thread; they raise ProbeError, and then change nothing."""

    card: EngineCard
    model: RecordedModel

    @property
    def bank(self) -> Bank: ...

    @property
    def healthy(self) -> bool: ...

    def put_probe(self, probe: Probe) -> dict[str, Any]: ...

    def remove_probe(self, probe_id: str) -> None: ...


def create_app(engine: Replayed) -> Starlette:
    """The routes that a gateway asks of an engine."""
    routes = _Routes(engine)
    return Starlette(
        routes=[
            Route("/health", routes.health),
            Route("/v1/models", routes.models),
            Route("/v1/chat/completions", routes.refuse, methods=["POST"]),
            Route("/v1/completions", routes.refuse, methods=["POST"]),
            Route("/v1/actscope/probes", routes.probes),
            Route("/v1/actscope/probes/{id}", routes.put_probe, methods=["PUT"]),
            Route("/v1/actscope/probes/{id}", routes.delete_probe, methods=["DELETE"]),
        ]
    )


class _Routes:
    def __init__(self, engine: Replayed) -> None:
        self._engine = engine

    async def health(self, http: Request) -> Response:
        if not self._engine.healthy:
            return _error(503, "the replay has stopped; see its log", kind="server_error")
        return _json({"status": "ok"})

    async def models(self, http: Request) -> Response:
        card = self._engine.card
        model = {"id": card.model, "object": "model", "created": 0, "owned_by": "actscope"}
        return _json({"object": "list", "data": [{**model, "max_model_len": card.max_context}]})

    async def refuse(self, http: Request) -> Response:
        model = self._engine.model.name
        message = (
            f"this is a recording of {model}: it can be looked at, not asked. To ask the model: actscope serve {model}"
        )
        return _error(400, message, code="recording")

    async def probes(self, http: Request) -> Response:
        return Response(self._engine.bank.table(), media_type="application/json")

    async def put_probe(self, http: Request) -> Response:
        try:
            probe = probe_from_json(http.path_params["id"], msgspec.json.decode(await _body(http)))
            described = await run_in_threadpool(self._engine.put_probe, probe)
        except msgspec.DecodeError as error:
            return _error(400, f"the body is not valid JSON: {error}")
        except ActscopeError as error:
            return _error(400, str(error))
        return _json(described)

    async def delete_probe(self, http: Request) -> Response:
        try:
            await run_in_threadpool(self._engine.remove_probe, http.path_params["id"])
        except ProbeError as error:
            return _error(404, str(error))
        return Response(status_code=204)


async def _body(http: Request) -> bytes:
    body = bytearray()
    async for part in http.stream():
        body += part
        if len(body) > MAX_BODY:
            raise ProbeError(f"the body is larger than {MAX_BODY >> 20} MiB")
    return bytes(body)


def _json(data: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(data), status, media_type="application/json")


def _error(status: int, message: str, *, code: str | None = None, kind: str = "invalid_request_error") -> Response:
    return _json({"error": {"message": message, "type": kind, "param": None, "code": code}}, status)


class SocketServer:
    """Serves an app on a unix socket that only we may open, on a thread of its own, until closed."""

    def __init__(self, app: Starlette, path: Path) -> None:
        self._path = path
        self._listener = _listen(path)
        config = uvicorn.Config(app, ws="none", log_config=None, access_log=False, lifespan="off")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._listener]}, name="actscope-replay-http", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """End, and remove the socket."""
        self._server.should_exit = self._server.force_exit = True
        self._thread.join()
        self._listener.close()
        self._path.unlink(missing_ok=True)


def _listen(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(str(path))
        path.chmod(0o600)  # the directory is closed to others already
    except OSError as error:
        listener.close()
        raise RingError(f"{path}: cannot listen there ({error}): set ACTSCOPE_RUNTIME_DIR to a shorter path") from error
    listener.listen(64)
    return listener
