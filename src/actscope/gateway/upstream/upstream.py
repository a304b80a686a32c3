"""The engine behind the gateway: finding it, talking to it, and noticing when it goes and comes back."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import msgspec

from actscope.errors import RingError, UpstreamError
from actscope.gateway.scores.request_store import Sessions
from actscope.gateway.settings import GatewaySettings
from actscope.gateway.upstream import discovery as finding
from actscope.gateway.upstream.connection import Connection
from actscope.gateway.upstream.controls import Answer, Controls
from actscope.gateway.upstream.discovery import Found
from actscope.gateway.upstream.engine import EngineConnection
from actscope.ring.discovery import read_cards
from actscope.serving.errors import Problem

_log = logging.getLogger(__name__)

#: A server without a card is matched with the cards anew when these change, and after this long.
_DOUBT_SECONDS = 5.0

FAILURES = (aiohttp.ClientError, UpstreamError, RingError, OSError, asyncio.TimeoutError, ValueError)

_UNPLUGGED = (
    "the engine at %s runs without actscope: it is proxied, and has no scores. Install the plugin where it runs "
    "(pip install 'actscope[vllm]') and start it again, without ACTSCOPE_DISABLE, as the same user on this machine%s"
)
_HOMELESS = (
    "no engine here says where it takes requests, but engine %s (%s) runs: name its server, "
    "for instance with --upstream http://localhost:8000"
)


class Upstream:
    """Keeps a connection to the engine that the settings name: waits until it is up, follows it when it restarts.

    While the present engine lives it is kept, even if a newer one has started. One without a card is proxied, and looked
    at again when a card appears.
    """

    def __init__(self, settings: GatewaySettings) -> None:
        self._settings = settings
        self._sessions: Sessions | None = None
        self._follower: asyncio.Task[None] | None = None
        self._complaint = ""
        self._told: set[str] = set()
        self._doubted: tuple[frozenset[str], float] = (frozenset(), 0.0)
        self.engine: EngineConnection | None = None

    async def open(self, sessions: Sessions) -> None:
        """Look for the engine once, then go on looking in the background."""
        self._sessions = sessions
        await self._try_look()
        self._follower = asyncio.create_task(self._follow())

    async def close(self) -> None:
        if self._follower:
            self._follower.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._follower
        await self._disconnect()

    def require(self) -> EngineConnection:
        """The engine, or a 503 that says when to try again."""
        if self.engine is None:
            raise self.not_up()
        return self.engine

    def not_up(self) -> Problem:
        wait = str(self._settings.retry_after_seconds)
        message = "the engine is not up; it is waited for: try again"
        return Problem(503, message, code="engine_not_up", headers={"Retry-After": wait})

    def failed(self, error: BaseException) -> Problem:
        """What a client is told when the engine could not be asked, or has not answered properly."""
        if isinstance(error, aiohttp.ClientConnectorError):
            return self.not_up()
        return Problem(502, f"the engine failed: {error or type(error).__name__}", code="engine_failed")

    async def ask(self, method: str, path: str, body: bytes | None = None) -> Answer:
        """One short request to the engine's OpenAI side; every failure is a Problem."""
        engine = self.require()
        try:
            return await engine.endpoint.ask(method, path, body)
        except FAILURES as error:
            raise self.failed(error) from error

    async def control(self, ask: Callable[[Controls], Awaitable[Answer]]) -> Answer:
        """The same to its control side: `control(lambda c: c.probes())`."""
        engine = self.require()
        try:
            return await ask(engine.controls)
        except FAILURES as error:
            raise self.failed(error) from error

    # Looking

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
        except Exception as error:  # whatever it is, the next look may go well
            complaint = repr(error)
            if complaint != self._complaint:
                self._complaint = complaint
                _log.exception("cannot use the engine yet")

    async def _look(self) -> None:
        if self.engine is not None and await self._still_there(self.engine):
            if self.engine.found.cards or not await self._has_card_now(self.engine):
                return
        else:
            await self._disconnect()
        target = self._settings.upstream
        if finding.is_address(target):
            await self._connect_to(target)
            return
        found = await asyncio.to_thread(finding.by_card, target)
        if found is not None:
            await self._connect(found)
        else:
            await self._say_if_homeless()

    async def _still_there(self, engine: EngineConnection) -> bool:
        if not engine.found.cards:
            return await _answers(engine.endpoint)
        if engine.matcher and engine.matcher.closed:
            return False
        cards = await asyncio.to_thread(read_cards)
        return {card.id for card in cards}.issuperset(engine.found.ids)

    async def _has_card_now(self, engine: EngineConnection) -> bool:
        """Whether a card has appeared that is this server's. Looked at when there are other cards than last time."""
        ids = frozenset(card.id for card in await asyncio.to_thread(read_cards))
        known, since = self._doubted
        if not ids or (ids == known and time.monotonic() - since < _DOUBT_SECONDS):
            return False
        self._doubted = (ids, time.monotonic())
        return bool((await _at_address(engine.endpoint)).cards)

    # Connecting

    async def _connect_to(self, address: str) -> None:
        """The server at an address, with its cards if it has any."""
        asked = Connection(address, self._settings.upstream_key)
        try:
            found = await _at_address(asked) if await _answers(asked) else None
        finally:
            await asked.close()
        if found is not None:
            await self._connect(found)

    async def _connect(self, found: Found) -> None:
        """Make this the engine, in place of one that was there if that still answers."""
        key = self._settings.upstream_key if finding.is_address(self._settings.upstream) else ""
        engine, before = EngineConnection(found, Connection(found.endpoint, key)), self.engine
        try:
            if await _answers(engine.endpoint):
                assert self._sessions is not None
                await engine.attach(self._sessions)
                self.engine = engine
                self._say_which(found)
        finally:
            given_up = before if self.engine is engine else engine
            if given_up is not None:
                await given_up.close()

    async def _disconnect(self) -> None:
        engine, self.engine = self.engine, None
        if engine is None:
            return
        await engine.close()
        for log in self._sessions or ():
            if log.source == "engine":
                log.finish("failed", "error", "the engine has gone")

    # Telling

    def _say_which(self, found: Found) -> None:
        """Log which engine was taken, and what may be wrong with that: never a wrong one silently."""
        if not found.cards:
            self._once(_UNPLUGGED, found.endpoint, f" ({found.doubt})" if found.doubt else "")
            return
        card, parts = found.cards[0], len(found.cards)
        many = f" in {parts} parts" if parts > 1 else ""
        _log.info("engine %s: %s, %s%s, at %s", card.id, card.model, card.kind, many, found.endpoint)
        if found.doubt:
            _log.warning("engine %s was taken for the one at %s: %s", card.id, found.endpoint, found.doubt)

    async def _say_if_homeless(self) -> None:
        cards = await asyncio.to_thread(finding.homeless)
        if cards:
            self._once(_HOMELESS, cards[0].id, cards[0].model)

    def _once(self, message: str, *arguments: str) -> None:
        text = message % arguments
        if text not in self._told:
            self._told.add(text)
            _log.warning(text)


async def _answers(endpoint: Connection) -> bool:
    """Whether a server is there that says it is well, or does not know the question."""
    try:
        status, _ = await endpoint.ask("GET", "/health")
    except FAILURES:
        return False
    return status < 500


async def _at_address(endpoint: Connection) -> Found:
    own = await asyncio.to_thread(finding.claimed, endpoint.address)
    if own is not None:
        return own
    return await asyncio.to_thread(finding.at_address, endpoint.address, await _models_of(endpoint))


async def _models_of(endpoint: Connection) -> list[str]:
    """What the server calls its models, and what they were loaded from (`root`)."""
    status, body = await endpoint.ask("GET", "/v1/models")
    if status in (401, 403):
        raise UpstreamError(f"{endpoint.address} answers {status}: give its key with --upstream-key")
    listed = json_object(body).get("data") or () if status == 200 else ()
    return [str(model[name]) for model in listed for name in ("id", "root") if model.get(name)]


def json_object(body: bytes) -> dict[str, Any]:
    """An engine's answer as an object, or a 502."""
    try:
        found = msgspec.json.decode(body)
    except msgspec.DecodeError as error:
        raise Problem(502, f"the engine's answer is not JSON: {error}", code="engine_failed") from error
    if not isinstance(found, dict):
        raise Problem(502, "the engine's answer is not a JSON object", code="engine_failed")
    return found
