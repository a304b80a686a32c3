"""A running server: its OpenAI API, and its engines' control APIs, tokenizer and rings if they have any."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from pathlib import Path

from actscope.errors import RingError, UpstreamError
from actscope.gateway.scores.detokenizer import TokenTexts
from actscope.gateway.scores.matcher import Matcher
from actscope.gateway.scores.probe_table import EMPTY_TABLE, ProbeTable
from actscope.gateway.scores.replica import Replica, RingPart
from actscope.gateway.scores.request_log import RequestLog
from actscope.gateway.scores.request_store import Sessions
from actscope.gateway.upstream.connection import Connection
from actscope.gateway.upstream.controls import Controls
from actscope.gateway.upstream.discovery import Cards, Found
from actscope.ring.discovery import EngineCard
from actscope.ring.host import RingReader

_log = logging.getLogger(__name__)


#: Time in seconds that an engine's control API may take to answer with its probes.
_TABLE_SECONDS = 3.0
#: Time in seconds that a new connection waits for them before it serves requests.
_FIRST_TABLE_SECONDS = 0.5
#: Interval in seconds after which the probes are asked for again where the last time failed.
_AGAIN_SECONDS = 2.0


class EngineConnection:
    """Connection to one server: one engine, or several data-parallel ones (replicas).

    Attributes:
        found: Address and cards.
        endpoint: Client of its OpenAI API.
        controls: Client of its engines' control APIs.
        texts: Text of its tokens, after `attach`.
        matcher: Reader of its rings, after `attach`. None for a server without a card, which is proxied without scores.
        unread: Why the rings of an engine cannot be read, by the id of its first card.
    """

    def __init__(self, found: Found, endpoint: Connection) -> None:
        self.found = found
        self.endpoint = endpoint
        self.controls = Controls(found.replicas, endpoint)
        self.texts = TokenTexts.unknown()
        self.matcher: Matcher | None = None
        self.unread: dict[str, str] = {}
        self._tables_due: asyncio.Task[None] | None = None
        self._users = 0
        self._given_up = False

    @property
    def card(self) -> EngineCard | None:
        """Return the first card, or None for a server without cards."""
        return self.found.replicas[0][0] if self.found.replicas else None

    @property
    def kind(self) -> str:
        """Return the kind of the engine such as "hf" or "vllm"; "" if it has no card."""
        return self.card.kind if self.card else ""

    @property
    def table(self) -> ProbeTable:
        """Return the newest probe table that the gateway has seen. Does not ask the engine; see `refresh_table`."""
        return self.matcher.table if self.matcher else EMPTY_TABLE

    @property
    def is_complete(self) -> bool:
        """Return whether the rings of all engines of the server are read."""
        return self.matcher is not None and self.without_scores is None

    def unread_of(self, replica: str) -> str:
        """Return why the rings of the engine with this first card are not read; "" if they are."""
        reading = self.matcher.replicas if self.matcher else ()
        failure = next((r.failure for r in reading if r.id == replica), "it is not attached yet")
        return self.unread.get(replica, failure)

    @property
    def without_scores(self) -> str | None:
        """Return why requests have no scores, or some of them have none; None if all have."""
        found = self.found
        if not found.replicas:
            return f"the engine runs without actscope{f' ({found.doubt})' if found.doubt else ''}"
        unread = [f"engine {cards[0].id}: {why}" for cards in found.replicas if (why := self.unread_of(cards[0].id))]
        if found.expected > len(found.replicas):
            unread.append(
                f"{found.expected - len(found.replicas)} of {found.expected} engines are not on this host or not up"
            )
        return "; ".join(unread) or None

    def may_have_rows(self, log: RequestLog) -> bool:
        """Return whether rows of a request may still come: not if it ran in an engine whose rings are not read."""
        return self.matcher is not None and (bool(log.engine_id) or self.is_complete)

    async def attach(self, sessions: Sessions) -> None:
        """Load the tokenizer, attach to the rings and start reading them. Does nothing for a server without cards.

        Reading starts at the oldest rows still in the rings, so a gateway that starts late has those too. Rings that cannot be
        read are tried again by `follow`. The engines' control APIs are hardly waited for: tables of probes are files too.
        """
        if self.card is None:
            return
        if self.card.tokenizer:
            self.texts = await asyncio.to_thread(_load_texts, Path(self.card.tokenizer))
        self.matcher = Matcher(sessions, [], self.texts)
        self.follow(self.found)
        self.matcher.start()
        if self._tables_due is not None:
            await asyncio.wait([self._tables_due], timeout=_FIRST_TABLE_SECONDS)

    def follow(self, found: Found) -> None:
        """Read the rings of the engines in `found` from now on, and those only. Engines that stay are read without a gap."""
        matcher = self.matcher
        if matcher is None:
            return
        self.found = found
        self.controls.follow(found.replicas)
        self.unread = {name: why for name, why in self.unread.items() if name in found.ids}
        for replica in matcher.replicas:
            if replica.failure or replica.ids not in [tuple(c.id for c in cards) for cards in found.replicas]:
                matcher.remove(replica, "the connection to the engine was lost")
        read = {replica.ids for replica in matcher.replicas}
        for cards in found.replicas:
            if tuple(card.id for card in cards) not in read:
                self._read(matcher, cards)
        matcher.sort([cards[0].id for cards in found.replicas])
        if self._tables_due is None or self._tables_due.done():
            self._tables_due = asyncio.create_task(self._learn_tables())

    @property
    def needs_follow(self) -> bool:
        """Return whether the rings of an engine are not read although its cards are there."""
        matcher = self.matcher
        return matcher is not None and (bool(self.unread) or any(replica.failure for replica in matcher.replicas))

    def _read(self, matcher: Matcher, cards: Cards) -> None:
        """Attach to the rings of an engine. One that cannot be read does not stop the others."""
        parts: list[RingPart] = []
        name = cards[0].id
        try:
            parts += (
                RingPart(card, RingReader.attach(card.ring, from_oldest=True), matcher.versions) for card in cards
            )
        except RingError as error:
            for part in parts:
                part.reader.close()
            if self.unread.get(name) != str(error):
                _log.warning("engine %s: its scores cannot be read: %s", name, error)
            self.unread[name] = str(error)
            return
        self.unread.pop(name, None)
        matcher.add(Replica(parts))

    async def refresh_table(self) -> ProbeTable:
        """Fetch the probe tables of all engines, and return the first one's. One that does not answer keeps its last one."""
        if self.matcher is not None:
            tables = await self.controls.tables(_TABLE_SECONDS)
            for replica in self.matcher.replicas:
                for part in replica.parts:
                    status, body = tables.get(part.card.id, (0, b""))
                    if status == 200:
                        part.tables.learn(body)
        return self.table

    async def _learn_tables(self) -> None:
        """Fetch the probe tables, until every engine has answered once."""
        while not self._given_up:
            try:
                await self.refresh_table()
            except Exception as error:  # boundary: rows bring their tables with them, so scores do not depend on this
                _log.warning("the probes could not be asked for: %s", error or type(error).__name__)
            if not self.controls.silent:
                return
            await asyncio.sleep(_AGAIN_SECONDS)

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
        if self._tables_due is not None:
            self._tables_due.cancel()
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
