"""actscope why: why a token came when it came."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated
from urllib.parse import parse_qs, quote, urlsplit

import msgspec
import typer

from actscope.cli.common import options
from actscope.cli.common.engines import asked
from actscope.cli.common.output import legible, show
from actscope.errors import SettingsError, UpstreamError
from actscope.metrics.reader import MeasurementFile, read_measurements
from actscope.metrics.timeline.kernel import lines_around, meanwhile
from actscope.metrics.timeline.picture import picture

#: Most tokens that are asked for with --json.
_MOST_TOKENS = 4096


class DrawnPart(msgspec.Struct):
    """A part of a gap, as it is drawn."""

    name: str
    start_ns: int
    ns: int


class DrawnGap(msgspec.Struct):
    """A token and the gap before it."""

    index: int
    text: str
    start_ns: int
    gap_ns: int
    parts: list[DrawnPart]
    unexplained_ns: int
    why: str


class DrawnClock(msgspec.Struct):
    """The boot for which the times of an answer are valid."""

    boot_id: str


class DrawnTimeline(msgspec.Struct):
    """What is drawn of an answer of the gateway."""

    clock: DrawnClock

    request: str
    state: str
    measured_at: str
    completion_tokens: int
    slowest: int | None
    tokens: list[DrawnGap]


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
    url: Annotated[
        str,
        typer.Option(
            metavar="URL",
            envvar="ACTSCOPE_GATEWAY",
            help="Address of the gateway. The link that it printed at start brings the token along; else it is read from "
            "ACTSCOPE_TOKEN.",
        ),
    ] = "http://127.0.0.1:6969",
    access: Annotated[
        str, typer.Option("--access", metavar="TOKEN", envvar="ACTSCOPE_TOKEN", help="Token of the gateway.")
    ] = "",
    measurements: Annotated[
        list[Path] | None,
        typer.Option(
            "--metrics",
            metavar="FILE",
            help="File of `actscope metrics system`, run meanwhile: say what the kernel saw of the engine. Repeatable.",
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
    base, access = _address(url, access)
    name = request or _newest(base, access)
    path = f"/v1/actscope/requests/{quote(name, safe='')}/timeline"
    if as_json and token < 0:
        show(json.dumps(_ask(base, f"{path}?limit={_MOST_TOKENS}", access)))
        return
    index = _slowest(base, path, access) if token < 0 else token
    found = _ask(base, f"{path}?token={index}", access)
    if as_json:
        show(json.dumps(found))
        return
    drawn = _decoded(legible(found), base)
    show("\n".join([*_lines(drawn), *(_kernel(drawn, files) if files else ())]))


def _slowest(base: str, path: str, access: str) -> int:
    found = _decoded(_ask(base, f"{path}?limit=1", access), base)
    if found.slowest is None:
        raise UpstreamError(f"request {found.request}: the times of its tokens are not known yet, or no longer")
    return found.slowest


def _decoded(found: dict[str, object], base: str) -> DrawnTimeline:
    try:
        return msgspec.convert(found, DrawnTimeline)
    except msgspec.ValidationError as error:
        raise UpstreamError(f"{base}: the timeline is not of this version of actscope: {error}") from error


def _address(url: str, access: str) -> tuple[str, str]:
    """Return the base address and the token, which the link that a gateway prints has in it."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise SettingsError(f"--url {url}: expected an address such as http://127.0.0.1:6969")
    inside = parse_qs(parts.query).get("token", [""])[0]
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/').removesuffix('/v1')}", access or inside


def _newest(base: str, access: str) -> str:
    listed = _ask(base, "/v1/actscope/requests", access).get("requests")
    if not isinstance(listed, list) or not listed:
        raise UpstreamError(f"{base} knows no request yet: send one, then ask again")
    return str(listed[0].get("request"))


def _ask(base: str, path: str, access: str) -> dict[str, object]:
    status, found = asked(base, path, access)
    if status == 200:
        return found
    error = found.get("error")
    said = str(error.get("message")) if isinstance(error, dict) else "it is not a gateway of this version of actscope"
    if status in (401, 403):
        said += "; give the link that the gateway printed at start as --url, or its token in ACTSCOPE_TOKEN"
    raise UpstreamError(f"{base} answers {status}: {said}")


def _kernel(found: DrawnTimeline, files: Sequence[MeasurementFile]) -> list[str]:
    gap = found.tokens[0]
    system = [line for file in files for line in file.system]
    return ["", *meanwhile(lines_around(system, gap.start_ns, gap.start_ns + gap.gap_ns, found.clock.boot_id))]


def _lines(found: DrawnTimeline) -> list[str]:
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
