"""The control API of an engine: probes, marks, recording. The control APIs of an engine's parts are combined into one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from actscope.gateway.scores.probe_table import join_described, numbered
from actscope.gateway.upstream.connection import Connection
from actscope.ring.discovery import EngineCard

Answer = tuple[int, bytes]

_PROBES = "/v1/actscope/probes"
_RECORDING = "/v1/actscope/recording"
#: Error code with which a part refuses a probe whose site belongs to another part.
ELSEWHERE = "site_elsewhere"


class Controls:
    """Client of an engine's control API, with one connection for each part. Methods return (status, body).

    With a single part the engine's answers are returned unchanged.
    """

    def __init__(self, connections: Sequence[Connection]) -> None:
        self._parts = tuple(connections)

    @classmethod
    def of(cls, cards: Sequence[EngineCard], endpoint: Connection) -> Controls:
        """Connect to the control address of each card, or to `endpoint` if a card has none or there are no cards."""
        return cls([Connection(c.control) if c.control else endpoint for c in cards] or [endpoint])

    async def close(self) -> None:
        """Close the connections to all parts."""
        for connection in self._parts:
            await connection.close()

    async def tables(self) -> list[Answer]:
        """Return the probe table of each part, in the order of the parts."""
        return [await connection.ask("GET", _PROBES) for connection in self._parts]

    async def probes(self) -> Answer:
        """Return the probes of all parts as one table, or the first error."""
        answers = await self.tables()
        refused = next((answer for answer in answers if answer[0] != 200), None)
        if refused is not None or len(answers) == 1:
            return refused or answers[0]
        return 200, msgspec.json.encode(join_described([msgspec.json.decode(body) for _, body in answers]))

    async def put_probe(self, name: str, body: bytes) -> Answer:
        """Add or replace a probe in the part that has its site, and remove probes of the same id from the other parts."""
        path = f"{_PROBES}/{name}"
        status, answer = 400, b""
        for part, connection in enumerate(self._parts):
            status, answer = await connection.ask("PUT", path, body)
            if status < 300:
                await self._remove_elsewhere(path, part)
                return status, self._renumbered(answer, part)
            if error_code(answer) != ELSEWHERE:
                break
        return status, answer

    async def delete_probe(self, name: str) -> Answer:
        """Remove a probe from the first part that has it; 404 if none does."""
        status, answer = 404, b""
        for connection in self._parts:
            status, answer = await connection.ask("DELETE", f"{_PROBES}/{name}")
            if status != 404:
                break
        return status, answer

    async def recording(self) -> Answer:
        """Return the state of the first part that records, with the sites of all parts; or the first error."""
        answers = [await connection.ask("GET", _RECORDING) for connection in self._parts]
        if len(answers) == 1 or any(status != 200 for status, _ in answers):
            return next((a for a in answers if a[0] != 200), answers[0])
        states = [msgspec.json.decode(body) for _, body in answers]
        first = next((s for s in states if s.get("recording")), states[0])
        sites = [site for s in states for site in s.get("sites") or ()]
        return 200, msgspec.json.encode(first | {"sites": sites} if sites else first)

    async def mark(self, names: Sequence[str], body: bytes) -> Answer:
        """Mark a request in every part, under the first of `names` that the part knows.

        Returns:
            The first error, or else the answer of the first part.
        """
        answers = [await _mark(connection, names, body) for connection in self._parts]
        return next((a for a in answers if a[0] >= 300), answers[0])

    async def _remove_elsewhere(self, path: str, owner: int) -> None:
        for part, connection in enumerate(self._parts):
            if part != owner:
                await connection.ask("DELETE", path)

    def _renumbered(self, answer: bytes, part: int) -> bytes:
        if len(self._parts) == 1:
            return answer
        probe: dict[str, Any] = msgspec.json.decode(answer)
        return msgspec.json.encode(probe | {"since": numbered(int(probe.get("since", 0)), part, len(self._parts))})


async def _mark(connection: Connection, names: Sequence[str], body: bytes) -> Answer:
    status, answer = 404, b""
    for name in names:
        status, answer = await connection.ask("POST", f"/v1/actscope/requests/{name}/mark", body)
        if status != 404:
            break
    return status, answer


def error_code(body: bytes) -> str | None:
    """Return the `code` of an error in OpenAI's format, or None for any other body."""
    return _error(body).get("code")


def error_message(body: bytes) -> str:
    """Return the message of an error in OpenAI's format, or a fallback text."""
    return str(_error(body).get("message") or "the engine gives no reason")


def _error(body: bytes) -> dict[str, Any]:
    try:
        found = msgspec.json.decode(body)
    except msgspec.DecodeError:
        return {}
    error = found.get("error") if isinstance(found, dict) else None
    return error if isinstance(error, dict) else {}
