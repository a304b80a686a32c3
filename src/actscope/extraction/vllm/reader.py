"""Reading texts with vLLM: whole passes of mixed pieces, kernels and parallelism as for serving, rows through shared memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from actscope.engines.revision import fingerprint
from actscope.engines.vllm.sidecar_protocol import SidecarStart, external_id, row_layout
from actscope.errors import EngineError, RequestRefused, SettingsError
from actscope.extraction.contract import ExtractedRows, Piece, ReaderFacts
from actscope.extraction.vllm.offline import OfflineEngine
from actscope.extraction.vllm.row_collector import RowCollector, WideRowLayout
from actscope.ring import discovery
from actscope.ring.host import RingReader
from actscope.ring.layout import ROW_DTYPES
from actscope.ring.segment import unlink

#: Rows come out of a pass at once, or, on a GPU, when they have been copied: never as late as this.
_PATIENCE_S = 20.0
#: How long to sleep on one ring where there are several.
_NAP_S = 0.05
_ATTEMPTS = 2


class VllmReader:
    """A `Reader` (actscope.extraction.contract) that runs vLLM in this process, which it wants for itself.

    `sites` is a selection. `dtype` is that of the rows, "auto" what the model computes in: that is `model_dtype`, for "auto"
    vLLM's choice, which is a half precision where the weights are float32. `batch_tokens`: tokens in a pass, at most.
    `context`: tokens in a piece, at most. `threads`: on a CPU; 0 is torch's own choice. Everything else goes to vLLM as it is:
    `tensor_parallel_size`, `enforce_eager`, `quantization` ...

    Nothing is written to disk and no other process is started, but those of parallel ranks. The rings' names are gone as soon as
    they are mapped: nothing is left in shared memory, whatever ends this process.

    The same pieces in the same order share the same passes, so that one worker on a CPU gives the same bits for them: with as
    many threads, and whatever was read before. On a GPU, or with several ranks, the passes are the same, but no kernel of vLLM's
    promises as much: `facts.deterministic` is False. Other pieces beside a piece, or another order, may change its last bits.
    """

    def __init__(
        self,
        model: str,
        sites: str,
        *,
        dtype: str = "auto",
        batch_tokens: int = 8192,
        context: int = 256,
        threads: int = 0,
        model_dtype: str = "auto",
        **engine_arguments: object,
    ) -> None:
        """Raises EngineError where vLLM cannot run the model, or not be watched; SettingsError, SiteError for what was asked."""
        if dtype != "auto" and dtype not in ROW_DTYPES:
            raise SettingsError(f"dtype {dtype!r}: expected one of auto, {', '.join(ROW_DTYPES)}")
        discovery.sweep()
        if threads:
            torch.set_num_threads(threads)
        self._context, self._reads = context, 0
        self._engine = OfflineEngine(model, sites, model_dtype, batch_tokens, context, engine_arguments)
        starts = self._engine.starts
        self._rings = [_attach(start) for start in starts]
        self._cuts = [_cut(start, ring) for start, ring in zip(starts, self._rings, strict=True)]
        found = self._rings[0].spec.dtype if dtype == "auto" else dtype
        self.facts = _facts(starts, self._cuts, found, alone=self._engine.ranks == 1)

    def read(self, pieces: Sequence[Piece]) -> ExtractedRows:
        """The rows of these pieces. All of them are in vLLM's queue at once, and what a pass computed is taken after it.

        Should rows be lost on their way, which on a CPU cannot happen, all pieces are read once more, in the same passes. Raises
        RequestRefused for a piece that cannot be read, EngineError when vLLM fails or a row cannot be had.
        """
        self._check(pieces)
        ledger = RowCollector(pieces, self._cuts, getattr(torch, self.facts.dtype))
        for _ in range(_ATTEMPTS):
            if ledger.missing():
                self._read(pieces, ledger)
        if ledger.missing():
            raise EngineError(
                f"{self.facts.model}: read {_ATTEMPTS} times, and still without {ledger.describe_missing()}. "
                "Ask for fewer sites, or make batch_tokens smaller; the log may say more"
            )
        rows = ledger.rows()
        self._check_finite(rows)
        return rows

    def close(self) -> None:
        """End vLLM and unmap the rings. A second call does nothing."""
        self._engine.close()
        for ring in self._rings:
            ring.close()

    def _check(self, pieces: Sequence[Piece]) -> None:
        for piece in pieces:
            n, ids = len(piece.token_ids), piece.token_ids
            where = f"text {piece.text}, piece {piece.number}"
            if not 1 <= n <= self._context:
                raise RequestRefused(
                    f"{where}: {n} tokens, expected 1 to {self._context}: cut texts to this reader's context"
                )
            if ids.min() < 0 or ids.max() >= self._engine.vocabulary:
                raise RequestRefused(
                    f"{where}: tokens {ids.min()} to {ids.max()}, this model has 0 to {self._engine.vocabulary - 1}: "
                    "cut texts with its own tokenizer"
                )

    def _check_finite(self, rows: ExtractedRows) -> None:
        for site, values in rows.values.items():
            if not torch.isfinite(values).all():
                label = rows.labels[int((~torch.isfinite(values)).any(1).nonzero()[0])]
                raise EngineError(
                    f"{self.facts.model}: the row of {site} at position {label['position']} of text {label['text']}, piece "
                    f"{label['piece']}, is not finite as {self.facts.dtype}: "
                    "read it as bfloat16 or float32, or leave that text out"
                )

    # --- one attempt ---

    def _read(self, pieces: Sequence[Piece], ledger: RowCollector) -> None:
        self._reads += 1
        prefix = f"{self._reads}-"

        def number_of(request: str) -> int:
            return int(external_id(request).removeprefix(prefix)) if request.startswith(prefix) else -1

        requests: list[str] = []
        try:
            for number, piece in enumerate(pieces):
                requests.append(self._engine.add(f"{prefix}{number}", piece.token_ids.tolist()))
            self._run(ledger, number_of)
        except EngineError:
            raise
        except Exception as error:  # the boundary to vLLM
            raise EngineError(
                f"{self.facts.model}: vLLM failed while it read: {type(error).__name__}: {error}"
            ) from error
        finally:
            self._engine.forget(requests)

    def _run(self, ledger: RowCollector, number_of: Callable[[str], int]) -> None:
        """Pass after pass; returns at once when rows do not come. At most one pass is computed before the last one's are here."""
        behind: list[int] = []
        while self._engine.busy():
            done = [number_of(request) for request in self._engine.step()]
            if not self._collect(ledger, number_of, behind):
                return
            behind = done
        self._collect(ledger, number_of, behind)

    def _collect(self, ledger: RowCollector, number_of: Callable[[str], int], awaited: Sequence[int]) -> bool:
        """Take what is there, and wait for all rows of the awaited pieces; False when they do not come."""
        until = time.monotonic() + _PATIENCE_S
        while True:
            for stage, ring in enumerate(self._rings):
                while (batch := ring.read()) is not None:
                    for step in batch.steps:
                        ledger.take(stage, step, number_of)
            if all(ledger.has(number) for number in awaited):
                return True
            if time.monotonic() > until or not all(ring.writer_alive() for ring in self._rings):
                return False
            for ring in self._rings:
                ring.wait(_NAP_S)


def _attach(start: SidecarStart) -> RingReader:
    """Map a stage's rows. Nobody else is to find its rings: their names go now."""
    reader = RingReader.attach(start.rows_ring, from_oldest=True)
    unlink(start.rows_ring)
    unlink(start.ring)
    return reader


def _cut(start: SidecarStart, ring: RingReader) -> WideRowLayout:
    dtype = ring.spec.dtype
    return WideRowLayout(
        row_layout(start.columns, dtype), tuple(start.kept), start.facts.d_model, getattr(torch, dtype)
    )


def _facts(starts: Sequence[SidecarStart], cuts: Sequence[WideRowLayout], dtype: str, *, alone: bool) -> ReaderFacts:
    facts = starts[0].facts
    return ReaderFacts(
        engine="vllm",
        model=facts.source,
        revision=facts.commit or fingerprint(Path(facts.source)),
        sites=tuple(site for cut in cuts for site in cut.sites),
        d_model=facts.d_model,
        dtype=dtype,
        deterministic=facts.device == "cpu" and alone,
    )
