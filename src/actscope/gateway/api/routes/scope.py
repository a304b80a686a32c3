"""Routes of actscope's own API: the engine, its probes, and its requests."""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping, Sequence
from dataclasses import asdict
from typing import Annotated

import msgspec
from fastapi import APIRouter, Header, Query, Request
from fastapi import Path as PathParam
from starlette.responses import Response

from actscope._version import __version__
from actscope.gateway.api import schemas as models
from actscope.gateway.api.dependencies import Gateway, Here
from actscope.gateway.api.events import EventStream, resume_point
from actscope.gateway.api.payloads import encode, whole
from actscope.gateway.api.replica_schemas import ReplicaInfo, RingCounts
from actscope.gateway.api.routes.openai import ERRORS, Responses, no_features, several_requests
from actscope.gateway.api.wire import WireRequest
from actscope.gateway.counters.reports import sources_of, troubles_of
from actscope.gateway.scores.matcher import read_of
from actscope.gateway.scores.replica import Replica
from actscope.gateway.scores.request_log import RequestLog
from actscope.gateway.timeline.answer import MOST_TOKENS, TimelineSource, timeline_of
from actscope.gateway.timeline.schemas import Timeline
from actscope.gateway.upstream.discovery import Cards
from actscope.gateway.upstream.engine import EngineConnection
from actscope.gateway.upstream.upstream import json_object
from actscope.serving.errors import Problem
from actscope.serving.json_body import JsonRoute

router = APIRouter(tags=["actscope"], responses=ERRORS, route_class=JsonRoute)

ProbeId = Annotated[str, PathParam(pattern=r"^[A-Za-z0-9._-]{1,128}$", description="letters, digits, `.`, `_`, `-`")]

_EVENTS: Responses = {
    200: {
        "description": "Server-sent events; `Events` has the type of the data of each",
        "content": {"text/event-stream": {"schema": {"$ref": "#/components/schemas/Events"}}},
    },
    204: {"description": "The client already has all events"},
    410: {"description": "The event or the request is no longer in the log"},
}


@router.get("/health")
async def get_health(gateway: Here) -> models.Health:
    """Return the health of the gateway, and whether its engine is up."""
    return models.Health(status="ok", engine="up" if gateway.upstream.engine else "waiting")


@router.get("/v1/actscope/info")
async def get_info(gateway: Here) -> models.Info:
    """Return the engine behind the gateway, the gateway's limits, and counts of the rows read from the ring."""
    settings, engine = gateway.settings, gateway.upstream.engine
    limits = models.Limits(**{name: getattr(settings, name) for name in models.Limits.model_fields})
    counts = RingCounts(**asdict(engine.matcher.counts())) if engine and engine.matcher else None
    reports = await gateway.counters.all()
    return models.Info(
        version=__version__,
        engine=_engine_info(gateway),
        limits=limits,
        ring=counts,
        replicas=[_replica_info(engine, cards) for cards in engine.found.replicas] if engine else [],
        replicas_expected=engine.found.expected if engine else 0,
        scores=engine.without_scores if engine else "the engine is not up",
        counters=sources_of(reports),
        troubles=troubles_of(reports),
    )


def _replica_info(engine: EngineConnection, cards: Cards) -> ReplicaInfo:
    first = cards[0]
    replica = next((r for r in engine.matcher.replicas if r.id == first.id), None) if engine.matcher else None
    unread, silent = engine.unread_of(first.id), engine.controls.silent.get(first.id)
    silent = silent and f"its control API does not answer: {silent}"
    return ReplicaInfo(
        id=first.id,
        replica=first.replica,
        model=first.model,
        pid=first.pid,
        device=first.device,
        scores="unreadable" if unread else "read",
        controls="silent" if silent else "answer",
        why="; ".join(filter(None, (unread, silent, _other_probes(engine, replica)))) or None,
        generation=replica.table.generation if replica else None,
        probes=list(replica.table.columns.ids) if replica else [],
        ring=RingCounts(**asdict(read_of(replica))) if replica else None,
    )


def _engine_info(gateway: Gateway) -> models.EngineInfo:
    engine = gateway.upstream.engine
    if engine is None:
        return models.EngineInfo(state="waiting")
    names = models.EngineInfo.model_fields.keys() - {"state", "has_chat_template", "sae"}
    sae = engine.table.columns.sae
    return models.EngineInfo(
        state="up",
        has_chat_template=engine.card.has_chat_template if engine.card else True,
        sae=models.Sae(**msgspec.structs.asdict(sae)) if sae else None,
        **{name: getattr(engine.card, name, None) for name in names},
    )


def _other_probes(engine: EngineConnection, replica: Replica | None) -> str:
    """Return a text if an engine's probes are not those of the first engine, which `GET /v1/actscope/probes` lists; else ""."""
    first = engine.matcher.replicas[0] if engine.matcher and engine.matcher.replicas else None
    if replica is None or first is None or replica.table.digests == first.table.digests:
        return ""
    ours, theirs = replica.table.digests, first.table.digests
    names = sorted(name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name))
    return f"probes that are not those of engine {first.id}: {', '.join(names[:8])}; put or remove them again for all engines"


@router.get("/v1/actscope/probes", response_model=models.Probes)
async def list_probes(gateway: Here) -> Response:
    """List the probes that the engine has loaded."""
    status, body = await gateway.upstream.control(lambda c: c.probes())
    if status == 404 and not gateway.upstream.require().found.replicas:  # it runs without actscope, so it has no probes
        status, body = 200, encode({"generation": 0, "probes": []})
    if status != 200:
        return _pass(status, body)
    found = json_object(body)
    found.pop("digests", None)
    found.pop("features", None)  # columns of the ring are internal; `info` describes the SAE
    _show(gateway, found.get("probes", ()), learn=True)
    return Response(encode(found), media_type="application/json")


def _show(gateway: Gateway, probes: Sequence[MutableMapping[str, object]], *, learn: bool = False) -> None:
    """Turn the engine's descriptions of probes into the clients': without columns of the ring, with learnt display ranges.

    `learn`: read new scores first. `probes` are then all probes of the engine.
    """
    for probe in probes:
        probe.pop("slot", None)
    matcher = gateway.upstream.require().matcher
    if matcher is None:
        return
    if matcher.versions.are_shared:  # the engines count generations apart
        columns = matcher.table.columns
        numbers = dict(zip(columns.ids, columns.since, strict=True))
        for probe in probes:
            probe["since"] = numbers.get(str(probe["id"]), probe.get("since", 0))
    without = [probe for probe in probes if probe.get("range") is None]
    versions = [(str(probe["id"]), int(str(probe.get("since", 0)))) for probe in without]
    if learn:
        matcher.ranges.learn(versions)
    for probe, version in zip(without, versions, strict=True):
        probe.update(matcher.ranges.facts(version))


@router.put("/v1/actscope/probes/{id}", response_model=models.Probe)
async def put_probe(id: ProbeId, body: models.ProbeUpload, request: Request, gateway: Here) -> Response:
    """Add a probe, or replace the one with this id, while the engine runs."""
    probe = await request.body()
    return await _changed(gateway, *await gateway.upstream.control(lambda c: c.put_probe(id, probe)))


@router.delete("/v1/actscope/probes/{id}", response_model=models.Probe)
async def delete_probe(id: ProbeId, gateway: Here) -> Response:
    """Remove a probe while the engine runs."""
    return await _changed(gateway, *await gateway.upstream.control(lambda c: c.delete_probe(id)))


async def _changed(gateway: Gateway, status: int, answer: bytes) -> Response:
    """Return the engine's answer, and fetch its new probe table."""
    if status in (404, 405) and not gateway.upstream.require().found.replicas:
        raise Problem(409, "the engine runs without actscope: it has no probes", code="no_probes")
    if status >= 300:
        return _pass(status, answer)
    await gateway.upstream.require().refresh_table()
    if not answer:
        return Response(status_code=204)
    found = json_object(answer)
    _show(gateway, [found])
    return Response(encode(found), status, media_type="application/json")


def _pass(status: int, body: bytes) -> Response:
    json_object(body)
    return Response(body, status, media_type="application/json")


@router.get("/v1/actscope/requests")
async def list_requests(gateway: Here) -> models.Requests:
    """List the requests in flight and recent ones, newest first, including those sent directly to the engine."""
    newest_first = sorted(gateway.sessions, key=lambda log: log.began_ns, reverse=True)
    return models.Requests(requests=[_summary(log) for log in newest_first])


def _summary(log: RequestLog) -> models.RequestSummary:
    return models.RequestSummary(
        request=log.request,
        state=log.state,
        created=log.created,
        model=log.model,
        prompt_tokens=log.n_prompt,
        completion_tokens=log.completion_tokens,
        source=log.source,
    )


@router.get("/v1/actscope/requests/{id}", response_model=models.WholeRequest)
async def get_request(
    id: str,
    gateway: Here,
    features: Annotated[bool, Query(description="include the features of the engine's SAE")] = False,
) -> Response:
    """Return a request with all its tokens and scores."""
    log = _log(gateway, id)
    if features and log.columns.sae is None:
        raise no_features("features")
    answer: WireRequest = {**whole(log, features), "state": log.state}
    return Response(encode(answer), media_type="application/json")


@router.get("/v1/actscope/requests/{id}/timeline")
async def get_timeline(
    id: str,
    gateway: Here,
    token: Annotated[int | None, Query(ge=0, description="only this token of the answer, from 0")] = None,
    first: Annotated[int, Query(ge=0, description="the first token of the answer to return")] = 0,
    limit: Annotated[int, Query(ge=1, le=MOST_TOKENS, description="the most tokens to return")] = 256,
) -> Timeline:
    """Return when each token of a request came, and the parts of the time before it."""
    log = _log(gateway, id)
    engine = gateway.upstream.engine
    replicas = engine.matcher.replicas if engine and engine.matcher else ()
    ledger = next((replica.parts[-1].passes for replica in replicas if replica.id == log.replica), None)
    source = TimelineSource.of(log, ledger)
    found = await asyncio.to_thread(
        timeline_of, source, first if token is None else token, limit if token is None else 1
    )
    if token is not None and not found.tokens:
        raise Problem(
            404,
            f"request {log.request} has no token {token} whose times are known; it has {log.completion_tokens} tokens, and those "
            "that have not reached the client yet have no timeline",
            code="token_not_found",
        )
    return found


@router.delete("/v1/actscope/requests/{id}")
async def cancel_request(id: str, gateway: Here) -> models.Cancelled:
    """Cancel a request in flight, with all its choices. A request that has ended is not changed."""
    flight = gateway.sessions.flight(id)
    if flight is not None:
        flight.cancel()
        return models.Cancelled(request=id, state="aborted")
    log = _log(gateway, id)
    flight = gateway.sessions.flight_of(log)
    if flight is not None and log.state == "running":
        flight.cancel()
        return models.Cancelled(request=id, state="aborted")
    if log.state == "running":
        raise Problem(
            409, f"request {id} was sent to the engine directly: only its own client can cancel it", code="not_ours"
        )
    return models.Cancelled(request=id, state=log.state)


@router.get("/v1/actscope/requests/{id}/events", responses=_EVENTS, response_class=Response)
async def watch_request(
    id: str,
    gateway: Here,
    after: Annotated[int | None, Query(ge=0, description="send only events after this id")] = None,
    last_event_id: Annotated[
        str | None, Header(description="the same, sent by browsers on reconnect; takes precedence over `after`")
    ] = None,
) -> Response:
    """Stream the events of any request, from the start or after a given event."""
    log = _log(gateway, id)
    point = resume_point(log, last_event_id, after)
    if point and point == len(log.events) and log.state != "running":
        return Response(status_code=204)
    gateway.streams.admit()
    return EventStream(log, point, gateway.streams, gateway.settings.keep_alive_seconds)


def _log(gateway: Gateway, request: str) -> RequestLog:
    gateway.sessions.trim()
    log = gateway.sessions.get(request)
    if log is not None:
        return log
    several = gateway.sessions.candidates(request)
    if several:
        raise several_requests(request, several, "ask for")
    if gateway.sessions.was_forgotten(request):
        raise Problem(410, f"request {request} is no longer in the log", code="gone")
    raise Problem(404, f"no request {request[:200]!r}", code="request_not_found")
