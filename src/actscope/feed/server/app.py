"""HTTP API of the feed: its routes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Query, Request
from starlette.responses import Response

from actscope._version import __version__
from actscope.errors import FeedEnded, FeedError, FeedNotReady, RequestRefused, SiteError
from actscope.feed.buffer.allocator import Grant
from actscope.feed.messages import GROUP
from actscope.feed.server import schemas, telemetry
from actscope.feed.server.responses import GrantedRows, HeldResponse, RowsResponse, StreamResponse, disconnected
from actscope.feed.server.service import Service
from actscope.feed.settings import FeedSettings
from actscope.runtime.boot import boot_id
from actscope.serving.access import Guard
from actscope.serving.errors import Problem, install_handlers
from actscope.serving.telemetry.gpus import Gpus
from actscope.sites import select_from

_ENDPOINTS = {
    "GET /activations": "rows as JSON",
    "GET /activations/tensor": "rows as bytes, or as a safetensors file",
    "GET /activations/stream": "several batches in one response",
    "GET /stats": "runtime statistics",
    "GET /statistics": "mean and standard deviation of each dimension",
    "POST /refresh": "drop all ready rows; new rows follow",
    "GET /near": "unix socket that gives consumers on the same machine the shared memory",
    "GET /metrics": "the same for Prometheus",
    "GET /openapi.json": "this API",
}
_MOST = 1 << 40

NumSamples = Annotated[
    int, Query(ge=1, le=_MOST, description="number of rows; the end of the last epoch may return fewer")
]
Sites = Annotated[
    str, Query(max_length=2000, description="which of the feed's sites: `all`, `0-3`, `last`, full names; default: all")
]
Group = Annotated[
    str, Query(pattern=GROUP, description="within a group each row goes to one consumer; every group gets all rows")
]
Wait = Annotated[float, Query(ge=0, le=86400, description="longest wait for rows that are not ready yet, in seconds")]
WithLabels = Annotated[bool, Query(description="return the label of each row")]
_REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": schemas.Error, "description": what}
    for status, what in {
        400: "bad parameters, or too many samples",
        401: "the token is missing or wrong",
        403: "Host or Origin is not on the list",
        404: "the feed does not have this site",
        410: "all epochs have been served",
        429: "too many requests, or groups, at once",
        503: "not ready yet: see Retry-After; or the feed has failed",
    }.items()
}
_REFUSALS[429]["headers"] = _REFUSALS[503]["headers"] = {
    "Retry-After": {"description": "seconds", "schema": {"type": "integer"}}
}
_BINARY = {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}

router = APIRouter(responses=_REFUSALS)


def create_app(service: Service) -> FastAPI:
    """Return the feed as an ASGI application. Its lifespan starts and stops the service."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with service.running():
            yield

    app = FastAPI(
        title="actscope feed",
        version=__version__,
        description="Fresh, shuffled activations for trainers; see docs/feed.md.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    app.state.service = service
    app.state.gpus = Gpus()
    install_handlers(app)
    app.include_router(router)
    app.include_router(telemetry.router, responses=_REFUSALS)
    app.add_middleware(Guard, settings=service.settings)
    _describe_limits(app, service.settings)
    return app


def _describe_limits(app: FastAPI, settings: FeedSettings) -> None:
    """Add this feed's limits of rows per request to its OpenAPI document."""
    plain = app.openapi
    limits = {
        ("/activations", "num_samples"): min(settings.most_rows, settings.max_json_samples),
        ("/activations/tensor", "num_samples"): settings.most_rows,
        ("/activations/stream", "batch_size"): settings.most_rows,
    }

    def openapi() -> dict[str, Any]:
        document = plain()
        for (path, name), most in limits.items():
            for parameter in document["paths"][path]["get"]["parameters"]:
                if parameter["name"] == name:
                    parameter["schema"]["maximum"] = most
        return document

    app.openapi = openapi  # type: ignore[method-assign]


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


Feed = Annotated[Service, Depends(_service)]


@router.get("/", operation_id="about")
async def about(feed: Feed) -> schemas.About:
    """Return the model, the dataset, the sites and the endpoints of this feed."""
    return schemas.About(version=__version__, status=feed.state, endpoints=_ENDPOINTS, **feed.broker.describe())


@router.get("/activations", operation_id="activations", response_model=schemas.Activations)
async def activations(
    request: Request,
    feed: Feed,
    num_samples: NumSamples = 1,
    sites: Sites = "",
    group: Group = "default",
    wait: Wait = 0.0,
    labels: WithLabels = False,
) -> Response:
    """Return the next rows of a group as JSON."""
    most = min(feed.settings.most_rows, feed.settings.max_json_samples)
    if num_samples > most:
        raise _too_many(num_samples, most, " as JSON: use /activations/tensor")
    async with _held(request, feed, sites, group, num_samples, wait, most_values=feed.settings.max_json_values) as held:
        body = await asyncio.to_thread(held.batch.as_json, feed.buffer_stats(), labels=labels)
        patience = feed.settings.lease_seconds
        return HeldResponse(body, held.hand_over(), patience_s=patience, media_type="application/json")


@router.get(
    "/activations/tensor",
    operation_id="activationsTensor",
    response_class=Response,
    responses={200: _BINARY | {"description": "the rows; X-Actscope-* and X-Tensor-* headers describe them"}},
)
async def activations_tensor(
    request: Request,
    feed: Feed,
    num_samples: NumSamples = 1,
    sites: Sites = "",
    group: Group = "default",
    wait: Wait = 0.0,
    format: Annotated[
        str, Query(pattern="^(raw|safetensors)$", description="little-endian values, or a safetensors file with labels")
    ] = "raw",
) -> Response:
    """Return the next rows of a group as bytes: [num_samples, width], or [num_samples, sites, width] of several sites."""
    async with _held(request, feed, sites, group, num_samples, wait) as held:
        batch = held.batch
        if format == "raw":
            parts = await batch.gathered()
            return RowsResponse(batch, parts, held.hand_over(), patience_s=feed.settings.lease_seconds)
        file = await asyncio.to_thread(batch.as_safetensors)
        return HeldResponse(
            file,
            held.hand_over(),
            patience_s=feed.settings.lease_seconds,
            media_type="application/octet-stream",
            headers=batch.headers(),
        )


@router.get(
    "/activations/stream",
    operation_id="activationsStream",
    response_class=Response,
    responses={200: _BINARY | {"description": "concatenated batches; the headers give the shape of one batch"}},
)
async def activations_stream(
    request: Request,
    feed: Feed,
    batch_size: Annotated[int, Query(ge=1, le=_MOST, description="rows of a batch")],
    batches: Annotated[int, Query(ge=1, le=_MOST, description="number of batches")] = 1,
    sites: Sites = "",
    group: Group = "default",
    wait: Wait = 60.0,
) -> Response:
    """Return several batches in one response, each as soon as it is ready.

    The response ends early when all epochs have been served, after a batch that is shorter than the others, and when a batch
    is not ready within `wait` seconds. Its length is therefore not known in advance, and it has no Content-Length.
    """
    if batch_size > feed.settings.most_rows:
        raise _too_many(batch_size, feed.settings.most_rows, "", param="batch_size")
    async with _held(request, feed, sites, group, batch_size, wait) as held:
        held.hand_over()
        return StreamResponse(feed, held.batch.sites, group, batch_size, batches, wait, held.batch.grant, held.owner)


@router.get("/stats", operation_id="stats")
async def stats(feed: Feed) -> schemas.Stats:
    """Return runtime statistics of the feed."""
    broker = feed.broker
    return schemas.Stats(
        state=feed.state,
        ready=broker.buffer.available("") > 0,
        failure=broker.failure or None,
        ready_rows=broker.buffer.available(""),
        valid_samples=broker.buffer.available(""),
        window_rows=feed.settings.window_rows,
        windows=broker.buffer.windows(),  # type: ignore[arg-type]  # pydantic checks them
        serves=feed.settings.serves,
        max_samples=feed.settings.most_rows,
        memory_bytes=broker.memory.layout.total_bytes if broker.memory else 0,
        seed=feed.settings.seed,
        position=str(broker.buffer.lowest_position()),
        groups=broker.buffer.groups(),  # type: ignore[arg-type]
        counts=schemas.Counts(**asdict(broker.buffer.counts), held_rows=broker.buffer.held_rows),
        consumers=feed.n_consumers,
        generator=schemas.Generator(**feed.generator_stats()),
        sites={name: schemas.Normalisation(**one.summary()) for name, one in broker.statistics.items()},
        uptime_seconds=time.monotonic() - feed.started,
    )


@router.get("/statistics", operation_id="statistics")
async def statistics(feed: Feed) -> schemas.Statistics:
    """Return normalisation statistics of each site over all rows so far, with mean and deviation of each dimension."""
    if feed.broker.facts is None:
        raise _not_ready(FeedNotReady("the model is being loaded", retry_after=2))
    return schemas.Statistics(
        sites={name: schemas.SiteStatistics(**one.vectors()) for name, one in feed.broker.statistics.items()}
    )


@router.post("/refresh", operation_id="refresh")
async def refresh(feed: Feed) -> schemas.Refreshed:
    """Drop the ready rows of all groups, so that the next rows are new."""
    return schemas.Refreshed(dropped_rows=feed.broker.refresh())


@router.get("/near", operation_id="near")
async def near(feed: Feed) -> schemas.Near:
    """Return the unix socket through which consumers on the same machine get the shared memory."""
    return schemas.Near(socket=feed.socket_path, boot_id=boot_id())


# --- parts ---


class _Held:
    """Grant and request slot of one request. Both are given up once the response has been sent, or cannot be."""

    def __init__(self, feed: Service, batch: GrantedRows, owner: object) -> None:
        self._feed, self.batch, self.owner = feed, batch, owner
        self.handed_over = False

    def hand_over(self) -> Callable[[bool], None]:
        """Transfer ownership to a response. It must call the returned function once, with whether the rows were delivered."""
        self.handed_over = True
        return self._give_up

    def _give_up(self, delivered: bool) -> None:
        self._feed.broker.release(self.batch.grant.id, self.owner, delivered=delivered)
        self._feed.leave()


@asynccontextmanager
async def _held(
    request: Request, feed: Service, sites: str, group: str, n: int, wait: float, *, most_values: int = 0
) -> AsyncIterator[_Held]:
    """Grant the next rows of a group, waiting only while the client is connected. Given up at exit unless handed over."""
    if not feed.enter():
        raise Problem(
            429,
            f"{feed.settings.max_requests} requests for rows are in progress, which is the maximum (setting: max_requests)",
            code="too_many_requests",
            headers={"Retry-After": "1"},
        )
    held: _Held | None = None
    try:
        chosen = await _chosen(feed, sites, wait)
        _check_values(feed, n, len(chosen), most_values)
        owner = object()
        grant = await _take(request, feed, group, n, owner, wait)
        held = _Held(feed, GrantedRows(feed.broker, grant, chosen), owner)
        yield held
    finally:
        if held is None:
            feed.leave()
        elif not held.handed_over:
            held.hand_over()(False)


async def _chosen(feed: Service, sites: str, wait: float) -> list[int]:
    """Return the indices of the requested sites, waiting at most `wait` seconds for the model to be loaded."""
    facts = await feed.broker.loaded(wait)
    if facts is None:
        if feed.broker.failure:
            raise _failed(FeedError(f"the feed has failed: {feed.broker.failure}"))
        raise _not_ready(FeedNotReady("the model is being loaded", retry_after=2))
    try:
        return select_from(sites, facts.sites)
    except SiteError as error:
        raise Problem(404, str(error), param="sites", code="unknown_site") from error


async def _take(request: Request, feed: Service, group: str, n: int, owner: object, wait: float) -> Grant:
    """Grant rows as `Broker.take` does, with its errors as Problems. Stops waiting when the client disconnects."""
    taking = asyncio.ensure_future(feed.broker.take(group, n, owner, wait=wait))
    gone = asyncio.ensure_future(disconnected(request.receive))
    try:
        await asyncio.wait({taking, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not taking.done():
            raise Problem(408, "the client has disconnected", code="gone")
        return taking.result()
    except FeedNotReady as error:
        raise _not_ready(error) from error
    except FeedEnded as error:
        raise Problem(410, str(error), code="ended") from error
    except RequestRefused as error:
        status = 429 if error.code == "too_many_groups" else 400
        raise Problem(
            status,
            str(error),
            param=error.param,
            code=error.code,
            headers={"Retry-After": "1"} if status == 429 else None,
        ) from error
    except FeedError as error:
        raise _failed(error) from error
    finally:
        taking.cancel()
        gone.cancel()


def _check_values(feed: Service, n: int, n_sites: int, most: int) -> None:
    """Raise a Problem with status 400 for more than `most` values, before rows are granted. 0 sets no limit."""
    assert feed.broker.facts is not None
    a_row = n_sites * feed.broker.facts.width
    if most and n * a_row > most:
        raise _too_many(n, max(1, most // a_row), f" as JSON of {a_row} values per row: use /activations/tensor")


def _too_many(n: int, most: int, where: str, param: str = "num_samples") -> Problem:
    return Problem(400, f"{param} {n}: expected 1 to {most}{where}", param=param, code="too_many_samples")


def _not_ready(error: FeedNotReady) -> Problem:
    after = max(1, round(error.retry_after))
    return Problem(503, f"{error}; retry, or set wait=", code="not_ready", headers={"Retry-After": str(after)})


def _failed(error: FeedError) -> Problem:
    return Problem(503, str(error), code="feed_failed", headers={"Retry-After": "60"})
