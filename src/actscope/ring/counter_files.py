"""Counters of engines as files of the runtime directory: `counters-<card id>-<source>.json`, one for each process that counts.

A file is readable while the process that wrote it is busy, hung or dead, by readers that have no connection to it.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Iterable, Sequence

import msgspec

from actscope.counters import Counter, CounterLog, CounterReport, summed
from actscope.errors import RingError
from actscope.runtime.decoding import decode_json
from actscope.runtime.directory import runtime_dir
from actscope.runtime.private_files import publish_private, read_private

_log = logging.getLogger(__name__)

#: Largest file that is read. A report has about 200 bytes a counter.
MAX_COUNTERS_BYTES = 256 << 10
#: Most reports that are read for one engine.
MAX_SOURCES = 16
#: How often the processes of an engine publish their counters, in seconds.
PUBLISH_SECONDS = 5.0


class CounterFile:
    """Publishes the counters of one process of an engine, and logs those that tell of a loss, a doubt or a fault.

    Args:
        card_id: Id of the engine's card, with which the file is removed.
        source: The process: `model`, `sidecar` or `engine`.
        read: Returns the counters. Called on the thread that calls `publish`.
        part: Index of the engine's part.
        log: Log of the process.
        carry: Prefixes of counters that begin at 0 in this process and carry on those of an earlier one with the same name (a
            sidecar that has died).
    """

    def __init__(
        self,
        card_id: str,
        source: str,
        read: Callable[[], Sequence[Counter]],
        *,
        part: int,
        log: logging.Logger,
        carry: tuple[str, ...] = (),
    ) -> None:
        self._name = f"counters-{card_id}-{source}.json"
        self._card_id, self._source, self._part, self._read = card_id, source, part, read
        self._log, self._carry = CounterLog(log), carry
        self._earlier: dict[str, Counter] | None = None
        self._last: bytes = b""
        self._failed = False

    def publish(self) -> None:
        """Write the file if a value has changed since the last call. Does not raise: a failure is logged once."""
        try:
            counters = self._carried(self._read())
            self._log.tell(counters)
            content = msgspec.json.encode(CounterReport(self._source, counters, self._card_id, self._part))
            if content != self._last:
                publish_private(runtime_dir() / self._name, content)
                self._last = content
        except Exception as error:  # the boundary: counting must end neither a heartbeat nor an engine
            if not self._failed:
                self._failed = True
                _log.warning("counters are not published: %s: %s", type(error).__name__, error)

    def _carried(self, counters: Iterable[Counter]) -> list[Counter]:
        if self._earlier is None:
            self._earlier = self._read_earlier()
        now = [CounterReport(self._source, list(counters)), CounterReport(self._source, [*self._earlier.values()])]
        return summed(now)

    def _read_earlier(self) -> dict[str, Counter]:
        path = runtime_dir() / self._name
        if not self._carry or not path.exists():
            return {}
        try:
            before = _decode(read_private(path, MAX_COUNTERS_BYTES), self._card_id).counters
        except RingError as error:
            _log.warning("earlier counts are not carried on: %s: %s", path, error)
            before = []
        return {one.name: one for one in before if one.kind != "now" and one.name.startswith(self._carry)}


async def publish_always(counter_file: CounterFile) -> None:
    """Publish every 5 seconds, on a thread of its own, until cancelled."""
    while True:
        await asyncio.to_thread(counter_file.publish)
        await asyncio.sleep(PUBLISH_SECONDS)


def read_reports(card_id: str) -> list[CounterReport]:
    """Return the reports of the processes of the engine with this card. A file that cannot be read is logged and left out."""
    name = re.compile(rf"counters-{re.escape(card_id)}-[a-z]{{1,16}}\.json")
    found: list[CounterReport] = []
    for path in sorted(runtime_dir().iterdir()):
        if name.fullmatch(path.name) and len(found) < MAX_SOURCES:
            try:
                found.append(_decode(read_private(path, MAX_COUNTERS_BYTES), card_id))
            except RingError as error:
                _log.warning("left out %s: %s", path, error)
    return found


def _decode(content: bytes, expected_id: str) -> CounterReport:
    report = decode_json(content, CounterReport, RingError, f"counters of {expected_id}: remove the file")
    if report.engine != expected_id:
        raise RingError(f"counters of {expected_id}: they are of engine {report.engine!r}: remove the file")
    return report
