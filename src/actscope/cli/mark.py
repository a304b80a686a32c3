"""actscope mark: keep a request of a running server, even after the request has ended."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import typer

from actscope.cli.common import options
from actscope.cli.common.engines import ask, engine_cards, refusal
from actscope.errors import RecordingError, SettingsError
from actscope.ring.request_ids import ring_ids

if TYPE_CHECKING:
    import httpx

_WORDS = {
    "keeping": "kept so far; its later rows are kept too, until it ends",
    "kept": "kept",
    "pending": "the request has not begun; it will be kept once it does",
}


def mark(
    request: Annotated[
        str, typer.Argument(metavar="REQUEST", help="Id of the request, as the page and the API show it.")
    ] = "",
    last: Annotated[bool, typer.Option("--last", help="Mark the request that began last.")] = False,
    all_running: Annotated[bool, typer.Option("--all", help="Mark all running requests.")] = False,
    why: Annotated[str, typer.Option(metavar="TEXT", help="Reason, stored in the recording.")] = "by hand",
    before: Annotated[
        str, typer.Option(metavar="LENGTH", help="Keep only this much before its last row, e.g. '20 tokens' or 5s.")
    ] = "",
    after: Annotated[
        str, typer.Option(metavar="LENGTH", help="Keep only this much after its last row, e.g. '64 tokens' or 10s.")
    ] = "",
    wait: Annotated[
        float, typer.Option(metavar="SECONDS", help="Time to wait for a request that has not begun.")
    ] = 0.0,
    engine: options.Engine = "",
    as_json: options.Json = False,
) -> None:
    """Keep a request of a server that runs with --record: its rows in the flight recorder, and its later rows until it ends.

    Marking twice changes nothing. Exits 2 when its rows have expired, or when the server has no recording.

    Example: actscope mark chatcmpl-4be1c5d7 --why "odd answer"
    """
    if sum(map(bool, (request, last, all_running))) != 1:
        raise SettingsError("expected exactly one of REQUEST, --last and --all")
    body: dict[str, Any] = {"why": why} | {k: v for k, v in (("before", before), ("after", after)) if v}
    if request:
        marks = [_mark(engine, request, body | ({"wait": wait} if wait else {}))]
    else:
        which = "last" if last else "running"
        marks = _ask(engine, "/v1/actscope/recording/marks", body | {"which": which})["marks"]
        if last and not marks:
            raise RecordingError("the engine has seen no request yet")
    typer.echo(json.dumps(marks) if as_json else "\n".join(map(_line, marks)) or "no request is running")


def _mark(engine: str, request: str, body: dict[str, Any]) -> Any:
    """Mark a request under the first of its names that the engine knows: a long id is shortened in recordings."""
    names = ring_ids(request)
    for name in names:
        try:
            return _ask(engine, f"/v1/actscope/requests/{quote(name, safe='')}/mark", body)
        except RecordingError:
            if name == names[-1]:
                raise
    raise AssertionError("an id has at least one name")


def _ask(engine: str, path: str, body: dict[str, Any]) -> Any:
    """Send the mark to every part of the engine, and return the answer of the first part.

    Raises:
        UpstreamError: No engine is running, or a part does not answer.
        RecordingError: A part refused the mark. Carries its message.
    """
    cards = engine_cards(engine)
    answers = [ask(card, "POST", path, body) for card in cards]
    for card, answer in zip(cards, answers, strict=True):
        if answer.is_error:
            raise RecordingError(_refusal(card.model, answer))
    return answers[0].json()


def _refusal(model: str, answer: httpx.Response) -> str:
    """Return the engine's message. An engine that cannot record (for example a replay) has none, and gets one here."""
    return str(
        refusal(answer).get("message")
        or f"the running engine ({model}) has no recording (status {answer.status_code}); "
        "start one that records with: actscope serve MODEL --record DIR"
    )


def _line(marked: dict[str, Any]) -> str:
    line = f"{marked['request']}: {marked['rows']} positions, {_WORDS.get(marked['state'], marked['state'])}"
    for name, words in (("forgotten", "already expired"), ("dropped", "dropped by a full queue")):
        gone = ", ".join(f"{first} to {after - 1}" for first, after in marked[name])
        line += f"; {words}: positions {gone}" if gone else ""
    return line
