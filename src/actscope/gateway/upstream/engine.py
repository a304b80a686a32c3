"""A running engine: its OpenAI API, its control API, its tokenizer, and its rings if it has any."""

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
    """Connection to one engine.

    Attributes:
        found: Address and cards.
        endpoint: Client of its OpenAI API.
        controls: Client of its control API.
        texts: Text of its tokens, after `attach`.
        matcher: Reader of its rings, after `attach`. None for an engine without a card, which is proxied without scores.
    """

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
        """Return the card of the engine's first part, or None for an engine without a card."""
        return self.found.cards[0] if self.found.cards else None

    @property
    def kind(self) -> str:
        """Return the kind of the engine such as "hf" or "vllm"; "" if it has no card."""
        return self.card.kind if self.card else ""

    @property
    def table(self) -> ProbeTable:
        """Return the newest probe table that the gateway has seen. Does not ask the engine; see `refresh_table`."""
        return self.matcher.table if self.matcher else EMPTY_TABLE

    async def attach(self, sessions: Sessions) -> None:
        """Load the tokenizer, attach to the rings and start reading them. Does nothing for an engine without a card.

        Reading starts at the oldest rows still in the rings, so a gateway that starts late has those too.
        """
        if self.card is None:
            return
        if self.card.tokenizer:
            self.texts = await asyncio.to_thread(_load_texts, Path(self.card.tokenizer))
        parts = [RingPart(c, RingReader.attach(c.ring, from_oldest=True)) for c in self.found.cards]
        self.matcher = Matcher(sessions, parts, self.texts)
        await self.refresh_table()
        self.matcher.start()

    async def refresh_table(self) -> ProbeTable:
        """Fetch the probe tables of all parts, and return the joined table. A part that answers an error keeps its last one."""
        if self.matcher is not None:
            for part, (status, body) in zip(self.matcher.parts, await self.controls.tables(), strict=True):
                if status == 200:
                    part.tables.learn(body)
        return self.table

    @contextlib.asynccontextmanager
    async def in_use(self) -> AsyncIterator[None]:
        """Hold a reference: the connections stay open until the block is left, even if `close` is called meanwhile."""
        self._users += 1
        try:
            yield
        finally:
            self._users -= 1
            if self._given_up and not self._users:
                await self._close()

    async def close(self) -> None:
        """Stop reading the rings, and close the connections once the last user has left `in_use`.

        Closing them earlier would leave readers of unfinished answers hanging: aiohttp does not wake them.
        """
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
        _log.warning("tokens are shown without text: %s", error)
        return TokenTexts.unknown()
