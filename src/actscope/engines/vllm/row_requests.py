"""Which running requests have their raw rows published, and which have recording options of their own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from actscope.engines.vllm.settings import VllmSettings
from actscope.engines.vllm.sidecar_protocol import MAX_OPTION_CHARS, RequestOptions, external_id, options_of
from actscope.sampling import keeps


class RowRequests:
    """Reads the options of requests when they are scheduled, and forgets them when they finish."""

    def __init__(self, settings: VllmSettings, *, rows_kept: bool) -> None:
        self._settings = settings
        self._rows_kept = rows_kept
        self._with_rows: set[str] = set()
        self._with_options: set[str] = set()

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
        if not (asked or keep) or new.req_id in self._with_options:
            return None
        self._with_options.add(new.req_id)
        rows, why = asked if isinstance(asked, str) else "", keep if isinstance(keep, str) else ""
        why = why or ("asked" if asked else "")
        return RequestOptions(new.req_id, rows[:MAX_OPTION_CHARS], why[:MAX_OPTION_CHARS])

    def _wants_rows(self, request: str, asked: object, keep: object) -> bool:
        settings = self._settings
        if asked is not None:
            return bool(asked)
        sampled = settings.sample > 0 and keeps(external_id(request), settings.sample)
        return settings.rows == "all" or bool(keep) or sampled

    def forget(self, finished: Iterable[str]) -> None:
        """Forget finished requests."""
        self._with_rows.difference_update(finished)
        self._with_options.difference_update(finished)

    def wants_rows(self, request: str) -> bool:
        """Return whether the raw rows of a running request are published."""
        return request in self._with_rows

    def has_options(self, request: str) -> bool:
        """Return whether a running request has recording options, delivered out of band."""
        return request in self._with_options

    def none_in(self, requests: Iterable[str]) -> bool:
        """Return whether none of these requests wants raw rows."""
        return self._with_rows.isdisjoint(requests)
