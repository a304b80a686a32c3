"""The routes that every engine answers for the gateway: its probes, what it records, and marks. No model is needed for them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import asdict
from typing import Annotated, Any, Literal, Protocol, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from actscope.engines.http import answering_errors, error_response, json_response, read_body, read_json
from actscope.errors import ProbeError, RequestRefused, SettingsError
from actscope.probes import Bank, Probe, probe_from_json
from actscope.recording.flight.marks import MarkResult
from actscope.recording.flight.recorder import FlightRecorder
from actscope.recording.flight.windows import TokensOrTime

#: How long a mark waits for a request that the engine has but has not begun.
_LONGEST_WAIT_S = 3600.0

B = TypeVar("B", bound=msgspec.Struct)


class ProbeRegistry(Protocol):
    """Where an engine takes changes of its probes. Called on the server's event loop, which must not be held up."""

    def table(self) -> bytes:
        """The probes in force, as `Bank.table`."""
        ...

    async def put(self, probe: Probe) -> dict[str, Any]:
        """Add or swap a probe from the next step on; how `Bank.describe` shows it.

        Raises ProbeError or SiteError, and changes nothing, when it does not fit.
        """
        ...

    async def remove(self, probe_id: str) -> None:
        """Take a probe out from the next step on. Raises ProbeError when there is none of that id."""
        ...


def control_routes(
    desk: ProbeRegistry,
    flight: FlightRecorder | None = None,
    has: Callable[[str], bool] = lambda request: False,
    also: Callable[[], dict[str, Any]] = dict,
) -> list[Route]:
    """Probes, and the recording; without a flight recorder it is said that there is none, and marks are refused.

    `also` is what this engine has to say of its recording besides. `has` says whether a request has come and not ended, though it
    may have no row yet: marks wait for such a one.
    """
    return [*probe_routes(desk), *recording_routes(flight, has, also)]


def probe_routes(desk: ProbeRegistry) -> list[Route]:
    """GET /v1/actscope/probes, PUT and DELETE /v1/actscope/probes/{id}."""
    probes = ProbeRoutes(desk)
    return [
        Route("/v1/actscope/probes", probes.table),
        Route("/v1/actscope/probes/{id}", probes.put, methods=["PUT"]),
        Route("/v1/actscope/probes/{id}", probes.remove, methods=["DELETE"]),
    ]


def recording_routes(
    flight: FlightRecorder | None, has: Callable[[str], bool], also: Callable[[], dict[str, Any]] = dict
) -> list[Route]:
    """GET /v1/actscope/recording, and marks of one request by its id, of the last one, or of all that run."""
    recording = RecordingRoutes(flight, has, also)
    return [
        Route("/v1/actscope/recording", recording.describe),
        Route("/v1/actscope/recording/marks", recording.mark_several, methods=["POST"]),
        Route("/v1/actscope/requests/{id}/mark", recording.mark, methods=["POST"]),
    ]


class ProbeRoutes:
    def __init__(self, desk: ProbeRegistry) -> None:
        self._desk = desk

    async def table(self, http: Request) -> Response:
        return Response(self._desk.table(), media_type="application/json")

    @answering_errors
    async def put(self, http: Request) -> Response:
        probe = probe_from_json(http.path_params["id"], await read_json(http))
        return json_response(await self._desk.put(probe))

    @answering_errors
    async def remove(self, http: Request) -> Response:
        try:
            await self._desk.remove(http.path_params["id"])
        except ProbeError as error:
            return error_response(404, str(error))
        return Response(status_code=204)


def shown(bank: Bank, slot: int) -> dict[str, Any]:
    """The probe in this column as clients are shown it. Raises ProbeError when it has been removed again already."""
    for one in bank.describe():
        if one["slot"] == slot:
            return one
    raise ProbeError(
        f"the probe in column {slot} was removed before it could be shown; GET the table to see what there is"
    )


class MarkBody(msgspec.Struct, forbid_unknown_fields=True):
    """`before`, `after`: how much to keep around the request's last row, such as 20 (tokens), "20 tokens" or "5s"."""

    why: Annotated[str, msgspec.Meta(max_length=1000)] | None = None
    before: str | int | None = None
    after: str | int | None = None
    wait: Annotated[float, msgspec.Meta(ge=0, le=3600)] = 0.0  # seconds, for a request that has not begun

    def extent(self, name: Literal["before", "after"]) -> TokensOrTime | None:
        text = getattr(self, name)
        try:
            return None if text is None else TokensOrTime.parse(text)
        except SettingsError as error:
            raise RequestRefused(str(error), param=name) from error


class SeveralBody(MarkBody):
    """`which`: all requests that run now, or the one that began last."""

    which: Literal["running", "last"] = "running"


class RecordingRoutes:
    """What is kept of the engine's requests. Without a flight recorder nothing is, and marks are refused."""

    def __init__(
        self, flight: FlightRecorder | None, has: Callable[[str], bool], also: Callable[[], dict[str, Any]]
    ) -> None:
        self._flight = flight
        self._has = has
        self._also = also

    async def describe(self, http: Request) -> Response:
        return json_response({**self._flight.describe(), **self._also()} if self._flight else {"recording": False})

    @answering_errors
    async def mark(self, http: Request) -> Response:
        if self._flight is None:
            return _not_recording()
        request, body = http.path_params["id"], _mark_body(await read_body(http), MarkBody)
        wait = body.wait or (_LONGEST_WAIT_S if self._has(request) else 0.0)
        marking = self._flight.mark(
            request, body.why or "", before=body.extent("before"), after=body.extent("after"), wait_seconds=wait
        )
        marked = await asyncio.wrap_future(marking)
        return _not_kept(marked) or _answer(self._flight, described(marked))

    @answering_errors
    async def mark_several(self, http: Request) -> Response:
        if self._flight is None:
            return _not_recording()
        body = _mark_body(await read_body(http), SeveralBody)
        choose = self._flight.mark_running if body.which == "running" else self._flight.mark_last
        marked = await asyncio.wrap_future(
            choose(body.why or "", before=body.extent("before"), after=body.extent("after"))
        )
        return _answer(self._flight, {"marks": [described(one) for one in marked]})


def described(marked: MarkResult) -> dict[str, Any]:
    """A mark's answer as JSON."""
    return {**asdict(marked), "missing": marked.missing}


def _answer(flight: FlightRecorder, data: dict[str, Any]) -> Response:
    failure = flight.failure
    if failure is None:
        return json_response(data)
    message = f"the recording has failed, nothing more is kept: {failure}"
    return error_response(503, message, code="recording_failed")


def _not_kept(marked: MarkResult) -> Response | None:
    request = marked.request[:200]
    if marked.state == "unknown":
        return error_response(404, f"no request {request!r} is known to this engine", code="request_not_found")
    if marked.state == "forgotten":
        lost = f"all {marked.missing} of its positions have left the flight recorder"
        return error_response(410, f"too late to keep {request!r}: {lost}", code="gone")
    return None


def _mark_body(raw: bytes, kind: type[B]) -> B:
    try:
        return msgspec.json.decode(raw or b"{}", type=kind)
    except msgspec.DecodeError as error:
        raise RequestRefused(f"the body of a mark cannot be read: {error}") from error


def _not_recording() -> Response:
    message = "this server keeps no recording: start it with --record DIR to be able to keep requests"
    return error_response(409, message, code="not_recording")
