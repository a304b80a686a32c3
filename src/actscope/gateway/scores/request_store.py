"""Bounded store of all requests that the gateway knows: those in flight and recent ones."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from actscope.counters import counted, counting, current
from actscope.gateway.scores.request_log import RequestLog
from actscope.gateway.settings import GatewaySettings
from actscope.ring.request_ids import ring_ids

#: Number of forgotten requests that stay distinguishable from unknown ones.
_TOMBSTONES = 65_536

#: Trimming reads all logs. It happens when this share of the logs is new, so that many requests at once do not cost their square.
_TRIM_SHARE = 16


@dataclass(slots=True)
class Flight:
    """Completion in flight: the logs of its choices, and the callbacks that abort it."""

    response: str
    logs: list[RequestLog]
    cancelled: bool = False
    on_end: Callable[[], object] | None = None
    """Called when the completion has ended and all its logs have finished."""
    _on_cancel: list[Callable[[], object]] = field(default_factory=list)

    def on_cancel(self, abort: Callable[[], object]) -> None:
        """Call `abort` on cancellation, or now if the completion was cancelled already."""
        self._on_cancel.append(abort)
        if self.cancelled:
            abort()

    def cancel(self) -> None:
        """Abort the completion. Idempotent."""
        if not self.cancelled:
            self.cancelled = True
            for abort in self._on_cancel:
                abort()


@counting("log")
@dataclass(slots=True)
class StoreCounts:
    """Counts of the requests that the gateway has forgotten, and how many it knows."""

    requests: int = current("Requests in the gateway's log.")
    in_flight: int = current("Completions in flight.")
    expired: int = counted("work", "Ended requests that were forgotten after their time.")
    evicted: int = counted("work", "Ended requests that were forgotten before their time, because the log was full.")
    evicted_running: int = counted(
        "loss",
        "Running requests of other clients that were forgotten, because the log was full; they have no scores from then on.",
        "Raise --log-requests and --log-positions.",
    )


class Sessions:
    """Request logs by id, newest last. Ended ones are forgotten after `log_seconds`, or earlier when there are too many.

    The id of a log is unique. Other names (of its response, of its choice as the client sees it, the engine's own) may be shared:
    a client may give two requests one `X-Request-Id`.

    Args:
        settings: `log_requests`, `log_positions` and `log_seconds` are used.
        on_finish: Called with each log when it has finished, or None.
    """

    def __init__(self, settings: GatewaySettings, on_finish: Callable[[RequestLog], object] | None = None) -> None:
        self._settings = settings
        self._on_finish = on_finish
        self._logs: OrderedDict[str, RequestLog] = OrderedDict()
        self._named: dict[str, list[str]] = {}
        self._forgotten: OrderedDict[str, None] = OrderedDict()
        self._flights: dict[str, Flight] = {}
        self._counts = StoreCounts()
        self._added = 0

    def __iter__(self) -> Iterator[RequestLog]:
        return iter(list(self._logs.values()))

    @property
    def n_in_flight(self) -> int:
        """Return the number of completions in flight."""
        return len(self._flights)

    def counts(self) -> StoreCounts:
        """Return counts of the requests that are known, and of those that were forgotten."""
        return replace(self._counts, requests=len(self._logs), in_flight=len(self._flights))

    def add(self, log: RequestLog) -> None:
        """Add a request. The oldest ended ones are forgotten to make room for it."""
        self._logs[log.request] = log
        log.on_finish = self._on_finish
        for name in _names(log):
            self.name(log, name)
        self._added += 1
        if self._added * _TRIM_SHARE > len(self._logs):
            self.trim()

    def name(self, log: RequestLog, name: str) -> None:
        """Let a log be found by one more name."""
        if name != log.request and self.holds(log):
            keys = self._named.setdefault(name, [])
            if log.request not in keys:
                keys.append(log.request)

    def get(self, request: str) -> RequestLog | None:
        """Return the log with this id, or the only one with this name. None if there is none, or several; see `candidates`.

        A long id may be known by a shorter name, as in the ring (see `ring.request_ids`).
        """
        return next(filter(None, map(self._get, ring_ids(request))), None)

    def _get(self, request: str) -> RequestLog | None:
        log = self._logs.get(request)
        if log is None:
            logs = self._having(request)
            log = logs[0] if len(logs) == 1 else None
        return log

    def own(self, request: str) -> RequestLog | None:
        """Return the log of the gateway's own request with this id, or None. Names do not count."""
        log = self._logs.get(request)
        return log if log is not None and log.source == "gateway" else None

    def adopted(self, request: str) -> RequestLog | None:
        """Return the log with this id of a request that went to the engine directly, or None. Names do not count."""
        log = self._logs.get(request)
        return log if log is not None and log.source == "engine" else None

    def holds(self, log: RequestLog) -> bool:
        """Return whether the log is in the store."""
        return self._logs.get(log.request) is log

    def candidates(self, name: str) -> list[RequestLog]:
        """Return all logs with this name: the choices of a response, and requests that share an id.

        If the gateway made the name for a request of its own, only logs of that request: others have copied it. A long name may
        have been shortened, as in `get`.
        """
        return next(filter(None, map(self._having, ring_ids(name))), [])

    def _having(self, name: str) -> list[RequestLog]:
        logs = [self._logs[key] for key in self._named.get(name, ())]
        return [log for log in logs if log.source == "gateway"] or logs

    def was_forgotten(self, request: str) -> bool:
        """Return whether the request was known and has been forgotten."""
        return any(name in self._forgotten for name in ring_ids(request))

    def remove(self, log: RequestLog) -> None:
        """Remove a request that the engine did not accept. It does not count as forgotten."""
        if self._logs.pop(log.request, None) is not None:
            self._drop_names(log)

    def begin(self, flight: Flight) -> None:
        """Add a completion in flight and the logs of its choices."""
        self._flights[flight.response] = flight
        for log in flight.logs:
            self.add(log)

    def end(self, flight: Flight) -> None:
        """Remove a completion in flight. The logs of its choices stay."""
        self._flights.pop(flight.response, None)
        if flight.on_end is not None:
            flight.on_end()

    def flight_of(self, log: RequestLog) -> Flight | None:
        """Return the completion in flight that this log belongs to, or None."""
        return self._flights.get(log.response)

    def flight(self, response: str) -> Flight | None:
        """Return the completion in flight with this response id, or None."""
        return self._flights.get(response)

    def trim(self) -> None:
        """Forget ended requests that are too old, then the oldest others until the bounds hold.

        Among the others, ended ones go first, then running ones of other clients. The newest one always stays.
        """
        self._added = 0
        horizon = time.monotonic_ns() - int(self._settings.log_seconds * 1e9)
        for log in self:
            if log.state != "running" and log.ended_ns < horizon:
                self._counts.expired += 1
                self._forget(log)
        excess_logs = len(self._logs) - self._settings.log_requests
        excess_positions = sum(log.present for log in self._logs.values()) - self._settings.log_positions
        for log in self._by_dispensability() if excess_logs > 0 or excess_positions > 0 else ():
            if excess_logs <= 0 and excess_positions <= 0:
                return
            self._counts.evicted += log.state != "running"
            self._counts.evicted_running += log.state == "running"
            excess_logs -= 1
            excess_positions -= log.present
            self._forget(log)

    def _by_dispensability(self) -> list[RequestLog]:
        ended = [log for log in self._logs.values() if log.state != "running"]
        foreign = [log for log in self._logs.values() if log.state == "running" and log.source == "engine"]
        newest = next(reversed(self._logs.values()))
        return [log for log in (*ended, *foreign) if log is not newest]

    def _forget(self, log: RequestLog) -> None:
        log.finish("aborted", "abort")  # ends the streams of its readers
        del self._logs[log.request]
        self._drop_names(log)
        for name in {log.request, *_names(log)}:
            self._forgotten[name] = None
        while len(self._forgotten) > _TOMBSTONES:
            self._forgotten.popitem(last=False)

    def _drop_names(self, log: RequestLog) -> None:
        for name in _names(log):
            keys = self._named.get(name, [])
            if log.request in keys:
                keys.remove(log.request)
            if not keys:
                self._named.pop(name, None)


def _names(log: RequestLog) -> set[str]:
    """Return the names of a log: its response's, the one that the client sees, and the engine's."""
    return {log.response, log.external, log.engine_id} - {""}
