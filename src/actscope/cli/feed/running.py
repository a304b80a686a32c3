"""Run a feed in the foreground: announce its address, and show progress until the first window is full."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from actscope.cli.common.interrupts import resumable
from actscope.cli.common.output import show, show_banner
from actscope.cli.common.progress import ProgressBar
from actscope.errors import FeedError
from actscope.feed.planning.host_memory import gigabytes
from actscope.feed.planning.memory_estimate import estimate
from actscope.feed.settings import FeedSettings
from actscope.runtime.printable import one_line

if TYPE_CHECKING:
    from actscope.feed.server.run import FeedServer

log = logging.getLogger("actscope.feed")

_LOOK_S = 0.2


def run(settings: FeedSettings, *, as_json: bool, handlers: Sequence[logging.Handler]) -> None:
    """Serve until interrupted.

    A feed that fails after its first window keeps answering: it serves the rows that are ready, and answers further requests
    with the reason of the failure.

    Args:
        settings: Settings of the feed. They are assumed to fit the memory of this machine.
        as_json: Print address, token and settings as one JSON line on standard output, instead of text on standard error.
        handlers: Log handlers, which uvicorn uses too.

    Raises:
        FeedError: The feed failed before its first window was full.
        SettingsError: The port cannot be bound, or the start position is refused.
    """
    from actscope.feed.server.run import open_server

    server = open_server(settings)
    logging.getLogger("uvicorn").handlers[:] = handlers
    filling: list[asyncio.Task[str]] = []

    def started(taken: FeedSettings) -> None:
        if as_json:
            show(_as_json(taken))
        else:
            announce(taken)
        filling.append(asyncio.get_running_loop().create_task(_first_window(server)))

    server.on_started = started
    with resumable(lambda: _stopped(server)):
        server.run_here()
    failures = [task.result() for task in filling if task.done() and not task.cancelled()]
    if any(failures):
        raise FeedError(f"the feed could not start: {failures[0]}")


async def _first_window(server: FeedServer) -> str:
    """Show progress until the first window is full. On failure stop the server and return the reason; otherwise return ""."""
    service, told = server.service, ""
    with ProgressBar() as bars:
        while service.state in ("loading", "filling") and not service.stopping:
            phase = service.generator_stats()["phase"]
            rows = next((w["rows"] for w in service.broker.buffer.windows() if w["state"] == "filling"), None)
            if rows is not None:
                bars.update("first window", int(str(rows)), server.settings.window_rows)
            elif phase != told:
                log.info("%s", phase)
                told = phase
            await asyncio.sleep(_LOOK_S)
    if service.state == "failed" and not service.stopping:
        server.should_exit = True
        return service.broker.failure
    if service.state == "serving":
        log.info("serving: the first window is full, %.0f rows/s", service.generator_stats()["rows_per_second"])
    return ""


def _stopped(server: FeedServer) -> str:
    """Say where a feed that was stopped goes on."""
    if server.settings.state and not server.service.state_failure:
        return f"stopped: the position is kept in {server.settings.state}; repeat the command to go on there"
    position = server.service.position
    if position is None:
        return "stopped before any row was ready; repeat the command to start over"
    why = "its state file is out of date" if server.settings.state else "no position is kept without --state FILE"
    return f"stopped: {why}; to go on where all groups are, add --resume {position}"


def announce(settings: FeedSettings) -> None:
    """Print the address, the token and the buffer of the feed, and two ways to get rows."""
    url, layout = settings.url, estimate(settings).layout
    reach = f"  open to  {settings.reach}\n" if settings.reach else ""
    where = f"{layout.n_sites} site(s) x {layout.width} {layout.dtype}"
    what = one_line(f"{settings.model} ({settings.sites}) over {settings.dataset}")
    show_banner(
        f"\n  actscope feeds {what}\n\n"
        f"  address  {url}\n"
        f"  token    {settings.token}\n{reach}"
        f"  buffer   {gigabytes(layout.total_bytes)}: {settings.buffer_rows:,} rows, {where}; mixed over "
        f"{settings.window_rows:,} rows\n\n"
        f'  curl     curl -H "Authorization: Bearer {settings.token}" "{url}/activations?num_samples=2&wait=60"\n'
        f"  Python   from actscope.feed import FeedClient\n"
        f'           FeedClient("{url}", token="{settings.token}").get_activations_tensor(1024)\n\n'
        "  Ctrl-C stops it.\n",
    )


def _as_json(settings: FeedSettings) -> str:
    told = asdict(settings)
    return json.dumps({"url": settings.url, "token": told.pop("token"), "settings": told})
