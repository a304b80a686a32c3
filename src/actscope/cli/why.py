"""actscope why: why a token came when it came."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from actscope.cli.common import options
from actscope.cli.common.output import legible, show
from actscope.cli.metrics.timelines import DEFAULT_URL, MOST_TOKENS, GatewayTimelines, GatewayToken, GatewayUrl
from actscope.errors import SettingsError, UpstreamError
from actscope.metrics.reader import MeasurementFile, read_measurements
from actscope.metrics.timeline.answer import AnsweredTimeline
from actscope.metrics.timeline.kernel import GapSpan, meanwhile
from actscope.metrics.timeline.picture import picture


def why(
    request: Annotated[
        str,
        typer.Argument(
            metavar="REQUEST", help="Id of the request, as the page and the API show it. By default the newest."
        ),
    ] = "",
    token: Annotated[
        int,
        typer.Option("--token", metavar="N", help="Number of the token in the answer, from 0. By default the slowest."),
    ] = -1,
    url: GatewayUrl = DEFAULT_URL,
    access: GatewayToken = "",
    measurements: Annotated[
        list[Path] | None,
        typer.Option(
            "--metrics",
            metavar="FILE",
            help="File of `actscope metrics system` or `io`, run meanwhile: say what held up the engine. Repeatable.",
        ),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Say in one sentence why a token came when it came, and draw the parts of the time before it.

    The parts sum to the time since the token before, or since the request for token 0: waiting for the engine, passes of others,
    the model, sampling, the way to the gateway, and a client that reads slowly. See docs/timeline.md.

    Example: actscope why chatcmpl-4be1c5d7 --token 17
    """
    files = [read_measurements(path) for path in measurements or ()]
    if token < -1:
        raise SettingsError(f"--token {token}: expected the number of a token, from 0")
    gateway = GatewayTimelines(url, access)
    name = request or gateway.requests()[0]
    if as_json and token < 0:
        show(json.dumps(gateway.answer(name, f"limit={MOST_TOKENS}")))
        return
    index = _slowest(gateway, name) if token < 0 else token
    found = gateway.answer(name, f"token={index}")
    if as_json:
        show(json.dumps(found))
        return
    drawn = gateway.decoded(legible(found))
    show("\n".join([*_lines(drawn), *(_kernel(drawn, files) if files else ())]))


def _slowest(gateway: GatewayTimelines, request: str) -> int:
    found = gateway.decoded(gateway.answer(request, "limit=1"))
    if found.slowest is None:
        raise UpstreamError(f"request {found.request}: the times of its tokens are not known yet, or no longer")
    return found.slowest


def _kernel(found: AnsweredTimeline, files: Sequence[MeasurementFile]) -> list[str]:
    gap = found.tokens[0]
    system = [line for file in files for line in file.system]
    io = [line for file in files for line in file.io]
    return ["", *meanwhile(system, io, GapSpan(gap.start_ns, gap.end_ns, found.clock.boot_id))]


def _lines(found: AnsweredTimeline) -> list[str]:
    gap = found.tokens[0]
    bars = [(part.name, part.start_ns, part.ns) for part in gap.parts]
    where = "as they left the gateway" if found.measured_at == "client" else "as the engine drew them"
    return [
        gap.why,
        "",
        *picture(gap.start_ns, gap.gap_ns, bars, gap.unexplained_ns),
        "",
        f"Token {gap.index} of {found.completion_tokens} of {found.request} ({found.state}): "
        f"{json.dumps(gap.text, ensure_ascii=False)}. Tokens are timed {where}.",
    ]
