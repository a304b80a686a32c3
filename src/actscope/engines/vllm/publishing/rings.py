"""The rings of one publishing process: scores, and raw rows if any are kept."""

from __future__ import annotations

import logging
import shutil

from actscope.counters import Counter, counters_of
from actscope.engines.vllm.model_taps import ModelTaps
from actscope.engines.vllm.settings import VllmSettings
from actscope.engines.vllm.sidecar_protocol import rows_ring_spec
from actscope.errors import RingError, SettingsError
from actscope.ring.discovery import sweep
from actscope.ring.host import RingSpec, RingWriter
from actscope.ring.segment import SHM_DIR

log = logging.getLogger("actscope.vllm")

#: Capacity of the row ring in passes. A reader that drives the engine reads after each pass; the recorder may be behind.
_PASSES = 4
#: Bounds of that capacity in rows if a recorder reads them: at 256 requests a pass the least is 64 passes of decoding.
_LEAST_ROWS, _MOST_ROWS = 16384, 65536
#: Least capacity of the score ring where shared memory is small. Passes with more rows have no scores, and are counted.
_LEAST_SCORES = 256


class Rings:
    """Writers of the score ring and of the row ring (None if no raw rows are kept).

    Attributes:
        no_rows: Why there is no row ring although rows were to be kept; "" otherwise.
    """

    def __init__(self, settings: VllmSettings, taps: ModelTaps) -> None:
        """Create the rings, after removing those of dead processes.

        If shared memory cannot hold the raw rows of a pass, there is no row ring: an error is logged, and all else goes on.
        Without a sidecar the engine runs only for its rows, so that raises.

        Raises:
            RingError: Shared memory cannot hold the smallest score ring.
            SettingsError: There is no sidecar, and a pass's raw rows do not fit into the memory that may be used.
        """
        _sweep()
        self.rows: RingWriter | None = None
        self.no_rows = ""
        self.scores = RingWriter.create(_score_ring(settings.ring_rows, taps))
        try:
            self.rows = RingWriter.create(_row_ring(settings, taps)) if taps.kept else None
        except (SettingsError, RingError) as error:
            if not settings.sidecar:
                self.scores.close()
                raise
            self.drop_rows(str(error))

    def drop_rows(self, why: str) -> None:
        """Do without raw rows, and log why."""
        rows, self.rows, self.no_rows = self.rows, None, why
        if rows is not None:
            rows.close()
        log.error("no raw rows are recorded: %s. Generation and scores go on", why)

    def beat(self) -> None:
        """Write a heartbeat, so that readers in other containers see that an idle process lives."""
        self.scores.beat()
        if self.rows is not None:
            self.rows.beat()

    def counters(self) -> list[Counter]:
        """Return the counters of both rings."""
        raw = [] if self.rows is None else counters_of(self.rows.stats(), "raw_ring")
        return [*counters_of(self.scores.stats(), "ring"), *raw]

    def close(self) -> None:
        """Remove the rings from shared memory."""
        self.scores.close()
        if self.rows is not None:
            self.rows.close()


def _sweep() -> None:
    """Remove what dead engines left: their rings take the memory that these need."""
    try:
        sweep()
    except (RingError, OSError) as error:  # the sidecar says what is wrong with the runtime directory
        log.warning("what dead engines left in shared memory could not be removed: %s", error)


def _free() -> int:
    return shutil.disk_usage(SHM_DIR).free


def _score_ring(rows: int, taps: ModelTaps) -> RingSpec:
    """Return a ring for `rows` rows, or for as many as fit into half of the free shared memory."""
    width, free, fitting = taps.buffers.n_columns, _free(), rows
    while score_ring_spec(fitting, width).segment_bytes > free / 2 and fitting > _LEAST_SCORES:
        fitting = max(_LEAST_SCORES, fitting // 2)
    spec = score_ring_spec(fitting, width)
    if fitting < rows:
        log.warning(
            "ring_rows %d needs %.1f MB, and half of the %.1f MB that are free in %s may be used: the ring has %d rows (%.1f "
            "MB). Scores of a pass with more rows (up to %d) are dropped and counted; give %s more (docker run --shm-size)",
            rows,
            score_ring_spec(rows, width).segment_bytes / 1e6,
            free / 1e6,
            SHM_DIR,
            fitting,
            spec.segment_bytes / 1e6,
            taps.max_rows,
            SHM_DIR,
        )
    return spec


def score_ring_spec(rows: int, width: int) -> RingSpec:
    """Return a ring for `rows` rows. A decoding step has one row per request."""
    steps = max(4096, rows // 8)
    return RingSpec(rows, width, step_capacity=steps, span_capacity=max(steps * 2, rows))


def _row_ring(settings: VllmSettings, taps: ModelTaps) -> RingSpec:
    """Return a row ring for four passes, or for as much as the memory allows. It must hold at least one pass."""
    dtype = str(taps.buffers.store.dtype).removeprefix("torch.")
    most = _PASSES * taps.max_rows
    if settings.sidecar:
        most = min(_MOST_ROWS, max(_LEAST_ROWS, most))
    spec = rows_ring_spec(len(taps.kept), taps.d, taps.buffers.n_columns, dtype, max(most, 1))
    free = _free()
    limit = min(settings.buffer_gb * 1e9, free / 2)
    rows = min(most, int(limit // spec.row_bytes))
    if rows < taps.max_rows:
        raise SettingsError(
            f"a row of {len(taps.kept)} sites has {spec.row_bytes} bytes, and a pass up to {taps.max_rows} rows: "
            f"{taps.max_rows * spec.row_bytes / 1e9:.3f} GB are needed, {limit / 1e9:.3f} GB may be used "
            f"(buffer_gb is {settings.buffer_gb:g}, half of the free {free / 1e9:.3f} GB of {SHM_DIR} is {free / 2e9:.3f}). "
            f"Tap fewer sites, lower --max-num-batched-tokens, or give {SHM_DIR} and buffer_gb more"
        )
    return rows_ring_spec(len(taps.kept), taps.d, taps.buffers.n_columns, dtype, rows)
