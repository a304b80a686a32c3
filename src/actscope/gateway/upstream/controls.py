"""The control API of a server: probes, marks, recording. The control APIs of its engines and of their parts are combined."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import aiohttp
import msgspec

from actscope.errors import RingError, UpstreamError
from actscope.gateway.scores.probe_table import join_described, numbered
from actscope.gateway.upstream.connection import Connection
from actscope.ring.discovery import EngineCard
from actscope.runtime.decoding import as_own_error, decode_json
from actscope.serving.errors import error_object

T = TypeVar("T")
Answer = tuple[int, bytes]
_Object = dict[str, Any]  # a JSON object of an engine

#: What an engine that is down, restarting or broken raises.
FAILURES = (aiohttp.ClientError, UpstreamError, RingError, OSError, asyncio.TimeoutError, ValueError)

_PROBES = "/v1/actscope/probes"
_RECORDING = "/v1/actscope/recording"
#: Beginning of the error for an answer that cannot be read.
_FOREIGN = "the engine's control API gave an answer that cannot be read"
#: Error code with which a part refuses a probe whose site belongs to another part.
ELSEWHERE = "site_elsewhere"


class ReplicaControls:
    """Client of the control API of one engine, with one connection for each part. Methods return (status, body).

    With a single part the engine's answers are returned unchanged.
    """

    def __init__(self, connections: Sequence[Connection]) -> None:
        self._parts = tuple(connections)

    @classmethod
    def of(cls, cards: Sequence[EngineCard], endpoint: Connection) -> ReplicaControls:
        """Connect to the control address of each card, or to `endpoint` if a card has none or there are no cards."""
        return cls([Connection(c.control) if c.control else endpoint for c in cards] or [endpoint])

    async def close(self) -> None:
        """Close the connections to all parts."""
        for connection in self._parts:
            await connection.close()

    async def tables(self) -> list[Answer]:
        """Return the probe table of each part, in the order of the parts."""
        return list(await asyncio.gather(*(connection.ask("GET", _PROBES) for connection in self._parts)))

    async def probes(self) -> Answer:
        """Return the probes of all parts as one table, or the first error."""
        answers = await self.tables()
        refused = next((answer for answer in answers if answer[0] != 200), None)
        if refused is not None or len(answers) == 1:
            return refused or answers[0]
        with as_own_error(UpstreamError, _FOREIGN):
            return 200, msgspec.json.encode(join_described([_decoded(body) for _, body in answers]))

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
        states = [_decoded(body) for _, body in answers]
        first = next((s for s in states if s.get("recording")), states[0])
        with as_own_error(UpstreamError, _FOREIGN):
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
        probe = _decoded(answer)
        with as_own_error(UpstreamError, _FOREIGN):
            since = numbered(int(probe.get("since", 0)), part, len(self._parts))
        return msgspec.json.encode(probe | {"since": since})


class Controls:
    """Client of the control APIs of all engines (replicas) of a server. Methods return (status, body).

    A change goes to all engines at once, and is answered when all have answered. With a single engine its answers are returned
    unchanged.

    Attributes:
        silent: Why an engine has not answered when its probes were last asked for, by the id of its first card.
    """

    def __init__(self, replicas: Sequence[Sequence[EngineCard]], endpoint: Connection) -> None:
        self._endpoint = endpoint
        self._replicas: dict[str, tuple[tuple[str, ...], ReplicaControls]] = {}
        self._retired: list[ReplicaControls] = []
        self.silent: dict[str, str] = {}
        self.follow(replicas)

    def follow(self, replicas: Sequence[Sequence[EngineCard]]) -> None:
        """Set the engines. Connections to those that stay are kept; the others are closed by `close`."""
        before, self._replicas = self._replicas, {}
        for cards in replicas or [()]:
            name, ids = cards[0].id if cards else "", tuple(card.id for card in cards)
            known = before.pop(name, None)
            self._replicas[name] = known or (ids, ReplicaControls.of(cards, self._endpoint))
        self._retired += [controls for _, controls in before.values()]
        self.silent = {name: why for name, why in self.silent.items() if name in self._replicas}

    async def close(self) -> None:
        """Close all connections."""
        for controls in (*self._retired, *(controls for _, controls in self._replicas.values())):
            await controls.close()

    async def tables(self, seconds: float) -> dict[str, Answer]:
        """Return the probe table of each part that answers within `seconds`, by the id of its card. `silent` names the others."""

        async def within(controls: ReplicaControls) -> list[Answer]:
            async with asyncio.timeout(seconds):
                return await controls.tables()

        answers = await self._ask(within)
        self.silent = {name: _reason(one) for name, one in answers.items() if isinstance(one, BaseException)}
        found: dict[str, Answer] = {}
        for name, tables in answers.items():
            if not isinstance(tables, BaseException):
                found |= zip(self._replicas[name][0], tables, strict=False)
        return found

    async def probes(self) -> Answer:
        """Return the probes of the first engine that answers; or the first error."""
        answers = list((await self._ask(lambda controls: controls.probes())).values())
        return _unless_failed(next((a for a in answers if _is_good(a)), answers[0]))

    async def put_probe(self, name: str, body: bytes) -> Answer:
        """Add or replace a probe in all engines.

        Returns:
            The first engine's answer if all have the probe or all have refused it. Otherwise an error (502) that names both.
        """
        return _agreed(f"probe {name}", await self._ask(lambda controls: controls.put_probe(name, body)))

    async def delete_probe(self, name: str) -> Answer:
        """Remove a probe from all engines; 404 if none has it. Otherwise like `put_probe`."""
        answers = await self._ask(lambda controls: controls.delete_probe(name))
        had = {engine: a for engine, a in answers.items() if isinstance(a, BaseException) or a[0] != 404}
        return _agreed(f"the removal of probe {name}", had or answers)

    async def recording(self) -> Answer:
        """Return the state of the recording; of several engines, summed, with that of each in `replicas`. Or the first error."""
        answers = list((await self._ask(lambda controls: controls.recording())).values())
        if len(answers) == 1:
            return _unless_failed(answers[0])
        states = [_decoded(a[1]) for a in answers if not isinstance(a, BaseException) and a[0] == 200]
        if not states:
            return _unless_failed(answers[0])
        with as_own_error(UpstreamError, _FOREIGN):
            return 200, msgspec.json.encode(_summed(states))

    async def mark(self, names: Sequence[str], body: bytes, replica: str = "") -> Answer:
        """Mark a request in the engine that runs it, under the first of `names` that the engine knows.

        Args:
            names: Ids under which the engine may know the request.
            body: Body of the mark.
            replica: Card id of the engine that runs the request. If "" or gone, the mark goes to all: they wait for the request
                if `body` says so.

        Returns:
            The answer of the engine that has the request; an error only if none has it.
        """
        if replica in self._replicas:
            return await self._replicas[replica][1].mark(names, body)
        answers = (await self._ask(lambda controls: controls.mark(names, body))).values()
        return _unless_failed(min(answers, key=_rank_of_mark))

    async def _ask(self, ask: Callable[[ReplicaControls], Awaitable[T]]) -> dict[str, T | BaseException]:
        """Ask all engines at once. Return each one's answer or failure, by the id of its first card."""
        found = await asyncio.gather(*(ask(c) for _, c in self._replicas.values()), return_exceptions=True)
        for one in found:
            if isinstance(one, BaseException) and not isinstance(one, FAILURES):
                raise one
        return dict(zip(self._replicas, found, strict=True))


def _is_good(answer: Answer | BaseException) -> bool:
    return not isinstance(answer, BaseException) and answer[0] < 300


def _unless_failed(answer: Answer | BaseException) -> Answer:
    if isinstance(answer, BaseException):
        raise answer
    return answer


def _reason(answer: Answer | BaseException) -> str:
    if isinstance(answer, TimeoutError):
        return "no answer in time"
    return (str(answer) or type(answer).__name__) if isinstance(answer, BaseException) else error_message(answer[1])


def _agreed(what: str, answers: dict[str, Answer | BaseException]) -> Answer:
    """Return the first answer if all engines have done the change or none has; else an error that says which have."""
    done = [engine for engine, answer in answers.items() if _is_good(answer)]
    if len(done) in (0, len(answers)):
        return _unless_failed(next(iter(answers.values())))
    others = "; ".join(f"{engine}: {_reason(answer)}" for engine, answer in answers.items() if engine not in done)
    message = f"{what}: done in {', '.join(done)}, not in {others}: repeat it when every engine answers"
    return 502, msgspec.json.encode(error_object(502, message, code="replicas_differ"))


def _rank_of_mark(answer: Answer | BaseException) -> int:
    """Return how much an answer to a mark says: found, waiting, too late, no answer, an error, not known here."""
    if isinstance(answer, BaseException):
        return 3
    status, body = answer
    if status < 300:
        try:
            return int(_decoded(body).get("state") == "pending")
        except UpstreamError:
            return 3
    return {410: 2, 404: 5}.get(status, 4)


def _summed(states: Sequence[_Object]) -> _Object:
    """Return the states of several recordings as one: counts summed, the oldest age, the first failure."""
    recording = [state for state in states if state.get("recording")]
    if not recording:
        return states[0]
    whole = dict(recording[0])
    for other in recording[1:]:
        for name in ("marks", "marked_requests", "pending_marks"):
            if name in whole:
                whole[name] += other.get(name) or 0
        for name in ("flight", "kept"):
            if isinstance(whole.get(name), dict) and isinstance(other.get(name), dict):
                whole[name] = _added(whole[name], other[name])
        whole["failure"] = whole.get("failure") or other.get("failure")
    return whole | {"replicas": list(states)}


def _added(one: _Object, other: _Object) -> _Object:
    """Return the sums of two objects' integers, the larger of other numbers, and the rest of the first."""
    both = dict(one)
    for name, value in one.items():
        more = other.get(name)
        if isinstance(value, int) and isinstance(more, int) and not isinstance(value, bool):
            both[name] = value + more
        elif isinstance(value, float) and isinstance(more, float | int):
            both[name] = max(value, more)
    return both


async def _mark(connection: Connection, names: Sequence[str], body: bytes) -> Answer:
    status, answer = 404, b""
    for name in names:
        status, answer = await connection.ask("POST", f"/v1/actscope/requests/{name}/mark", body)
        if status != 404:
            break
    return status, answer


def error_code(body: bytes) -> str | None:
    """Return the `code` of an error in OpenAI's format, or None for any other body."""
    code = _error(body).get("code")
    return code if isinstance(code, str) else None


def error_message(body: bytes) -> str:
    """Return the message of an error in OpenAI's format, or a fallback text."""
    return str(_error(body).get("message") or "the engine gives no reason")


def _error(body: bytes) -> _Object:
    try:
        error = _decoded(body).get("error")
    except UpstreamError:
        return {}
    return error if isinstance(error, dict) else {}


def _decoded(body: bytes) -> _Object:
    return decode_json(body, dict, UpstreamError, _FOREIGN)
