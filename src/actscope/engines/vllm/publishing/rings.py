"""The rings of one publishing process: scores, and raw rows if any are kept."""

from __future__ import annotations

import shutil

from actscope.counters import Counter, counters_of
from actscope.engines.vllm.model_taps import ModelTaps
from actscope.engines.vllm.settings import VllmSettings
from actscope.engines.vllm.sidecar_protocol import rows_ring_spec
from actscope.errors import SettingsError
from actscope.ring.host import RingSpec, RingWriter
from actscope.ring.segment import SHM_DIR

#: Capacity of the row ring in rows, if memory allows.
_MOST_ROWS = 65536
#: Capacity in passes if the reader drives the engine and reads after each pass.
_MOST_PASSES = 4


class Rings:
    """Writers of the score ring and of the row ring (None if no raw rows are kept)."""

    def __init__(self, settings: VllmSettings, taps: ModelTaps) -> None:
        """Create the rings. Raises SettingsError if a pass's raw rows do not fit into the memory that may be used."""
        spec = _row_ring(settings, taps) if taps.kept else None
        self.scores = RingWriter.create(_score_ring(settings.ring_rows, taps.buffers.n_columns))
        try:
            self.rows = RingWriter.create(spec) if spec is not None else None
        except Exception:
            self.scores.close()
            raise

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


def _score_ring(rows: int, width: int) -> RingSpec:
    """Return a ring for `rows` rows. A decoding step has one row per request."""
    steps = max(4096, rows // 8)
    return RingSpec(rows, width, step_capacity=steps, span_capacity=max(steps * 2, rows))


def _row_ring(settings: VllmSettings, taps: ModelTaps) -> RingSpec:
    """Return the largest row ring that the memory allows. It must hold at least one pass."""
    dtype = str(taps.buffers.store.dtype).removeprefix("torch.")
    most = _MOST_ROWS if settings.sidecar else _MOST_PASSES * taps.max_rows
    spec = rows_ring_spec(len(taps.kept), taps.d, taps.buffers.n_columns, dtype, most)
    limit = min(settings.buffer_gb * 1e9, shutil.disk_usage(SHM_DIR).free / 2)
    rows = min(most, int(limit // spec.row_bytes))
    if rows < taps.max_rows:
        raise SettingsError(
            f"buffer_gb {settings.buffer_gb}: a row of {len(taps.kept)} sites has {spec.row_bytes} bytes, and a "
            f"pass up to {taps.max_rows} rows: {taps.max_rows * spec.row_bytes / 1e9:.2f} GB are needed, "
            f"{limit / 1e9:.2f} GB may be used. "
            "Tap fewer sites, lower --max-num-batched-tokens, or give /dev/shm and buffer_gb more"
        )
    return rows_ring_spec(len(taps.kept), taps.d, taps.buffers.n_columns, dtype, rows)
