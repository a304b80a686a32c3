"""The probe tables of one ring, by generation, as the engine publishes them."""

from __future__ import annotations

import logging

import msgspec

from actscope.gateway.scores.probe_table import EMPTY_TABLE, ProbeTable, table_of
from actscope.ring.discovery import EngineCard, read_table

_log = logging.getLogger(__name__)

_KEPT = 64


class Tables:
    """Each is read once, when its first row comes. `unreadable` counts those that could not be."""

    def __init__(self, card: EngineCard) -> None:
        self._card = card
        self._known: dict[int, ProbeTable | None] = {}
        self.latest = EMPTY_TABLE
        self.unreadable = 0

    def of(self, generation: int) -> ProbeTable | None:
        """The table of a generation, None when it cannot be read."""
        if generation not in self._known:
            self._known[generation] = self._read(generation)
            while len(self._known) > _KEPT:
                self._known.pop(next(iter(self._known)))
        table = self._known[generation]
        if table is not None and table is not self.latest and table.generation >= self.latest.generation:
            self.latest = table
        return table

    def learn(self, described: bytes) -> None:
        """The table in force, as the engine answers `GET /v1/actscope/probes`."""
        self.latest = table_of(msgspec.json.decode(described), self._card.part, self._card.parts)

    def _read(self, generation: int) -> ProbeTable | None:
        card = self._card
        try:
            return table_of(msgspec.json.decode(read_table(card.id, generation)), card.part, card.parts)
        except (OSError, ValueError, KeyError, TypeError, msgspec.MsgspecError) as error:
            self.unreadable += 1
            if self.unreadable == 1:
                _log.warning(
                    "probe table %d of engine %s: %s; its scores are not delivered", generation, card.id, error
                )
            return None
