"""Reader that runs vLLM: pieces batched into passes, with the kernels and the parallelism of serving."""

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

#: Timeout in seconds for the rows of a pass, which arrive at once, or on a GPU after their copy.
_PATIENCE_S = 20.0
#: Longest wait on one ring in seconds, as there may be several.
_NAP_S = 0.05
_ATTEMPTS = 2


class VllmReader:
    """A `Reader` (actscope.extraction.contract) that runs vLLM in this process. Only one can exist in a process at a time.

    Nothing is written to disk, and the only other processes are those of parallel ranks. The rings are unlinked as soon as they
    are mapped, so no shared memory leaks, however this process ends.

    The same pieces in the same order share the same passes. One worker on a CPU therefore gives the same bits for them, with
    the same number of threads, whatever was read before. On a GPU, or with several ranks, the passes are the same, but vLLM's
    kernels do not guarantee the same bits: `facts.deterministic` is False. Other pieces in the call, or another order, may
    change a row's last bits.

    Args:
        model: Hub id or local directory.
        sites: A selection of sites.
        dtype: Element type of the rows: "float32", "bfloat16", "float16", or "auto" for the one in which the model computes.
        batch_tokens: Maximum number of tokens in a pass.
        context: Maximum number of tokens in a piece.
        threads: Number of threads on a CPU; 0 is torch's default.
        model_dtype: Element type in which the model computes; "auto" is vLLM's choice, a half precision for float32 weights.
        engine_arguments: Passed to vLLM unchanged: `tensor_parallel_size`, `enforce_eager`, `quantization` ...

    Raises:
        EngineError: vLLM cannot run the model, or actscope's plugin is not active in it.
        SettingsError: An argument is invalid, or an engine argument is one that the reader sets.
        SiteError: The model does not have a site.
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
        """Start vLLM and attach to its rings."""
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
        """Compute the rows of pieces. All of them are queued at once, and rows are collected after every pass.

        If rows are lost in transit, which cannot happen on a CPU, all pieces are read once more, in the same passes.

        Args:
            pieces: The pieces.

        Returns:
            All wanted rows of all pieces.

        Raises:
            RequestRefused: A piece is too long or empty, or has a token outside the vocabulary.
            EngineError: vLLM failed, a row is missing after the second attempt, or a row is not finite.
        """
        self._check(pieces)
        ledger = RowCollector(pieces, self._cuts, getattr(torch, self.facts.dtype))
        for _ in range(_ATTEMPTS):
            if ledger.missing():
                self._read(pieces, ledger)
        if ledger.missing():
            raise EngineError(
                f"{self.facts.model}: after {_ATTEMPTS} attempts still without {ledger.describe_missing()}. "
                "Select fewer sites, or make batch_tokens smaller; the log may have the cause"
            )
        rows = ledger.rows()
        self._check_finite(rows)
        return rows

    def close(self) -> None:
        """Shut vLLM down and unmap the rings. Idempotent."""
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
                    f"{label['piece']}, is not finite in {self.facts.dtype}: "
                    "use dtype bfloat16 or float32, or exclude that text"
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
        except Exception as error:  # boundary to vLLM
            raise EngineError(
                f"{self.facts.model}: vLLM failed while it read: {type(error).__name__}: {error}"
            ) from error
        finally:
            self._engine.forget(requests)

    def _run(self, ledger: RowCollector, number_of: Callable[[str], int]) -> None:
        """Run all passes. Returns early if rows fail to arrive. The engine is at most one pass ahead of the collected rows."""
        behind: list[int] = []
        while self._engine.busy():
            done = [number_of(request) for request in self._engine.step()]
            if not self._collect(ledger, number_of, behind):
                return
            behind = done
        self._collect(ledger, number_of, behind)

    def _collect(self, ledger: RowCollector, number_of: Callable[[str], int], awaited: Sequence[int]) -> bool:
        """Collect available rows, and wait for all rows of the awaited pieces. Returns False if they fail to arrive."""
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
    """Attach to a stage's ring of rows, and unlink the stage's rings, so that no other process can find them."""
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
