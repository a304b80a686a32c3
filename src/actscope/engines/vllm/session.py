"""RunnerSession: one observed model runner, with hooks on its model, buffers on its device and callbacks around each pass."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from actscope.engines.vllm.bank import InForce
from actscope.engines.vllm.publishing.device_copy import CudaCrossing, HostCrossing
from actscope.engines.vllm.publishing.labels import known_of
from actscope.engines.vllm.layer_outputs import attach, sites_here
from actscope.engines.vllm.publishing.prefix_scores import PrefixScores
from actscope.engines.vllm.publishing.publisher import PassNote, PublishedCounts, Publisher
from actscope.engines.vllm.runners import PassBatch, adapt, full_attention_layer
from actscope.engines.vllm.settings import GraphSpec, VllmSettings
from actscope.engines.vllm.sidecar_client import NoSidecar, Sidecar
from actscope.engines.vllm.sidecar_protocol import (
    MAX_WISH,
    Features,
    RequestOptions,
    ServedModel,
    SidecarStart,
    external_id,
    options_of,
    rows_ring_spec,
)
from actscope.errors import SettingsError
from actscope.probes.sae import load_encoder
from actscope.ring.host import RingSpec, RingWriter
from actscope.ring.segment import SHM_DIR
from actscope.runtime.process import process_start
from actscope.sampling import keeps
from actscope.sites import Site, in_model_order
from actscope.taps.anatomy import text_config
from actscope.taps.tap import SaeBuffers, TapBuffers

log = logging.getLogger("actscope.vllm")

#: Capacity of the row ring in rows, if memory allows.
_ROWS_AT_HAND = 65536
#: Capacity in passes if the reader drives the engine and reads after each pass.
_PASSES_AT_HAND = 4
#: Most host memory for the scores of cached prompts.
_PREFIX_BYTES = 8 << 30


@dataclass(frozen=True, slots=True)
class StagePlacement:
    """The position of this process in its engine: pipeline stage `part` of `parts`.

    `publishes` is True on one tensor-parallel rank per stage; `shared` is True if the stage has several ranks.
    """

    publishes: bool
    group: str
    part: int = 0
    parts: int = 1
    shared: bool = False


class RunnerSession:
    """Observes one model runner. Created after the model is loaded and before its first pass.

    `before`, `after` and `sampled` never raise and never wait for a reader. Tensor-parallel ranks that do not publish have only
    the taps: all ranks must compile the same graph, or their collectives would not match. On a publishing rank, `start` holds the
    names of the rings and their layout.
    """

    def __init__(self, runner: Any, settings: VllmSettings, place: StagePlacement) -> None:
        self._runner, self._settings, self._place = runner, settings, place
        self._adapter = adapt(runner)
        config = runner.vllm_config
        self._max_rows = config.scheduler_config.max_num_batched_tokens
        graph = settings.graph
        scored = sites_here(runner.model, graph.sites)
        kept = sites_here(runner.model, graph.row_sites)
        self.sites: tuple[Site, ...] = in_model_order([*scored, *kept])
        self.kept = [self.sites.index(site) for site in kept]
        self._d = int(text_config(runner.model).hidden_size)
        self._sae: Features | None = None
        self.buffers = TapBuffers(
            n_sites=len(self.sites),
            kept=self.kept,
            d=self._d,
            width=graph.width,
            max_rows=self._max_rows,
            dtype=runner.model_config.dtype,
            device=torch.device(runner.device),
            n_features=graph.sae_top_k if graph.sae else 0,
        )
        self._hooks = [attach(runner.model, site, self._reader(i)) for i, site in enumerate(self.sites)]
        if graph.sae:
            self._attach_sae(graph)
        self._bank = InForce({}, np.zeros(self.buffers.n_columns, np.int64))
        self._publisher: Publisher | None = None
        self._companion: Sidecar | NoSidecar | None = None
        self.start: SidecarStart | None = None
        self._waiting: tuple[PassNote, PassBatch] | None = None
        self._with_rows = False
        self._wanting: set[str] = set()
        self._wishing: set[str] = set()
        self.warming = False
        self._faults = 0
        self._group: int | None = None
        if place.publishes:
            try:
                self._open(config)
            except Exception:
                self._give_up()
                raise

    def _reader(self, index: int) -> Any:
        buffers = self.buffers

        def read(hidden: torch.Tensor, residual: torch.Tensor | None) -> None:
            buffers.tap(index, hidden, residual)

        return read

    def _attach_sae(self, graph: GraphSpec) -> None:
        """Hook in the SAE's encoder. On other stages its columns stay NaN (not computed)."""
        encoder = load_encoder(Path(graph.sae), graph.sae_site or None)
        if encoder.site is None:
            raise SettingsError(
                f"sae {graph.sae}: it does not say where it belongs; set sae_site, e.g. layers.12.resid_post"
            )
        if encoder.d != self._d:
            raise SettingsError(
                f"sae {graph.sae}: it reads rows of width {encoder.d}, this model has d_model {self._d}"
            )
        buffers = self.buffers
        for site in sites_here(self._runner.model, encoder.site):
            sae = SaeBuffers(encoder, graph.sae_top_k, buffers.board.device)
            self._hooks.append(attach(self._runner.model, site, partial(sae.encode, buffers)))
            self._sae = Features(site.name, graph.sae_top_k, encoder.n_features, encoder.name or Path(graph.sae).name)

    def _open(self, config: Any) -> None:
        """Open what only the publishing rank has: rings, crossing and sidecar."""
        self._ring = RingWriter.create(_score_ring(self._settings, self.buffers.n_columns))
        self._rows_ring = self._open_rows_ring() if self.kept else None
        on_gpu = self.buffers.board.is_cuda
        self._crossing = self._open_crossing(config) if on_gpu else HostCrossing(self.buffers)
        if config.speculative_config is not None:
            self._adapter.watch_rejections(lambda: self._waiting[1] if self._waiting else None)
        self.start = start = self._start(config)
        self._companion = self._open_sidecar(start)
        log.info(
            "watching %s: %d sites, raw rows of %d, %s runner, ring %s",
            start.facts.served,
            len(self.sites),
            len(self.kept),
            self._adapter.name,
            self._ring.name,
        )

    def _open_sidecar(self, start: SidecarStart) -> Sidecar | NoSidecar:
        if not self._settings.sidecar:
            return NoSidecar()
        return Sidecar(start, self._d, self._settings.width, beat=self._beat)

    def _open_crossing(self, config: Any) -> CudaCrossing:
        limit = self._settings.buffer_gb * 1e9
        return CudaCrossing(self.buffers, self._max_rows, config.scheduler_config.max_num_seqs, limit)

    def _open_rows_ring(self) -> RingWriter:
        dtype = str(self.buffers.store.dtype).removeprefix("torch.")
        at_hand = _ROWS_AT_HAND if self._settings.sidecar else _PASSES_AT_HAND * self._max_rows
        spec = rows_ring_spec(len(self.kept), self._d, self.buffers.n_columns, dtype, at_hand)
        limit = min(self._settings.buffer_gb * 1e9, shutil.disk_usage(SHM_DIR).free / 2)
        rows = min(at_hand, int(limit // spec.row_bytes))
        if rows < self._max_rows:
            raise SettingsError(
                f"buffer_gb {self._settings.buffer_gb}: a row of {len(self.kept)} sites has {spec.row_bytes} bytes, and a "
                f"pass up to {self._max_rows} rows: {self._max_rows * spec.row_bytes / 1e9:.2f} GB are needed, "
                f"{limit / 1e9:.2f} GB may be used. "
                "Tap fewer sites, lower --max-num-batched-tokens, or give /dev/shm and buffer_gb more"
            )
        return RingWriter.create(rows_ring_spec(len(self.kept), self._d, self.buffers.n_columns, dtype, rows))

    def _start(self, config: Any) -> SidecarStart:
        model, place = config.model_config, self._place
        served = model.served_model_name
        hf = text_config(self._runner.model)
        facts = ServedModel(
            served=served if isinstance(served, str) else served[0],
            source=str(model.model),
            commit=str(getattr(model.hf_config, "_commit_hash", None) or ""),
            tokenizer=str(model.tokenizer or model.model),
            device=str(self._runner.device),
            dtype=str(model.dtype).removeprefix("torch."),
            n_layers=int(hf.num_hidden_layers),
            d_model=self._d,
            max_context=int(model.max_model_len),
            vllm=_vllm_version(),
            runner=self._adapter.name,
        )
        return SidecarStart(
            card_id=secrets.token_hex(8),
            group=place.group,
            part=place.part,
            parts=place.parts,
            pid=os.getpid(),
            pid_start=process_start(os.getpid()) or 0,
            settings=msgspec.json.encode(self._settings),
            facts=facts,
            ring=self._ring.name,
            rows_ring=self._rows_ring.name if self._rows_ring else "",
            sites=[site.name for site in self.sites],
            kept=[self.sites[i].name for i in self.kept],
            features=self._sae,
            columns=self.buffers.n_columns,
        )

    # --- around a pass, on the model's thread ---

    def before(self, scheduled: Any) -> None:
        """Prepare a pass: apply staged probes and note new and finished requests. Never raises."""
        try:
            self._before(scheduled)
        except Exception:  # a fault of ours must never stop the model
            self._fault("before a pass")

    def after(self, scheduled: Any) -> None:
        """Publish a launched pass; with drafts, wait for `sampled` to know which were accepted. Never raises."""
        try:
            self._after(scheduled)
        except Exception:
            self._fault("after a pass")

    def sampled(self) -> None:
        """Publish the pass that waited for sampling. Never raises."""
        try:
            waiting, self._waiting = self._waiting, None
            if waiting is not None:
                self._cross(*waiting)
        except Exception:
            self._fault("after sampling")

    def _before(self, scheduled: Any) -> None:
        if self._companion is None or self.warming:
            return
        waiting, self._waiting = self._waiting, None
        if waiting is not None:  # it was never sampled, so its accepted drafts are unknown
            self._pass_over(waiting[0])
        self._crossing.before_pass()
        publisher = self._publisher or self._make_publisher()
        if not self.buffers.fired.is_cuda:  # readable without a sync: a dummy pass in between is then no fault
            publisher.forget_passes(self.buffers.fired.numpy())
        staged = self._companion.staged()
        if staged is not None:
            self._bank = staged.put(self.buffers, self._bank)
        self._wanting.difference_update(scheduled.finished_req_ids)
        self._wishing.difference_update(scheduled.finished_req_ids)
        for new in scheduled.scheduled_new_reqs:
            self._welcome(new)
        with_rows = not self._wanting.isdisjoint(scheduled.num_scheduled_tokens)
        if with_rows != self._with_rows:
            self._with_rows = with_rows
            self.buffers.wanted.fill_(int(with_rows))

    def _welcome(self, new: Any) -> None:
        """Read the options of a request that is scheduled for the first time, or again after preemption."""
        params = new.sampling_params
        options = options_of(params.extra_args) if params is not None else {}
        asked, keep = options.get("rows"), options.get("keep")
        settings = self._settings
        if asked is not None:
            wants = bool(asked)
        else:
            sampled = settings.sample > 0 and keeps(external_id(new.req_id), settings.sample)
            wants = settings.rows == "all" or bool(keep) or sampled
        if wants and self.kept:
            self._wanting.add(new.req_id)
        if self._companion is not None and (asked or keep) and new.req_id not in self._wishing:
            self._wishing.add(new.req_id)
            rows, why = asked if isinstance(asked, str) else "", keep if isinstance(keep, str) else ""
            why = why or ("asked" if asked else "")
            self._companion.tell(RequestOptions(new.req_id, rows[:MAX_WISH], why[:MAX_WISH]))

    def _after(self, scheduled: Any) -> None:
        if self._companion is None or self._publisher is None or self.warming:
            return
        n = scheduled.total_num_scheduled_tokens
        note = self._note(scheduled, n)
        if not n:
            if note.ended or note.begun:
                self._pass_over(note)
            return
        try:
            batch = self._adapter.batch(scheduled)
        except Exception:
            self._pass_over(note)  # the requests of the pass begin and end anyway
            raise
        note.requests, note.starts = batch.requests, batch.starts
        if int(batch.starts[-1]) != batch.n_tokens:  # host and device disagree about the rows of each request
            self._pass_over(note)
        elif batch.drafts is not None and batch.drafts.any():
            self._waiting = note, batch
        else:
            self._cross(note, batch)

    def _cross(self, note: PassNote, batch: PassBatch) -> None:
        publisher = self._publisher
        assert publisher is not None
        if not self._crossing.cross(batch, self._with_rows, lambda landed: publisher.publish(note, landed)):
            self._pass_over(note)

    def _pass_over(self, note: PassNote) -> None:
        """Publish what is known of a pass whose rows are unavailable."""
        publisher = self._publisher
        assert publisher is not None
        self._crossing.pass_over(lambda: publisher.publish(note, None))

    def _note(self, scheduled: Any, n_rows: int) -> PassNote:
        group = self._group
        cached = scheduled.scheduled_cached_reqs
        blocks = [
            (request, new[group], request in cached.resumed_req_ids)
            for request, new in zip(cached.req_ids, cached.new_block_ids, strict=True)
            if group is not None and new is not None
        ]
        begun = [
            known_of(new, group, rows=new.req_id in self._wanting, wish=new.req_id in self._wishing)
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
        )

    def _make_publisher(self) -> Publisher:
        """Create the publisher before the first request's pass.

        The KV cache exists by then, and everything that the taps counted so far was warm-up.
        """
        place = full_attention_layer(self._runner)
        prefix = self._prefix_scores(place[0]) if place is not None else None
        self._group = place[0] if prefix is not None and place is not None else None
        self._publisher = Publisher(
            self._ring, self._rows_ring, prefix, [site.name for site in self.sites], self.kept, self.buffers
        )
        self._publisher.forget_passes(self.buffers.fired.cpu().numpy())
        return self._publisher

    def _prefix_scores(self, group: int) -> PrefixScores | None:
        config = self._runner.vllm_config
        if not (self._settings.prefix_scores and config.cache_config.enable_prefix_caching):
            return None
        if config.kv_transfer_config is not None:
            log.warning(
                "a KV connector brings keys and values that were computed elsewhere: scores of cached prompts are off"
            )
            return None
        kv = self._runner.kv_cache_config
        size = kv.kv_cache_groups[group].kv_cache_spec.block_size
        needed = kv.num_blocks * size * (self.buffers.n_columns * 4 + 20)
        if needed > _PREFIX_BYTES:
            log.warning(
                "scores of cached prompts would need %.1f GB of host memory (%d slots), more than %.1f: they are off",
                needed / 1e9,
                kv.num_blocks * size,
                _PREFIX_BYTES / 1e9,
            )
            return None
        return PrefixScores(kv.num_blocks, size, self.buffers.n_columns)

    # --- the rest ---

    def _beat(self) -> None:
        """Write a heartbeat to the rings, so that readers in other containers see that an idle process lives."""
        self._ring.beat()
        if self._rows_ring is not None:
            self._rows_ring.beat()

    def counts(self) -> PublishedCounts:
        """Return row counts since the start."""
        return self._publisher.counts if self._publisher else PublishedCounts()

    def _fault(self, when: str) -> None:
        self._faults += 1
        if self._faults == 1:
            log.exception("actscope failed %s (further ones are only counted); generation goes on", when)

    def _give_up(self) -> None:
        """Close the rings after a failed start.

        Hooks stay on ranks of a shared stage: the graphs of all its ranks must stay identical.
        """
        if not self._place.shared:
            for hook in self._hooks:
                hook.remove()
        for name in ("_ring", "_rows_ring"):
            ring = getattr(self, name, None)
            if ring is not None:
                ring.close()

    def close(self) -> None:
        """Remove the hooks and end the sidecar cleanly. Idempotent."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        sidecar, self._companion = self._companion, None
        if sidecar is None:
            return
        sidecar.hush()
        self._crossing.close()
        self._ring.close()
        if self._rows_ring is not None:
            self._rows_ring.close()
        sidecar.close()


def _score_ring(settings: VllmSettings, width: int) -> RingSpec:
    """Return a ring for `ring_rows` rows. A decoding step has one row per request."""
    steps = max(4096, settings.ring_rows // 8)
    return RingSpec(settings.ring_rows, width, step_capacity=steps, span_capacity=max(steps * 2, settings.ring_rows))


def _vllm_version() -> str:
    import vllm

    return str(vllm.__version__)
