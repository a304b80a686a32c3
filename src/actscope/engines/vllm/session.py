"""RunnerSession: one observed model runner, from the attachment of its taps to the end of its sidecar."""

from __future__ import annotations

import logging
import os
import secrets
from dataclasses import asdict, dataclass
from functools import wraps
from typing import Any

import msgspec
import torch
from torch import nn

from actscope.counters import Counter, counted, counters_of, counting
from actscope.engines.vllm.model_taps import ModelTaps, listed
from actscope.engines.vllm.pass_observer import PassObserver
from actscope.engines.vllm.publishing.device_copy import CopierCounts, CudaCopier, HostCopier, depth_of
from actscope.engines.vllm.publishing.prefix_scores import PrefixScores
from actscope.engines.vllm.publishing.publisher import PublishedCounts, Publisher
from actscope.engines.vllm.publishing.rings import Rings
from actscope.engines.vllm.row_requests import RowRequests
from actscope.engines.vllm.runners import Runner, adapt, kv_pool, served_model
from actscope.engines.vllm.settings import VllmSettings
from actscope.engines.vllm.sidecar_client import NoSidecar, Sidecar
from actscope.engines.vllm.sidecar_protocol import SidecarStart
from actscope.errors import EngineError, SettingsError, SiteError
from actscope.ring.counter_files import CounterFile
from actscope.runtime.process import process_start

log = logging.getLogger("actscope.vllm")


#: Device types of torch that the taps have code for. ROCm's is "cuda".
_DEVICES = ("cpu", "cuda")


def _check_device(runner: Any) -> None:
    """Raise EngineError for a model on a device that the taps cannot run on, before anything is attached."""
    device = torch.device(runner.device)
    if device.type not in _DEVICES:
        raise EngineError(
            f"the model is on {device}, and rows can be read on {' and '.join(_DEVICES)} only: there are no scores and no rows"
        )


@dataclass(frozen=True, slots=True)
class StagePlacement:
    """The position of this process in its engine: pipeline stage `part` of `parts`.

    `publishes` is True on one tensor-parallel rank per stage; `shared` is True if the stage has several ranks. The engine is
    data-parallel engine `replica` of `replicas`.
    """

    publishes: bool
    group: str
    part: int = 0
    parts: int = 1
    shared: bool = False
    replica: int = 0
    replicas: int = 1


@counting("session")
@dataclass(slots=True)
class SessionCounts:
    """Counts of what befell the whole session."""

    weights_changes: int = counted("work", "Times that the model's weights have changed since it was loaded.")
    given_up: int = counted(
        "fault",
        "The engine is not watched any more, because its changed weights could not be checked; it serves on without scores.",
        "See vLLM's log for the error, and start vLLM again.",
    )


class RunnerSession:
    """Observes one model runner. Created after the model is loaded and before its first pass.

    `before`, `after` and `sampled` never raise and never wait for a reader. Tensor-parallel ranks that do not publish have only
    the taps: all ranks must compile the same graph, or their collectives would not match.

    Attributes:
        start: On a publishing rank, the names of the rings and their layout; otherwise None.
        warming: Whether passes are warm-up and not observed.
        weights: How often the model's weights have changed since it was loaded.
    """

    def __init__(self, runner: Any, settings: VllmSettings, place: StagePlacement) -> None:
        self._runner, self._settings = runner, settings
        self.start: SidecarStart | None = None
        self.warming = False
        self.weights = 0
        self._weights_are_new = False
        _check_device(runner)
        adapter = adapt(runner)
        self._taps = ModelTaps(runner, settings.graph)
        # only on a publishing rank, and until `close`
        self._rings: Rings | None = None
        self._copier: CudaCopier | HostCopier | None = None
        self._sidecar: Sidecar | NoSidecar | None = None
        self._observer: PassObserver | None = None
        self._counter_file: CounterFile | None = None
        self._requests: RowRequests | None = None
        self._last_counts = PublishedCounts()
        if self._taps.refused and not settings.sidecar:
            self._taps.remove()
            raise SiteError(f"{type(runner.get_model()).__name__}: {listed(self._taps.refused)}")
        self._watch_weights(runner.get_model())
        if not place.publishes:
            return
        try:
            self._observer = self._observe(adapter, place)
        except Exception:
            self._end()
            if not place.shared:  # otherwise the graphs of all ranks of the stage must stay identical
                self._taps.remove()
            raise

    def _observe(self, adapter: Runner, place: StagePlacement) -> PassObserver:
        """Open what only a publishing rank has: rings, copier, sidecar and observer."""
        taps, settings = self._taps, self._settings
        self._rings = rings = Rings(settings, taps)
        self._copier = copier = self._open_copier(rings)
        self.start = start = self._start(adapter.name, place, rings)
        self._requests = requests = RowRequests(settings, rows_kept=rings.rows is not None)
        self._sidecar = sidecar = (
            Sidecar(start, taps.d, settings.width, self._beat, requests, self.account)
            if settings.sidecar
            else NoSidecar()
        )
        if settings.sidecar:  # without one there is no card that readers could find
            self._counter_file = CounterFile(start.card_id, "model", self._counters, part=start.part, log=log)
        observer = PassObserver(adapter, taps.buffers, copier, requests, sidecar, self._open_publisher)
        if self._runner.vllm_config.speculative_config is not None:
            adapter.watch_rejections(observer.waiting)
        log.info(
            "watching %s: %d sites, raw rows of %d, %s runner, ring %s",
            start.facts.served,
            len(taps.sites),
            len(taps.kept) if rings.rows is not None else 0,
            adapter.name,
            rings.scores.name,
        )
        return observer

    def _open_copier(self, rings: Rings) -> CudaCopier | HostCopier:
        buffers, settings = self._taps.buffers, self._settings
        if not buffers.board.is_cuda:
            return HostCopier(buffers)
        limit = settings.buffer_gb * 1e9
        if rings.rows is not None:
            try:
                depth_of(buffers, limit)
            except SettingsError as error:
                if not settings.sidecar:
                    raise
                rings.drop_rows(str(error))
        most_requests = self._runner.vllm_config.scheduler_config.max_num_seqs
        return CudaCopier(buffers, self._taps.max_rows, most_requests, limit, rows=rings.rows is not None)

    def _start(self, runner_name: str, place: StagePlacement, rings: Rings) -> SidecarStart:
        return SidecarStart(
            card_id=secrets.token_hex(8),
            group=place.group,
            part=place.part,
            parts=place.parts,
            replica=place.replica,
            replicas=place.replicas,
            pid=os.getpid(),
            pid_start=process_start(os.getpid()) or 0,
            settings=msgspec.json.encode(self._settings),
            facts=served_model(self._runner, runner_name),
            ring=rings.scores.name,
            rows_ring=rings.rows.name if rings.rows else "",
            no_rows=rings.no_rows,
            sites=self._taps.site_names,
            refused=self._taps.refused,
            kept=self._taps.kept_names,
            features=self._taps.features,
            columns=self._taps.buffers.n_columns,
        )

    def _open_publisher(self) -> Publisher:
        """Create the publisher. Called before the first request's pass: the KV cache exists by then."""
        taps, rings = self._taps, self._rings
        assert rings is not None
        pool = kv_pool(self._runner) if self._settings.prefix_scores else None
        prefix = PrefixScores.fitting(pool, taps.buffers.n_columns) if pool is not None else None
        group = pool.group if pool is not None and prefix is not None else None
        return Publisher(
            rings.scores,
            rings.rows,
            prefix,
            taps.site_names,
            taps.kept,
            taps.buffers,
            group,
            rings.scores.spec.row_capacity,
        )

    # --- around a pass, on the model's thread ---

    def before(self, scheduled: Any) -> None:
        """Prepare a pass: check the model again if its weights changed, apply staged probes, note new and finished requests."""
        if self.warming:
            return
        if self._weights_are_new:
            self._check_weights()
        if self._observer is not None:
            self._observer.before(scheduled)

    def before_dummy(self) -> None:
        """Prepare a pass without requests: data-parallel engines of a MoE model run it while another one has requests."""
        if self._observer is not None and not self.warming:
            self._observer.before_dummy()

    def begun(self) -> None:
        """Stamp the moment at which the runner takes over. Only reads the clock."""
        observer = self._observer
        if observer is not None and not self.warming:
            observer.clock.begun()

    def after(self, scheduled: Any) -> None:
        """Publish a launched pass; with drafts, wait for `sampled` to know which were accepted."""
        observer = self._observer
        if observer is not None and not self.warming:
            observer.after(scheduled)

    def sampling(self) -> None:
        """Stamp the moment at which the runner begins to draw tokens. Only reads the clock."""
        observer = self._observer
        if observer is not None and not self.warming:
            observer.clock.sampling()

    def sampled(self) -> None:
        """Publish the pass that waited for sampling."""
        observer = self._observer
        if observer is not None and not self.warming:
            observer.sampled()

    def read_last(self) -> None:
        """Read every site behind all hooks that are there now. Called before the model is compiled."""
        self._taps.read_last()

    # --- weights ---

    def weights_changed(self) -> None:
        """Note that the model has other weights, or some other ones. It is checked again before its next pass."""
        self._weights_are_new = True

    def _watch_weights(self, model: nn.Module) -> None:
        """Notice every call of the model's `load_weights`, by vLLM or by a worker extension."""
        plain = getattr(type(model), "load_weights", None)
        if plain is None:
            return

        @wraps(plain)
        def load_weights(*args: object, **kwargs: object) -> object:
            self.weights_changed()
            return plain(model, *args, **kwargs)

        vars(model)["load_weights"] = load_weights  # only of this instance

    def _check_weights(self) -> None:
        """Check the model again, on all ranks. A fault must never stop the model."""
        self._weights_are_new, self.weights = False, self.weights + 1
        try:
            wrong = self._taps.examine_again()
            log.info("the model's weights have changed (version %d); %d taps are refused", self.weights, len(wrong))
            if self._observer is not None:
                self._observer.weights_changed(self.weights, wrong, self._taps.refused)
        except Exception:
            log.exception("weights version %d could not be checked: nothing more is delivered", self.weights)
            self._last_counts = self.counts()
            self._observer = None

    # --- counters, on the sidecar's heartbeat thread ---

    def _beat(self) -> None:
        rings, counter_file = self._rings, self._counter_file
        if rings is not None:
            rings.beat()
        if counter_file is not None:
            counter_file.publish()

    def _counters(self) -> list[Counter]:
        """Return the counters of the model's process."""
        rings, observer, sidecar, copier = self._rings, self._observer, self._sidecar, self._copier
        found = counters_of(SessionCounts(self.weights, int(observer is None)))
        found += counters_of(self._last_counts) if observer is None else observer.counters()
        found += counters_of(CopierCounts(0 if copier is None else copier.failed))
        found += [] if self._requests is None else self._requests.counters()
        if isinstance(sidecar, Sidecar):
            found += sidecar.counters()
        return found if rings is None else [*found, *rings.counters()]

    # --- the rest ---

    def counts(self) -> PublishedCounts:
        """Return row counts since the start."""
        return self._observer.counts() if self._observer is not None else self._last_counts

    def account(self) -> dict[str, int]:
        """Return all counts of this process by name. May be called from any thread.

        They are those of `PublishedCounts`, and: `observer_faults` (callbacks around a pass that failed), `copier_failed_passes`
        (passes lost between device and rings), `sidecar_deaths`, `sidecar_untold` (messages that it did not read in time),
        `unsettled_requests` (requests to be kept of which the sidecar has not said what became of them), `forgotten_wishes`
        (those that were too many to remember) and `ring_dropped_rows` (rows that the writers of the rings refused).
        """
        observer, sidecar, copier, rings = self._observer, self._sidecar, self._copier, self._rings
        writers = [] if rings is None else [ring for ring in (rings.scores, rings.rows) if ring is not None]
        return {
            **asdict(self.counts()),
            "observer_faults": 0 if observer is None else observer.faults,
            "copier_failed_passes": 0 if copier is None else copier.failed,
            "sidecar_deaths": 0 if sidecar is None else sidecar.deaths,
            "sidecar_untold": 0 if sidecar is None else sidecar.untold,
            "unsettled_requests": 0 if self._requests is None else self._requests.unsettled,
            "forgotten_wishes": 0 if self._requests is None else self._requests.forgotten_wishes,
            "ring_dropped_rows": sum(writer.stats().dropped_rows for writer in writers),
        }

    def close(self) -> None:
        """Remove the hooks and end the sidecar cleanly. Idempotent."""
        self._taps.remove()
        if self._counter_file is not None:
            self._counter_file.publish()  # for its lines in the log
        self._last_counts = self.counts()
        self._observer = None
        self._end()

    def _end(self) -> None:
        sidecar, self._sidecar = self._sidecar, None
        copier, self._copier = self._copier, None
        rings, self._rings = self._rings, None
        if sidecar is not None:
            sidecar.hush()
        if copier is not None:
            copier.close()
        if rings is not None:
            rings.close()
        if sidecar is not None:
            sidecar.close()
