"""State file of a feed: its position, so that the next run continues there.

The file is at most about a second behind: rows served since then are served again after a crash. A trainer that keeps the
position of its last batch in its own checkpoint, and resumes from it, continues exactly.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from actscope.errors import FeedError, SettingsError
from actscope.feed.buffer.position import Position
from actscope.feed.messages import Loaded
from actscope.feed.settings import FeedSettings
from actscope.runtime.decoding import decode_json
from actscope.runtime.publish import publish_file
from actscope.runtime.regular_files import read_regular

if TYPE_CHECKING:
    from actscope.feed.server.broker import Broker

log = logging.getLogger("actscope.feed")

_EVERY_S = 1.0
_MOST = 1 << 16
#: Settings that define the order. With other values, a position refers to other rows.
_ORDER = (
    "model", "dataset", "split", "column", "texts", "sites", "model_dtype", "context", "mask", "chunk_texts", "window_rows",
    "serves", "seed", "shuffle",
)  # fmt: skip


class _Content(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: str
    position: str
    order: dict[str, str]
    revision: str = ""
    fingerprint: str = ""


class StateFile:
    """State file, replaced atomically. `position` is the one that it had when it was opened; None if there was no file."""

    def __init__(self, path: Path, order: dict[str, str], found: _Content | None) -> None:
        self._path, self._order, self._found = path, order, found
        self.position = Position.parse(found.position) if found else None
        self._writing = threading.Lock()
        self._written: Position | None = None
        self.failure = ""
        """Why the file is out of date, or an empty text."""

    @classmethod
    def open(cls, settings: FeedSettings) -> StateFile:
        """Open the file that `settings.state` names. It need not exist.

        Raises:
            SettingsError: Its directory does not exist, it is not a state file, or it belongs to another order.
        """
        path = Path(settings.state)
        order = {name: str(getattr(settings, name)) for name in _ORDER}
        if not path.parent.is_dir():
            raise SettingsError(f"feed state {path}: there is no directory {path.parent}")
        try:
            raw = read_regular(path, _MOST, SettingsError)
        except FileNotFoundError:
            return cls(path, order, None)
        content = decode_json(raw, _Content, SettingsError, f"feed state {path}: is not a state file of a feed")
        differing = [name for name in _ORDER if content.order.get(name) != order[name]]
        if differing:
            told = ", ".join(f"{name} (was {content.order.get(name)}, is {order[name]})" for name in differing)
            raise SettingsError(f"feed state {path}: belongs to another order: {told}; remove the file to start over")
        return cls(path, order, content)

    def check(self, facts: Loaded) -> None:
        """Raise FeedError if the model or the dataset has changed since the file was written."""
        for name, was, now in (
            ("the model", self._found and self._found.revision, facts.revision),
            ("the dataset", self._found and self._found.fingerprint, facts.fingerprint),
        ):
            if was and was != now:
                raise FeedError(
                    f"feed state {self._path}: {name} has changed since the file was written (was {was}, is {now}), and so has "
                    "the order; remove the file to start over"
                )

    async def keep(self, broker: Broker) -> None:
        """Write the position whenever it has changed, at most once a second. Never returns."""
        while True:
            await asyncio.sleep(_EVERY_S)
            position = broker.buffer.lowest_position()
            if position == self._written or broker.facts is None:
                continue
            try:
                await asyncio.to_thread(self.write, position, broker.facts)
            except OSError as error:  # a full disk may have room again
                if not self.failure:  # every second would be too often
                    log.error("feed state %s cannot be written (%s): it is out of date", self._path, error)
                self.failure = str(error)

    def write(self, position: Position, facts: Loaded | None) -> None:
        """Replace the file durably and atomically. Does nothing before the model is loaded (`facts` is None)."""
        if facts is None:
            return
        content = _Content("actscope-feed-state", str(position), self._order, facts.revision, facts.fingerprint)
        with self._writing:
            publish_file(self._path, msgspec.json.format(msgspec.json.encode(content), indent=1) + b"\n")
        self._written, self.failure = position, ""
