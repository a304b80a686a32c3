"""HTTP routes that every engine serves for the gateway: probes, recording state and marks. They need no model."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Annotated, Literal, Protocol, TypedDict, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from actscope.engines.http import answering_errors, error_response, json_response, read_body, read_json
from actscope.errors import ProbeError, RequestRefused, SettingsError
from actscope.probes import Bank, Probe, probe_from_json
from actscope.probes.bank import DescribedProbe
from actscope.recording.flight.marks import MarkResult, MarkState
from actscope.recording.flight.recorder import FlightRecorder
from actscope.recording.flight.windows import Range, TokensOrTime
from actscope.runtime.decoding import decode_json

#: How long a mark waits for a submitted request that has no row yet.
_LONGEST_WAIT_S = 3600.0
#: How long a mark waits, in seconds, for rows on their way to the recorder, and for a request that is not known here yet. Clients
#: see a request's scores in the other ring, and may be ahead.
_ON_THEIR_WAY_S, _NOT_YET_KNOWN_S, _RETRY_S = 5.0, 0.5, 0.05

B = TypeVar("B", bound=msgspec.Struct)


class ProbeRegistry(Protocol):
    """Interface for changing an engine's probes. Called on the server's event loop, which must not block."""

    def table(self) -> bytes:
        """Return the probes in force, as `Bank.table`."""
        ...

    async def put(self, probe: Probe) -> DescribedProbe:
        """Add a probe, or replace the one with its id, from the next step on.

        Returns its entry of `Bank.describe`. Raises ProbeError or SiteError, and changes nothing, if it does not fit.
        """
        ...

    async def remove(self, probe_id: str) -> None:
        """Remove a probe from the next step on. Raises ProbeError if no probe has that id."""
        ...


def control_routes(
    registry: ProbeRegistry,
    flight: FlightRecorder | None = None,
    has: Callable[[str], bool] = lambda request: False,
    also: Callable[[], Mapping[str, object]] = dict,
    name_of: Callable[[str], str] = str,
    reason: str = "",
    read_up: Callable[[], Future[None]] | None = None,
) -> list[Route]:
    """Return the routes for probes and the recording.

    Args:
        registry: Where probes are changed.
        flight: The flight recorder. Without one, the state says so and marks are refused.
        has: Whether a request was submitted and has not ended. A mark waits for such a request even if it has no row yet.
        also: Further facts for the recording's state.
        name_of: Name in the recording of a request that is marked by the engine's own id.
        reason: Why there is no flight recorder although there should be one.
        read_up: Returns a future that is done when all rows published so far are with the flight recorder. None: they always are.
    """
    recording = RecordingRoutes(flight, has, also, name_of, reason, read_up)
    return [
        *probe_routes(registry),
        Route("/v1/actscope/recording", recording.describe),
        Route("/v1/actscope/recording/marks", recording.mark_several, methods=["POST"]),
        Route("/v1/actscope/requests/{id}/mark", recording.mark, methods=["POST"]),
    ]


def probe_routes(registry: ProbeRegistry) -> list[Route]:
    """Return the routes GET /v1/actscope/probes, and PUT and DELETE /v1/actscope/probes/{id}."""
    probes = ProbeRoutes(registry)
    return [
        Route("/v1/actscope/probes", probes.table),
        Route("/v1/actscope/probes/{id}", probes.put, methods=["PUT"]),
        Route("/v1/actscope/probes/{id}", probes.remove, methods=["DELETE"]),
    ]


class ProbeRoutes:
    """Handlers for reading, adding and removing probes."""

    def __init__(self, registry: ProbeRegistry) -> None:
        self._registry = registry

    async def table(self, http: Request) -> Response:
        """Answer with the table of the probes in force."""
        return Response(self._registry.table(), media_type="application/json")

    @answering_errors
    async def put(self, http: Request) -> Response:
        """Add the probe in the body or replace the one with its id, and answer with its description."""
        probe = probe_from_json(http.path_params["id"], await read_json(http))
        return json_response(await self._registry.put(probe))

    @answering_errors
    async def remove(self, http: Request) -> Response:
        """Remove a probe: 204, or 404 if no probe has that id."""
        try:
            await self._registry.remove(http.path_params["id"])
        except ProbeError as error:
            return error_response(404, str(error))
        return Response(status_code=204)


def shown(bank: Bank, slot: int) -> DescribedProbe:
    """Return the client view of the probe in a column. Raises ProbeError if it was removed meanwhile."""
    for one in bank.describe():
        if one["slot"] == slot:
            return one
    raise ProbeError(
        f"the probe in column {slot} was removed before it could be shown; GET the table to see what there is"
    )


class MarkBody(msgspec.Struct, forbid_unknown_fields=True):
    """Body of a mark.

    `before` and `after` are how much to keep around the request's last row: 20 (tokens), "20 tokens" or "5s".
    """

    why: Annotated[str, msgspec.Meta(max_length=1000)] | None = None
    before: str | int | None = None
    after: str | int | None = None
    wait: Annotated[float, msgspec.Meta(ge=0, le=3600)] = 0.0  # seconds to wait for a request that has not begun

    def extent(self, name: Literal["before", "after"]) -> TokensOrTime | None:
        """Return `before` or `after` parsed, or None if absent. Raises RequestRefused if unreadable."""
        text = self.before if name == "before" else self.after
        try:
            return None if text is None else TokensOrTime.parse(text)
        except SettingsError as error:
            raise RequestRefused(str(error), param=name) from error


class SeveralBody(MarkBody):
    """Body of a mark of several requests: all that are running, or the one that began last."""

    which: Literal["running", "last"] = "running"


class RecordingRoutes:
    """Handlers for the recording. Without a flight recorder, marks are refused, with the `reason` if there should be one."""

    def __init__(
        self,
        flight: FlightRecorder | None,
        has: Callable[[str], bool],
        also: Callable[[], Mapping[str, object]],
        name_of: Callable[[str], str],
        reason: str = "",
        read_up: Callable[[], Future[None]] | None = None,
    ) -> None:
        self._flight = flight
        self._read_up = read_up
        self._reason = reason
        self._has = has
        self._also = also
        self._name_of = name_of

    async def describe(self, http: Request) -> Response:
        """Answer with the state of the recording; `{"recording": false}`, and the reason, without a flight recorder."""
        if self._flight is not None:
            return json_response({**self._flight.describe(), **self._also()})
        return json_response(
            {"recording": False, **({"failure": self._reason, **self._also()} if self._reason else {})}
        )

    @answering_errors
    async def mark(self, http: Request) -> Response:
        """Mark one request.

        If the request has no row yet, wait for one: for the body's `wait` seconds, or an hour if that is 0 and it is in flight.
        """
        if self._flight is None:
            return _not_recording(self._reason)
        body = _mark_body(await read_body(http), MarkBody)
        await self._await_rows()
        request = self._name_of(http.path_params["id"])
        marked = await self._marked(self._flight, request, body)
        until = time.monotonic() + _NOT_YET_KNOWN_S
        while marked.state == "unknown" and self._read_up is not None and time.monotonic() < until:
            await asyncio.sleep(_RETRY_S)  # its rows are published after its scores: there is nothing yet to wait on
            request = self._name_of(http.path_params["id"])
            marked = await self._marked(self._flight, request, body)
        return _not_kept(marked) or _answer(self._flight, described(marked))

    async def _marked(self, flight: FlightRecorder, request: str, body: MarkBody) -> MarkResult:
        wait = body.wait or (_LONGEST_WAIT_S if self._has(request) else 0.0)
        marking = flight.mark(
            request, body.why or "", before=body.extent("before"), after=body.extent("after"), wait_seconds=wait
        )
        return await asyncio.wrap_future(marking)

    async def _await_rows(self) -> None:
        """Wait until the rows published so far are with the flight recorder. A recorder that is late does not hold marks up."""
        if self._read_up is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.wrap_future(self._read_up()), _ON_THEIR_WAY_S)

    @answering_errors
    async def mark_several(self, http: Request) -> Response:
        """Mark all running requests, or the one that began last, and answer with the marks."""
        if self._flight is None:
            return _not_recording(self._reason)
        body = _mark_body(await read_body(http), SeveralBody)
        await self._await_rows()
        choose = self._flight.mark_running if body.which == "running" else self._flight.mark_last
        marked = await asyncio.wrap_future(
            choose(body.why or "", before=body.extent("before"), after=body.extent("after"))
        )
        return _answer(self._flight, {"marks": [described(one) for one in marked]})


class DescribedMark(TypedDict):
    """Result of a mark as JSON; see `MarkResult`."""

    request: str
    state: MarkState
    running: bool
    rows: int
    forgotten: tuple[Range, ...]
    dropped: tuple[Range, ...]
    missing: int


def described(marked: MarkResult) -> DescribedMark:
    """Return a mark's result as JSON."""
    return {
        "request": marked.request,
        "state": marked.state,
        "running": marked.running,
        "rows": marked.rows,
        "forgotten": marked.forgotten,
        "dropped": marked.dropped,
        "missing": marked.missing,
    }


def _answer(flight: FlightRecorder, data: Mapping[str, object]) -> Response:
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
        lost = "none of its rows has reached the recorder"
        if marked.missing:
            lost = f"all {marked.missing} of its positions have left the flight recorder"
        return error_response(410, f"too late to keep {request!r}: {lost}", code="gone")
    return None


def _mark_body(raw: bytes, kind: type[B]) -> B:
    return decode_json(raw or b"{}", kind, RequestRefused, "the body of a mark cannot be read")


def _not_recording(reason: str) -> Response:
    message = f"this server keeps no recording: {reason or 'start it with --record DIR to be able to keep requests'}"
    return error_response(409, message, code="not_recording")
