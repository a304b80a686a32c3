"""HTTP server of the replay, for the gateway on the same machine: health, the model and the probes; completions are refused."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from actscope.engines.controls import probe_routes
from actscope.engines.http import ERROR_HANDLERS, error_response, json_response, listening, model_list
from actscope.engines.replay.facts import RecordedModel
from actscope.probes import Bank, Probe
from actscope.probes.bank import DescribedProbe
from actscope.ring.discovery import EngineCard


class Replayed(Protocol):
    """The engine that is served. Its methods may be called from any thread. If they raise ProbeError, nothing is changed."""

    card: EngineCard
    model: RecordedModel

    @property
    def bank(self) -> Bank:
        """Return the probes in force. Callers must not modify them."""

    @property
    def healthy(self) -> bool:
        """Return whether the replay has not failed."""

    def put_probe(self, probe: Probe) -> DescribedProbe:
        """Add or replace a probe from the next step on. Return its entry of `Bank.describe`."""

    def remove_probe(self, probe_id: str) -> None:
        """Remove a probe from the next step on."""


def create_app(engine: Replayed) -> Starlette:
    """Create the application with the routes that a gateway uses."""
    routes = _ReplayRoutes(engine)
    return Starlette(
        routes=[
            Route("/health", routes.health),
            Route("/v1/models", routes.models),
            Route("/v1/chat/completions", routes.refuse, methods=["POST"]),
            Route("/v1/completions", routes.refuse, methods=["POST"]),
            Route("/v1/responses", routes.refuse, methods=["POST"]),
            *probe_routes(_ReplayProbes(engine)),
        ],
        exception_handlers=ERROR_HANDLERS,
    )


class _ReplayProbes:
    """Probe controls of the replay. Changes run off the event loop, one after another."""

    def __init__(self, engine: Replayed) -> None:
        self._engine = engine

    def table(self) -> bytes:
        return self._engine.bank.table()

    async def put(self, probe: Probe) -> DescribedProbe:
        return await run_in_threadpool(self._engine.put_probe, probe)

    async def remove(self, probe_id: str) -> None:
        await run_in_threadpool(self._engine.remove_probe, probe_id)


class _ReplayRoutes:
    def __init__(self, engine: Replayed) -> None:
        self._engine = engine

    async def health(self, http: Request) -> Response:
        if not self._engine.healthy:
            return error_response(503, "the replay has stopped; see its log", kind="server_error")
        return json_response({"status": "ok"})

    async def models(self, http: Request) -> Response:
        return model_list(self._engine.card.model, self._engine.card.max_context)

    async def refuse(self, http: Request) -> Response:
        model = self._engine.model.name
        message = (
            f"this is a recording of {model} and cannot answer prompts. To prompt the model: actscope serve {model}"
        )
        return error_response(400, message, code="recording")


class SocketServer:
    """Serves an application on a private Unix socket, on a thread of its own, until closed."""

    def __init__(self, app: Starlette, path: Path) -> None:
        self._leaving = ExitStack()
        listener = self._leaving.enter_context(listening(path))
        config = uvicorn.Config(app, ws="none", log_config=None, access_log=False, lifespan="off")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [listener]}, name="actscope-replay-http", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop the server and remove the socket."""
        self._server.should_exit = self._server.force_exit = True
        self._thread.join()
        self._leaving.close()
