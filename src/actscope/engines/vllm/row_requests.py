"""Which requests have their raw rows published, which have recording options of their own, and which are to be kept."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from msgspec.structs import replace

from actscope.counters import Counter, counted, counters_of, counting, current
from actscope.engines.vllm.settings import VllmSettings
from actscope.engines.vllm.sidecar_protocol import MAX_OPTION_CHARS, RequestOptions, external_id, options_of
from actscope.ring.request_ids import ring_id
from actscope.sampling import keeps

#: Most requests that are to be kept and are not settled.
_MOST_KEPT = 1 << 16


@counting("kept")
@dataclass(slots=True)
class KeptCounts:
    """Counts of the requests that are to be kept, in the model's process."""

    unsettled_requests: int = current("Requests to be kept of which the sidecar has not said what became of them.")
    forgotten_wishes: int = counted(
        "loss",
        "Requests to be kept that a sidecar will not learn of, because too many before them are not settled.",
        "See sidecar_deaths and vLLM's log for why the sidecar does not record.",
    )


class RowRequests:
    """Reads the options of requests when they are scheduled, and forgets them when they finish.

    A request that is to be kept is remembered until the sidecar has settled it, so that a new sidecar learns what the last one
    knew. The model's thread begins and forgets requests. The sidecar's threads call `wishes`, `running`, `mark` and `settle`:
    each copies or changes a dict in one operation, which no other thread can interrupt, so the model's thread takes no lock.

    Attributes:
        forgotten_wishes: Requests to be kept of which too many were not settled. Nothing more is told of them.
    """

    def __init__(self, settings: VllmSettings, *, rows_kept: bool) -> None:
        self._settings = settings
        self._rows_kept = rows_kept
        self._with_rows: set[str] = set()
        self._running: dict[str, RequestOptions] = {}  # by the name in the rings, as the sidecar knows them
        self._kept: dict[str, RequestOptions] = {}  # running, or not settled yet
        self.forgotten_wishes = 0
        self._weights = 0

    def begin(self, new: Any) -> RequestOptions | None:
        """Read the options of a request (vLLM's NewRequestData) that is scheduled for the first time, or after preemption.

        Returns:
            Recording options that the sidecar must learn of, once a request, or None.
        """
        params = new.sampling_params
        options = options_of(params.extra_args) if params is not None else {}
        asked, keep = options.get("rows"), options.get("keep")
        if self._rows_kept and self._wants_rows(new.req_id, asked, keep):
            self._with_rows.add(new.req_id)
        name = ring_id(new.req_id)
        if name in self._running:
            return None
        rows, why = asked if isinstance(asked, str) else "", keep if isinstance(keep, str) else ""
        why = why or ("asked" if asked else "")
        adapter = getattr(getattr(new, "lora_request", None), "lora_name", None) or ""
        found = RequestOptions(
            name,
            rows[:MAX_OPTION_CHARS],
            why[:MAX_OPTION_CHARS],
            adapter[:MAX_OPTION_CHARS],
            self._weights,
        )
        self._running[name] = found
        if self._rows_kept and self._settings.record:
            self._keep(found)
        return found if self.has_options(new.req_id) else None

    def _is_sampled(self, request: str) -> bool:
        return self._settings.sample > 0 and keeps(external_id(request), self._settings.sample)

    def _keep(self, options: RequestOptions) -> None:
        """Remember a request if it is to be kept."""
        if not options.keep and self._is_sampled(options.request):
            options = replace(options, keep=f"sample {self._settings.sample:g}")
        if not options.keep:
            return
        if len(self._kept) >= _MOST_KEPT:  # the sidecar has been gone for long
            self.forgotten_wishes += 1
            return
        self._kept[options.request] = options

    # --- for the sidecar, from its threads ---

    def running(self) -> list[str]:
        """Return the names in the rings of the running requests."""
        return list(self._running)

    def wishes(self) -> list[RequestOptions]:
        """Return the options of all running requests that have any, and of those that are to be kept and not settled."""
        kept = dict(self._kept)
        running = [options for options in list(self._running.values()) if _says_something(options)]
        return [*(options for options in running if options.request not in kept), *kept.values()]

    def mark(self, request: str, why: str, name: str) -> None:
        """Note that the sidecar has marked a request, and what the recording calls it."""
        options = self._kept.get(request) or self._running.get(request) or RequestOptions(request)
        self._kept[request] = replace(options, keep=options.keep or why or "marked", name=name)

    def settle(self, requests: Iterable[str]) -> None:
        """Forget requests of which the sidecar has recorded all, or counted as lost what it has not."""
        for request in requests:
            self._kept.pop(request, None)

    def counters(self) -> list[Counter]:
        """Return the counters of the requests that are to be kept."""
        return counters_of(KeptCounts(self.unsettled, self.forgotten_wishes))

    @property
    def unsettled(self) -> int:
        """Return how many requests that are to be kept are not settled."""
        return len(self._kept)

    # --- the rest ---

    def _wants_rows(self, request: str, asked: object, keep: object) -> bool:
        settings = self._settings
        if asked is not None:
            return bool(asked)
        return settings.rows == "all" or bool(keep) or self._is_sampled(ring_id(request))

    def forget(self, finished: Iterable[str]) -> None:
        """Forget finished requests."""
        self._with_rows.difference_update(finished)
        for request in finished:
            self._running.pop(ring_id(request), None)

    def wants_rows(self, request: str) -> bool:
        """Return whether the raw rows of a running request are published."""
        return request in self._with_rows

    def has_options(self, request: str) -> bool:
        """Return whether the sidecar must know more of a running request than its rows: that is delivered out of band."""
        found = self._running.get(ring_id(request))
        return found is not None and _says_something(found)

    def set_weights(self, version: int) -> list[RequestOptions]:
        """Note that the model's weights changed for the `version`-th time. Return the new options of all running requests."""
        self._weights = version
        self._running = {name: replace(options, weights=version) for name, options in self._running.items()}
        for name, options in list(self._kept.items()):
            if name in self._running:
                self._kept[name] = replace(options, weights=version)
        return list(self._running.values())

    def none_in(self, requests: Iterable[str]) -> bool:
        """Return whether none of these requests wants raw rows."""
        return self._with_rows.isdisjoint(requests)


def _says_something(options: RequestOptions) -> bool:
    """Return whether the options say more of a request than its rows do."""
    return bool(options.rows or options.keep or options.adapter or options.weights)
