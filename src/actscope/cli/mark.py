"""actscope mark: keep a request of a running server, even after the request has ended."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import typer

from actscope.cli.common import options
from actscope.cli.common.engines import ask, engine_replicas, refusal
from actscope.cli.common.output import legible, show
from actscope.errors import ActscopeError, RecordingError, SettingsError, UpstreamError
from actscope.ring.request_ids import ring_ids

if TYPE_CHECKING:
    import httpx

    from actscope.ring.discovery import EngineCard

#: A JSON object: the body of a mark, or what it came to.
Answer = dict[str, Any]

_WORDS = {
    "keeping": "kept so far; its later rows are kept too, until it ends",
    "kept": "kept",
    "pending": "the request has not begun; it will be kept once it does",
}


def mark(
    request: Annotated[
        str, typer.Argument(metavar="REQUEST", help="Id of the request, as the page and the API show it.")
    ] = "",
    last: Annotated[
        bool, typer.Option("--last", help="Mark the request that began last, in each engine of the server.")
    ] = False,
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
    body: Answer = {"why": why} | {k: v for k, v in (("before", before), ("after", after)) if v}
    if request:
        marks = [_mark(engine, request, body | ({"wait": wait} if wait else {}))]
    else:
        which = "last" if last else "running"
        answers = _ask_all(engine, "/v1/actscope/recording/marks", body | {"which": which})
        marks = [mark for answer in answers for mark in answer["marks"]]
        if last and not marks:
            raise RecordingError("the engine has seen no request yet")
    show(json.dumps(marks) if as_json else "\n".join(map(_line, legible(marks))) or "no request is running")


def _mark(engine: str, request: str, body: Answer) -> Answer:
    """Mark a request under the first of its names that an engine knows: a long id is shortened in recordings.

    Raises:
        UpstreamError: No engine is running, or one does not answer and no other has the request.
        RecordingError: No engine took the mark. Carries the message of the one that says most.
    """
    refused: list[ActscopeError] = []
    for name in ring_ids(request):
        try:
            return _ask(engine, f"/v1/actscope/requests/{quote(name, safe='')}/mark", body)
        except (RecordingError, UpstreamError) as error:
            refused.append(error)
    raise _most_telling(refused)


def _ask(engine: str, path: str, body: Answer) -> Answer:
    """Send the mark of one request to every engine of the server, and return the answer of the one that runs it.

    Raises:
        UpstreamError: No engine is running, or one does not answer and no other has the request.
        RecordingError: No engine took the mark. Carries the message of the one that says most.
    """
    found: list[Answer] = []
    refused: list[ActscopeError] = []
    for cards in engine_replicas(engine):
        try:
            found.append(_ask_parts(cards, path, body))
        except (RecordingError, UpstreamError) as error:
            refused.append(error)
    if not found:
        raise _most_telling(refused)
    return min(found, key=lambda answer: answer.get("state") == "pending")


def _ask_all(engine: str, path: str, body: Answer) -> list[Answer]:
    """Send a mark to every engine of the server, and return the answers. Raises like `_ask` if any refuses."""
    return [_ask_parts(cards, path, body) for cards in engine_replicas(engine)]


def _ask_parts(cards: list[EngineCard], path: str, body: Answer) -> Answer:
    """Send the mark to every part of an engine, and return the answer of the first part.

    Raises:
        UpstreamError: A part does not answer.
        RecordingError: A part refused the mark. Carries its message.
    """
    answers = [ask(card, "POST", path, body) for card in cards]
    for card, answer in zip(cards, answers, strict=True):
        if answer.is_error:
            raise (_Unknown if answer.status_code == 404 else RecordingError)(_refusal(card.model, answer))
    marked: Answer = answers[0].json()
    return marked


class _Unknown(RecordingError):
    """A mark of a request that an engine does not know."""


def _most_telling(refused: list[ActscopeError]) -> ActscopeError:
    return min(refused, key=lambda error: isinstance(error, _Unknown))


def _refusal(model: str, answer: httpx.Response) -> str:
    """Return the engine's message. An engine that cannot record (for example a replay) has none, and gets one here."""
    return str(
        refusal(answer).get("message")
        or f"the running engine ({model}) has no recording (status {answer.status_code}); "
        "start one that records with: actscope serve MODEL --record DIR"
    )


def _line(marked: Answer) -> str:
    line = f"{marked['request']}: {marked['rows']} positions, {_WORDS.get(marked['state'], marked['state'])}"
    for name, words in (("forgotten", "already expired"), ("dropped", "dropped by a full queue")):
        gone = ", ".join(f"{first} to {after - 1}" for first, after in marked[name])
        line += f"; {words}: positions {gone}" if gone else ""
    return line
