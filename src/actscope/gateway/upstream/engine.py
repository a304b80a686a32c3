"""One engine while it runs: its OpenAI side, its control sides, its tokenizer, and its rings if it has any."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from pathlib import Path

from actscope.errors import UpstreamError
from actscope.gateway.scores.detokenizer import TokenTexts
from actscope.gateway.scores.matcher import Matcher, RingPart
from actscope.gateway.scores.probe_table import EMPTY_TABLE, ProbeTable
from actscope.gateway.scores.request_store import Sessions
from actscope.gateway.upstream.connection import Connection
from actscope.gateway.upstream.controls import Controls
from actscope.gateway.upstream.discovery import Found
from actscope.ring.discovery import EngineCard
from actscope.ring.host import RingReader

_log = logging.getLogger(__name__)


class EngineConnection:
    """A connection to one engine. `matcher` is None for one without a card: it is proxied, and has no scores."""

    def __init__(self, found: Found, endpoint: Connection) -> None:
        self.found = found
        self.endpoint = endpoint
        self.controls = Controls.of(found.cards, endpoint)
        self.texts = TokenTexts.unknown()
        self.matcher: Matcher | None = None
        self._users = 0
        self._given_up = False

    @property
    def card(self) -> EngineCard | None:
        """The card, of the first part where there are several."""
        return self.found.cards[0] if self.found.cards else None

    @property
    def kind(self) -> str:
        """What runs it, "" where that is not known."""
        return self.card.kind if self.card else ""

    @property
    def table(self) -> ProbeTable:
        """The probe table in force, as far as it is known."""
        return self.matcher.table if self.matcher else EMPTY_TABLE

    async def attach(self, sessions: Sessions) -> None:
        """The tokenizer and the rings. A gateway that starts late begins with the oldest rows that are still there."""
        if self.card is None:
            return
        if self.card.tokenizer:
            self.texts = await asyncio.to_thread(_load_texts, Path(self.card.tokenizer))
        parts = [RingPart(c, RingReader.attach(c.ring, from_oldest=True)) for c in self.found.cards]
        self.matcher = Matcher(sessions, parts, self.texts)
        await self.refresh_table()
        self.matcher.start()

    async def refresh_table(self) -> ProbeTable:
        """Ask the engine for its probes."""
        if self.matcher is not None:
            for part, (status, body) in zip(self.matcher.parts, await self.controls.tables(), strict=True):
                if status == 200:
                    part.tables.learn(body)
        return self.table

    @contextlib.asynccontextmanager
    async def in_use(self) -> AsyncIterator[None]:
        """Keeps the connections open until the block is left, even if the engine is given up meanwhile."""
        self._users += 1
        try:
            yield
        finally:
            self._users -= 1
            if self._given_up and not self._users:
                await self._close()

    async def close(self) -> None:
        """Give the engine up. Answers that are being read end by themselves: aiohttp does not wake their readers."""
        self._given_up = True
        if self.matcher:
            self.matcher.close()
        if not self._users:
            await self._close()

    async def _close(self) -> None:
        await self.controls.close()
        await self.endpoint.close()


def _load_texts(directory: Path) -> TokenTexts:
    try:
        return TokenTexts.load(directory)
    except UpstreamError as error:
        _log.warning("tokens have no text: %s", error)
        return TokenTexts.unknown()
