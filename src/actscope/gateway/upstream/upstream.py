"""The engine behind the gateway: finds it, connects to it, and reconnects after it restarts."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import aiohttp

from actscope.counters import CounterReport, counted, counters_of, counting, summed
from actscope.errors import UpstreamError
from actscope.gateway.scores.request_store import Sessions
from actscope.gateway.settings import GatewaySettings
from actscope.gateway.upstream import discovery
from actscope.gateway.upstream.connection import Connection
from actscope.gateway.upstream.controls import FAILURES, Answer, Controls
from actscope.gateway.upstream.discovery import Found
from actscope.gateway.upstream.engine import EngineConnection
from actscope.ring.discovery import read_cards
from actscope.runtime.decoding import decode_json
from actscope.serving.errors import Problem

_log = logging.getLogger(__name__)

#: A server without a card is matched with the cards again when these change, or after this time.
_DOUBT_SECONDS = 5.0

_UNPLUGGED = (
    "the engine at %s runs without actscope: its requests are proxied without scores. Install the plugin in its environment "
    "(pip install 'actscope[vllm]'), and restart it as the same user on this machine, without ACTSCOPE_DISABLE and with "
    "VLLM_PLUGINS unset or containing actscope%s"
)
_INCOMPLETE = (
    "the server at %s has %s data-parallel engines, and %s run here: requests that run in the others have no scores. Those on "
    "other hosts cannot be read; one that is starting is read when it is up"
)
_HOMELESS = (
    "engine %s (%s) runs here, but its address is not known: give the address of its server, "
    "for example --upstream http://localhost:8000"
)


@counting("upstream")
@dataclass(slots=True)
class UpstreamCounts:
    """Counts of the connections to engines."""

    connections: int = counted("work", "Times that the gateway has connected to an engine.")
    losses: int = counted(
        "fault",
        "Times that the engine went away, was restarted or was replaced; requests that were running in it have failed.",
        "See the engine's log.",
    )


class Upstream:
    """Connection to the engine that `settings.upstream` names. Waits until it is up, and reconnects after it restarts.

    The current engine is kept while it runs, even if a newer one has started. An engine without a card is proxied, and is
    matched again when a card appears. Belongs to one event loop.

    Args:
        settings: `upstream`, `upstream_key`, `discovery_seconds` and `retry_after_seconds` are used.

    Attributes:
        engine: The connected engine, or None while there is none.
    """

    def __init__(self, settings: GatewaySettings) -> None:
        self._settings = settings
        self._sessions: Sessions | None = None
        self._follower: asyncio.Task[None] | None = None
        self._complaint = ""
        self._logged: set[str] = set()
        self._suspects: tuple[frozenset[str], float] = (frozenset(), 0.0)
        self.engine: EngineConnection | None = None
        self._counts = UpstreamCounts()
        self._past: list[CounterReport] = []

    def reports(self) -> list[CounterReport]:
        """Return the gateway's counters of the current engine, of all earlier ones together, and of the connections to them."""
        matcher = self.engine.matcher if self.engine else None
        now = [] if matcher is None else matcher.reports()
        earlier = [one for one in summed(self._past) if one.kind != "now"]
        return [*now, CounterReport("gateway", [*counters_of(self._counts), *earlier])]

    async def open(self, sessions: Sessions) -> None:
        """Look for the engine once, then start a task that repeats this every `discovery_seconds` until `close`.

        Args:
            sessions: Store to which the request logs of the engine are added.
        """
        self._sessions = sessions
        await self._try_look()
        self._follower = asyncio.create_task(self._follow())

    async def close(self) -> None:
        """Stop following the engine, and disconnect from it."""
        if self._follower:
            self._follower.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._follower
        await self._disconnect()

    def require(self) -> EngineConnection:
        """Return the engine. Raises Problem (503 with Retry-After) if there is none."""
        if self.engine is None:
            raise self.not_up()
        return self.engine

    def not_up(self) -> Problem:
        """Return the 503 answer for requests while no engine is up."""
        wait = str(self._settings.retry_after_seconds)
        message = "the engine is not up; the gateway keeps looking for it: try again"
        return Problem(503, message, code="engine_not_up", headers={"Retry-After": wait})

    def failed(self, error: BaseException) -> Problem:
        """Return the error for a failed request to the engine: 503 if it could not be reached, else 502."""
        if isinstance(error, aiohttp.ClientConnectorError):
            return self.not_up()
        return Problem(502, f"the engine failed: {error or type(error).__name__}", code="engine_failed")

    async def ask(self, method: str, path: str, body: bytes | None = None) -> Answer:
        """Send one short request to the engine's OpenAI API and return status and body.

        Raises:
            Problem: There is no engine (503), or the request failed (502, or 503 if it could not be reached).
        """
        engine = self.require()
        try:
            return await engine.endpoint.ask(method, path, body)
        except FAILURES as error:
            raise self.failed(error) from error

    async def control(self, ask: Callable[[Controls], Awaitable[Answer]]) -> Answer:
        """Call a method of the engine's control API: `control(lambda c: c.probes())`. Returns and raises like `ask`."""
        engine = self.require()
        try:
            return await ask(engine.controls)
        except FAILURES as error:
            raise self.failed(error) from error

    # Discovery

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(self._settings.discovery_seconds)
            await self._try_look()

    async def _try_look(self) -> None:
        try:
            await self._look()
            self._complaint = ""
        except FAILURES as error:
            complaint = f"cannot use the engine yet: {error or type(error).__name__}"
            if complaint != self._complaint:
                self._complaint = complaint
                _log.warning(complaint)
        except Exception as error:  # boundary: it is logged once, and the next look may succeed
            complaint = repr(error)
            if complaint != self._complaint:
                self._complaint = complaint
                _log.exception("cannot use the engine yet")

    async def _look(self) -> None:
        engine = self.engine
        if engine is not None and await self._still_there(engine):
            if not await self._has_other_cards(engine):
                return
            if engine.found.replicas:
                await self._follow_cards(engine)
                return
        else:
            await self._disconnect()
        target = self._settings.upstream
        if discovery.is_address(target):
            await self._connect_to(target)
            return
        found = await asyncio.to_thread(discovery.by_card, target)
        if found is not None:
            await self._connect(found)
        else:
            await self._log_missing_endpoint()

    async def _still_there(self, engine: EngineConnection) -> bool:
        """Return whether the server still runs: one of its cards is there, or it answers if it has none."""
        if not engine.found.replicas:
            return await _answers(engine.endpoint)
        if engine.matcher and engine.matcher.closed:
            return False
        cards = await asyncio.to_thread(read_cards)
        return not {card.id for card in cards}.isdisjoint(engine.found.ids)

    async def _has_other_cards(self, engine: EngineConnection) -> bool:
        """Return whether the server's cards are others now. Checks when the cards have changed, or after `_DOUBT_SECONDS`.

        The latter only while a server has no cards, or rings that cannot be read: a card may come before its server listens.
        """
        ids = frozenset(card.id for card in await asyncio.to_thread(read_cards))
        known, since = self._suspects
        doubtful = not engine.found.replicas or engine.needs_follow
        if not ids or (ids == known and (not doubtful or time.monotonic() - since < _DOUBT_SECONDS)):
            return False
        found = await self._found(engine)
        self._suspects = (ids, time.monotonic())
        return engine.needs_follow or (bool(found.replicas) and found.ids != engine.found.ids)

    async def _found(self, engine: EngineConnection) -> Found:
        """Return the cards that the server of this connection has now. One that was found by its card keeps it."""
        return await _at_address(engine.endpoint) if discovery.is_address(self._settings.upstream) else engine.found

    async def _follow_cards(self, engine: EngineConnection) -> None:
        """Read the rings that the server has now: an engine has come, is gone, or could not be read before."""
        found = await self._found(engine)
        if found.replicas:
            before = {cards[0].id for cards in engine.found.replicas}
            engine.follow(found)
            now = {cards[0].id for cards in found.replicas}
            self._counts.losses += len(before - now)
            if len(now) != len(before):
                self._log_choice(found)

    # Connecting

    async def _connect_to(self, address: str) -> None:
        """Connect to the server at an address, with its cards if it has any. Does nothing if it does not answer."""
        asked = Connection(address, self._settings.upstream_key)
        try:
            found = await _at_address(asked) if await _answers(asked) else None
        finally:
            await asked.close()
        if found is not None:
            await self._connect(found)

    async def _connect(self, found: Found) -> None:
        """Make this the current engine if it answers, and close the previous one. Otherwise keep the previous one."""
        key = self._settings.upstream_key if discovery.is_address(self._settings.upstream) else ""
        engine, before = EngineConnection(found, Connection(found.endpoint, key)), self.engine
        try:
            if await _answers(engine.endpoint):
                engine = await self._attached(engine, key)
                self.engine = engine
                self._counts.connections += 1
                self._log_choice(engine.found)
        finally:
            given_up = before if self.engine is engine else engine
            if given_up is not None:
                if given_up is before:
                    self._keep_counts(given_up)
                await given_up.close()

    async def _attached(self, engine: EngineConnection, key: str) -> EngineConnection:
        """Attach to the rings of a server. If that fails at an address, return a connection without scores; it is tried again."""
        assert self._sessions is not None
        try:
            await engine.attach(self._sessions)
            return engine
        except Exception as error:
            if not discovery.is_address(self._settings.upstream):
                raise
            await engine.close()
            plain = Found(engine.found.endpoint, (), f"its scores cannot be read: {error or type(error).__name__}")
            if plain.doubt not in self._logged:
                self._logged.add(plain.doubt)
                _log.exception("the scores of the engine at %s cannot be read; it is proxied without", plain.endpoint)
            return EngineConnection(plain, Connection(plain.endpoint, key))

    async def _disconnect(self) -> None:
        engine, self.engine = self.engine, None
        if engine is None:
            return
        self._counts.losses += 1
        self._keep_counts(engine)
        await engine.close()
        for log in self._sessions or ():
            if log.source == "engine":
                log.finish("failed", "error", "the connection to the engine was lost")

    def _keep_counts(self, engine: EngineConnection) -> None:
        """Keep the counts of an engine that is given up, added to those of earlier ones."""
        if engine.matcher is not None:
            self._past = [CounterReport("gateway", summed([*self._past, *engine.matcher.reports()]))]

    # Messages

    def _log_choice(self, found: Found) -> None:
        """Log which engine was chosen, and any doubt about the choice. A wrong choice is never silent."""
        if not found.replicas:
            self._once(_UNPLUGGED, found.endpoint, f" ({found.doubt})" if found.doubt else "")
            return
        card, parts, replicas = found.replicas[0][0], len(found.replicas[0]), len(found.replicas)
        many = f" in {parts} parts" if parts > 1 else ""
        many += f", {replicas} data-parallel engines" if replicas > 1 else ""
        _log.info("engine %s: %s, %s%s, at %s", card.id, card.model, card.kind, many, found.endpoint)
        if found.expected > replicas:
            self._once(_INCOMPLETE, found.endpoint, str(found.expected), str(replicas))
        if found.doubt:
            _log.warning("engine %s is assumed to be the one at %s: %s", card.id, found.endpoint, found.doubt)

    async def _log_missing_endpoint(self) -> None:
        cards = await asyncio.to_thread(discovery.without_endpoint)
        if cards:
            self._once(_HOMELESS, cards[0].id, cards[0].model)

    def _once(self, message: str, *arguments: str) -> None:
        text = message % arguments
        if text not in self._logged:
            self._logged.add(text)
            _log.warning(text)


async def _answers(endpoint: Connection) -> bool:
    """Return whether a server answers `GET /health` with a status below 500. One without that route counts as up."""
    try:
        status, _ = await endpoint.ask("GET", "/health")
    except FAILURES:
        return False
    return status < 500


async def _at_address(endpoint: Connection) -> Found:
    own = await asyncio.to_thread(discovery.claimed, endpoint.address)
    if own is not None:
        return own
    return await asyncio.to_thread(discovery.at_address, endpoint.address, await _models_of(endpoint))


async def _models_of(endpoint: Connection) -> list[str]:
    """Return the ids of the server's models and the names they were loaded from (`root`)."""
    status, body = await endpoint.ask("GET", "/v1/models")
    if status in (401, 403):
        raise UpstreamError(f"{endpoint.address} answers {status}: give its API key with --upstream-key")
    listed = json_object(body).get("data") or () if status == 200 else ()
    return [str(model[name]) for model in listed for name in ("id", "root") if model.get(name)]


def json_object(body: bytes) -> dict[str, Any]:
    """Decode an engine's answer as a JSON object. Raises Problem (502) if it is not one."""
    try:
        found = decode_json(body, object, UpstreamError, "the engine's answer is not JSON")
    except UpstreamError as error:
        raise Problem(502, str(error), code="engine_failed") from error
    if not isinstance(found, dict):
        raise Problem(502, "the engine's answer is not a JSON object", code="engine_failed")
    return found
