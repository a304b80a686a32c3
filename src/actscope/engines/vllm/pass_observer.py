"""Follows the passes of a publishing rank: what each contained, and when its rows can be published."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from actscope.counters import Counter, counted, counters_of, counting
from actscope.engines.pass_clock import PassClock
from actscope.engines.vllm.bank import InForce
from actscope.engines.vllm.publishing.device_copy import CudaCopier, HostCopier
from actscope.engines.vllm.publishing.labels import known_of
from actscope.engines.vllm.publishing.publisher import PassNote, PublishedCounts, Publisher
from actscope.engines.vllm.row_requests import RowRequests
from actscope.engines.vllm.runners import PassBatch, Runner
from actscope.engines.vllm.sidecar_client import NoSidecar, Sidecar
from actscope.engines.vllm.sidecar_protocol import WeightsChanged
from actscope.taps.tap import TapBuffers

log = logging.getLogger("actscope.vllm")


@counting("observer")
@dataclass(slots=True)
class ObserverCounts:
    """Counts of what befell the observer itself."""

    faults: int = counted(
        "fault",
        "Internal errors around a pass; the pass has no scores, generation went on.",
        "See vLLM's log for the first one, and report it.",
    )


class PassObserver:
    """Callbacks around each pass, on the model's thread. They never raise and never wait for a reader.

        before ──▶ the pass ──▶ after ──▶ copied and published
                                  └─▶ waiting, if it had drafts ──▶ sampled ──▶ copied and published

    A pass that waits and is never sampled is published without rows: its accepted drafts are unknown.

    Attributes:
        clock: Stamps the borders of each pass.
        faults: Number of callbacks that failed. Only the first failure is logged.
    """

    def __init__(
        self,
        runner: Runner,
        buffers: TapBuffers,
        copier: CudaCopier | HostCopier,
        requests: RowRequests,
        sidecar: Sidecar | NoSidecar,
        open_publisher: Callable[[], Publisher],
    ) -> None:
        """Take the parts of a session. `open_publisher` is called once, before the first request's pass."""
        self._runner, self._buffers, self._copier = runner, buffers, copier
        self._requests, self._sidecar = requests, sidecar
        self._open_publisher = open_publisher
        self.clock = PassClock()
        self._publisher: Publisher | None = None
        self._bank = InForce({}, np.zeros(buffers.n_columns, np.int64))
        self._waiting: tuple[PassNote, PassBatch] | None = None
        self._with_rows = False
        self.faults = 0

    def before(self, scheduled: Any) -> None:
        """Prepare a pass: apply staged probes and note new and finished requests."""
        if scheduled.total_num_scheduled_tokens:  # else the pass before is still the latest one
            self.clock.scheduled()
        try:
            self._before(scheduled)
        except Exception:  # a fault of ours must never stop the model
            self._fault("before a pass")

    def before_dummy(self) -> None:
        """Note a pass without requests, which overwrites the buffers and is counted by the taps."""
        try:
            publisher = self._publisher
            if publisher is not None:
                self._copier.before_pass()
                self._copier.pass_over(publisher.expect_dummy)
        except Exception:  # a fault of ours must never stop the model
            self._fault("before a dummy pass")

    def after(self, scheduled: Any) -> None:
        """Publish a launched pass; with drafts, wait for `sampled` to know which were accepted."""
        if scheduled.total_num_scheduled_tokens:
            self.clock.ended()
        try:
            self._after(scheduled)
        except Exception:
            self._fault("after a pass")

    def sampled(self) -> None:
        """Publish the pass that waited for sampling."""
        self.clock.sampled()
        try:
            waiting, self._waiting = self._waiting, None
            if waiting is not None:
                waiting[0].times = self.clock.times()
                self._publish(*waiting)
        except Exception:
            self._fault("after sampling")

    def waiting(self) -> PassBatch | None:
        """Return the pass that waits for sampling, or None."""
        return self._waiting[1] if self._waiting else None

    def counts(self) -> PublishedCounts:
        """Return row counts since the start."""
        return self._publisher.counts if self._publisher else PublishedCounts()

    def counters(self) -> list[Counter]:
        """Return the counters of the passes, and of the observer itself."""
        return [*counters_of(self.counts()), *counters_of(ObserverCounts(self.faults))]

    def weights_changed(self, version: int, refused: dict[int, str], by_name: dict[str, str]) -> None:
        """Note that the weights changed for the `version`-th time, and that the taps ran meanwhile. May wait for the device.

        Args:
            version: How often they have changed.
            refused: Tapped sites, by index, that are not read right any more. None of their data is delivered from now on.
            by_name: All refused sites, for the sidecar.
        """
        publisher = self._publisher or self._begin()
        fired = self._buffers.fired.cpu().numpy().copy()
        self._copier.pass_over(lambda: publisher.weights_changed(version, fired, refused))
        self._sidecar.tell(WeightsChanged(version, by_name))
        for options in self._requests.set_weights(version):
            self._sidecar.tell(options)

    # --- before a pass ---

    def _before(self, scheduled: Any) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            self._publish_without_rows(waiting[0])
        self._copier.before_pass()
        publisher = self._publisher or self._begin()
        if not self._buffers.fired.is_cuda:  # readable without a sync: a dummy pass in between is then no fault
            publisher.forget_passes(self._buffers.fired.numpy())
        staged = self._sidecar.staged()
        if staged is not None:
            self._bank = staged.put(self._buffers, self._bank)
        self._requests.forget(scheduled.finished_req_ids)
        for new in scheduled.scheduled_new_reqs:
            options = self._requests.begin(new)
            if options is not None:
                self._sidecar.tell(options)
        with_rows = not self._requests.none_in(scheduled.num_scheduled_tokens)
        if with_rows != self._with_rows:
            self._with_rows = with_rows
            self._buffers.wanted.fill_(int(with_rows))

    def _begin(self) -> Publisher:
        """Create the publisher. Everything that the taps counted so far was warm-up."""
        self._publisher = publisher = self._open_publisher()
        publisher.forget_passes(self._buffers.fired.cpu().numpy())
        return publisher

    # --- after a pass ---

    def _after(self, scheduled: Any) -> None:
        if self._publisher is None:
            return
        n = scheduled.total_num_scheduled_tokens
        note = self._note(scheduled, n, self._publisher.kv_group)
        if not n:
            if note.ended or note.begun:
                self._publish_without_rows(note)
            return
        try:
            batch = self._runner.batch(scheduled)
        except Exception:
            self._publish_without_rows(note)  # the requests of the pass begin and end anyway
            raise
        note.requests, note.starts = batch.requests, batch.starts
        if int(batch.starts[-1]) != batch.n_tokens:  # host and device disagree about the rows of each request
            self._publish_without_rows(note)
        elif batch.drafts is not None and batch.drafts.any():
            self._waiting = note, batch
        else:
            self._publish(note, batch)

    def _note(self, scheduled: Any, n_rows: int, kv_group: int | None) -> PassNote:
        cached, requests = scheduled.scheduled_cached_reqs, self._requests
        blocks = [
            (request, new[kv_group], request in cached.resumed_req_ids)
            for request, new in zip(cached.req_ids, cached.new_block_ids, strict=True)
            if kv_group is not None and new is not None
        ]
        begun = [
            known_of(new, kv_group, rows=requests.wants_rows(new.req_id), has_options=requests.has_options(new.req_id))
            for new in scheduled.scheduled_new_reqs
        ]
        copies = [(copy.src_block_id, copy.dst_block_id) for copy in scheduled.kv_cache_block_copies or ()]
        return PassNote(
            [],
            np.zeros(1, np.int64),
            begun,
            list(scheduled.finished_req_ids),
            self._bank.generation,
            self._bank.columns_of,
            self._bank.since,
            blocks,
            copies,
            n_rows=n_rows,
            times=self.clock.times() if n_rows else self.clock.sampling_only(),
        )

    def _publish(self, note: PassNote, batch: PassBatch) -> None:
        publisher = self._publisher
        assert publisher is not None
        try:
            landed = self._copier.copy(
                batch,
                self._with_rows,
                lambda on_host: publisher.publish(note, on_host),
                lambda: publisher.publish(note, None),
            )
        except Exception:
            self._publish_without_rows(note)  # its requests begin and end anyway
            raise
        if not landed:
            self._publish_without_rows(note)

    def _publish_without_rows(self, note: PassNote) -> None:
        """Publish what is known of a pass whose rows are unavailable."""
        publisher = self._publisher
        assert publisher is not None
        self._copier.pass_over(lambda: publisher.publish(note, None))

    def _fault(self, when: str) -> None:
        self.faults += 1
        if self.faults == 1:
            log.exception("actscope failed %s (further ones are only counted); generation goes on", when)
