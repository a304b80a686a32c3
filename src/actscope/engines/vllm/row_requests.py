"""Which running requests have their raw rows published, which have recording options of their own, and what computes them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from msgspec.structs import replace

from actscope.engines.vllm.settings import VllmSettings
from actscope.engines.vllm.sidecar_protocol import MAX_OPTION_CHARS, RequestOptions, external_id, options_of
from actscope.ring.request_ids import ring_id
from actscope.sampling import keeps


class RowRequests:
    """Reads the options of requests when they are scheduled, and forgets them when they finish."""

    def __init__(self, settings: VllmSettings, *, rows_kept: bool) -> None:
        self._settings = settings
        self._rows_kept = rows_kept
        self._with_rows: set[str] = set()
        self._running: dict[str, RequestOptions] = {}
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
        if new.req_id in self._running:
            return None
        rows, why = asked if isinstance(asked, str) else "", keep if isinstance(keep, str) else ""
        why = why or ("asked" if asked else "")
        adapter = getattr(getattr(new, "lora_request", None), "lora_name", None) or ""
        found = RequestOptions(
            ring_id(new.req_id),
            rows[:MAX_OPTION_CHARS],
            why[:MAX_OPTION_CHARS],
            adapter[:MAX_OPTION_CHARS],
            self._weights,
        )
        self._running[new.req_id] = found
        return found if self.has_options(new.req_id) else None

    def _wants_rows(self, request: str, asked: object, keep: object) -> bool:
        settings = self._settings
        if asked is not None:
            return bool(asked)
        sampled = settings.sample > 0 and keeps(external_id(ring_id(request)), settings.sample)
        return settings.rows == "all" or bool(keep) or sampled

    def forget(self, finished: Iterable[str]) -> None:
        """Forget finished requests."""
        self._with_rows.difference_update(finished)
        for request in finished:
            self._running.pop(request, None)

    def wants_rows(self, request: str) -> bool:
        """Return whether the raw rows of a running request are published."""
        return request in self._with_rows

    def has_options(self, request: str) -> bool:
        """Return whether the sidecar must know more of a running request than its rows: that is delivered out of band."""
        found = self._running.get(request)
        return found is not None and bool(found.rows or found.keep or found.adapter or found.weights)

    def set_weights(self, version: int) -> list[RequestOptions]:
        """Note that the model's weights changed for the `version`-th time. Return the new options of all running requests."""
        self._weights = version
        self._running = {name: replace(options, weights=version) for name, options in self._running.items()}
        return list(self._running.values())

    def none_in(self, requests: Iterable[str]) -> bool:
        """Return whether none of these requests wants raw rows."""
        return self._with_rows.isdisjoint(requests)
