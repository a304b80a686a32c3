"""The engine behind the gateway: finding it, talking to it, and noticing when it goes and comes back."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from actscope.errors import RingError, SettingsError, UpstreamError
from actscope.gateway.matching import Matcher
from actscope.gateway.probeset import EMPTY_TABLE, Table, table_of
from actscope.gateway.problems import Problem
from actscope.gateway.sessions import Sessions
from actscope.gateway.settings import GatewaySettings
from actscope.gateway.tokens import TokenTexts
from actscope.ring.host import RingReader
from actscope.ring.runtime import EngineCard, read_cards

_log = logging.getLogger(__name__)

#: The only headers of a client that reach the engine.
FORWARDED = frozenset({"accept", "content-type", "traceparent", "tracestate"})

_CONNECT_SECONDS = 5.0
_ASK_SECONDS = 30.0
_FAILURES = (aiohttp.ClientError, UpstreamError, RingError, OSError, asyncio.TimeoutError, ValueError)


@dataclass(frozen=True, slots=True)
class Found:
    """Where an engine answers, and its card if it has one."""

    endpoint: str
    card: EngineCard | None


def find(target: str) -> Found | None:
    """The engine that `target` means (see GatewaySettings.upstream), or None while there is none."""
    cards = read_cards()
    if not target:
        return next((Found(c.endpoint, c) for c in cards if c.endpoint), None)
    if target.startswith(("unix:", "http://", "https://")):
        matching = [c for c in cards if c.endpoint == target] or [
            c for c in cards if c.kind == "vllm" and not c.endpoint
        ]
        return Found(target, matching[0] if matching else None)
    return next((Found(c.endpoint, c) for c in cards if c.id == target), None)


class Engine:
    """A connection to one engine: its HTTP side, its tokenizer, and its ring if it has one."""

    def __init__(self, found: Found, http: aiohttp.ClientSession, base: str, texts: TokenTexts) -> None:
        self.endpoint = found.endpoint
        self.card = found.card
        self.texts = texts
        self.matcher: Matcher | None = None
        self._http = http
        self._base = base
        self._users = 0
        self._given_up = False

    @property
    def table(self) -> Table:
        """The probe table in force, as far as it is known."""
        return self.matcher.table if self.matcher else EMPTY_TABLE

    async def send(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> aiohttp.ClientResponse:
        """One request; the answer's head has come, its body has not. Redirects are not followed, but refused."""
        response = await self._http.request(
            method, self._base + path, data=body, headers=headers, allow_redirects=False
        )
        if 300 <= response.status < 400:
            response.close()
            raise UpstreamError(f"the engine answered {response.status}: redirects are not followed")
        return response

    async def ask(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        """Status and body of one short request."""
        headers = {"content-type": "application/json"} if body is not None else None
        async with asyncio.timeout(_ASK_SECONDS):
            async with await self.send(method, path, body, headers) as response:
                return response.status, await response.read()

    async def refresh_table(self) -> Table:
        """Ask the engine for its probe table."""
        status, body = await self.ask("GET", "/v1/actscope/probes")
        table = table_of(msgspec.json.decode(body)) if status == 200 else EMPTY_TABLE
        if self.matcher:
            self.matcher.table = table
        return table

    @contextlib.asynccontextmanager
    async def in_use(self) -> AsyncIterator[None]:
        """Keeps the connections open until the block is left, even if the engine is given up meanwhile."""
        self._users += 1
        try:
            yield
        finally:
            self._users -= 1
            if self._given_up and not self._users:
                await self._http.close()

    async def close(self) -> None:
        """Give the engine up. Answers that are being read end by themselves: aiohttp does not wake their readers."""
        self._given_up = True
        if self.matcher:
            self.matcher.close()
        if not self._users:
            await self._http.close()


def _open_http(endpoint: str) -> tuple[aiohttp.ClientSession, str]:
    """A client and the base of its URLs for `unix:/path` or `http://host:port`."""
    if endpoint.startswith("unix:"):
        connector: aiohttp.BaseConnector = aiohttp.UnixConnector(endpoint.removeprefix("unix:"), limit=0)
        base = "http://engine"
    elif endpoint.startswith(("http://", "https://")):
        connector = aiohttp.TCPConnector(limit=0)
        base = endpoint.rstrip("/")
    else:
        raise SettingsError(f"upstream: expected unix:/path or http://host:port, found {endpoint!r}")
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS)
    http = aiohttp.ClientSession(
        connector=connector,
        timeout=timeout,
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"accept-encoding": "identity"},
        read_bufsize=1 << 18,
        trust_env=False,
    )
    return http, base


def forwarded(headers: Mapping[str, str]) -> dict[str, str]:
    """Of a client's headers, those that may reach the engine."""
    return {name: value for name, value in headers.items() if name.lower() in FORWARDED}


class Upstream:
    """Keeps a connection to the engine that the settings name: waits until it is up, follows it when it restarts.

    While the present engine lives it is kept, even if a newer one has started.
    """

    def __init__(self, settings: GatewaySettings) -> None:
        self._settings = settings
        self._sessions: Sessions | None = None
        self._follower: asyncio.Task[None] | None = None
        self._complaint = ""
        self.engine: Engine | None = None

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

    def require(self) -> Engine:
        """The engine, or a 503 that says when to try again."""
        if self.engine is None:
            raise self.not_up()
        return self.engine

    def not_up(self) -> Problem:
        wait = str(self._settings.retry_after_seconds)
        message = "the engine is not up; it is waited for: try again"
        return Problem(503, message, code="engine_not_up", headers={"Retry-After": wait})

    async def ask(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        """One short request to the engine; every failure is a Problem."""
        engine = self.require()
        try:
            return await engine.ask(method, path, body)
        except aiohttp.ClientConnectorError as error:
            raise self.not_up() from error
        except _FAILURES as error:
            raise Problem(502, f"the engine failed: {error or type(error).__name__}", code="engine_failed") from error

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(self._settings.discovery_seconds)
            await self._try_look()

    async def _try_look(self) -> None:
        try:
            await self._look()
            self._complaint = ""
        except _FAILURES as error:
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
            return
        await self._disconnect()
        found = await asyncio.to_thread(find, self._settings.upstream)
        if found is not None:
            await self._connect(found)

    async def _still_there(self, engine: Engine) -> bool:
        if engine.card is None:
            found = await asyncio.to_thread(find, self._settings.upstream)
            return found is not None and found.card is None and await self._healthy(engine)
        if engine.matcher and engine.matcher.closed:
            return False
        cards = await asyncio.to_thread(read_cards)
        return any(card.id == engine.card.id for card in cards)

    async def _healthy(self, engine: Engine) -> bool:
        try:
            status, _ = await engine.ask("GET", "/health")
        except _FAILURES:
            return False
        return status == 200

    async def _connect(self, found: Found) -> None:
        http, base = _open_http(found.endpoint)
        engine = Engine(found, http, base, TokenTexts.unknown())
        try:
            if await self._healthy(engine):
                await self._attach(engine)
                self.engine = engine
        finally:
            if self.engine is not engine:
                await engine.close()

    async def _attach(self, engine: Engine) -> None:
        """The tokenizer and the ring. A gateway that starts late begins with the oldest rows that are still there."""
        card = engine.card
        if card is None:
            return
        if card.tokenizer:
            engine.texts = await asyncio.to_thread(_load_texts, Path(card.tokenizer))
        assert self._sessions is not None
        engine.matcher = Matcher(self._sessions, card, RingReader.attach(card.ring, from_oldest=True), engine.texts)
        await engine.refresh_table()
        engine.matcher.start()

    async def _disconnect(self) -> None:
        engine, self.engine = self.engine, None
        if engine is None:
            return
        await engine.close()
        for log in self._sessions or ():
            if log.source == "engine":
                log.finish("failed", "error", "the engine has gone")


def _load_texts(directory: Path) -> TokenTexts:
    try:
        return TokenTexts.load(directory)
    except UpstreamError as error:
        _log.warning("tokens have no text: %s", error)
        return TokenTexts.unknown()


def json_object(body: bytes) -> dict[str, Any]:
    """An engine's answer as an object, or a 502."""
    try:
        found = msgspec.json.decode(body)
    except msgspec.DecodeError as error:
        raise Problem(502, f"the engine's answer is not JSON: {error}", code="engine_failed") from error
    if not isinstance(found, dict):
        raise Problem(502, "the engine's answer is not a JSON object", code="engine_failed")
    return found
