"""Extraction with a model of transformers, in this process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from actscope.engines.hf.loading import LoadedModel
from actscope.errors import EngineError, SettingsError
from actscope.extraction.batching import BATCH_TOKENS, PieceBatch, batches
from actscope.extraction.contract import ROW_LABEL, ExtractedRows, Piece, ReaderFacts
from actscope.extraction.forward import Forward
from actscope.extraction.landing import Landing
from actscope.taps.anatomy import resolve

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

#: Element types of rows. The setting "auto" is the model's own, or float32 if that is none of these.
ROW_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class HfReader:
    """A `Reader` that runs right-padded batches through a model of transformers, up to the last site.

    The bits of rows depend on the pieces passed together, the number of threads and the device.

    Args:
        loaded: The model.
        sites: A selection of sites, all of one width.
        dtype: Element type of the rows: "float32", "bfloat16", "float16", or "auto" for the model's own.
        batch_tokens: Maximum number of tokens in a forward pass, padding included. A longer piece has a pass to itself.
        threads: Number of torch's threads in the whole process; 0 leaves it unchanged.

    Raises:
        SettingsError: An argument is invalid, or the sites have different widths.
        SiteError: The model does not have a site.
        EngineError: A site cannot be read row by row.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        sites: str,
        *,
        dtype: str = "auto",
        batch_tokens: int = BATCH_TOKENS,
        threads: int = 0,
    ) -> None:
        if batch_tokens < 1:
            raise SettingsError(f"batch_tokens {batch_tokens}: expected at least 1")
        self._dtype = _row_dtype(dtype, loaded.dtype)
        if threads:
            torch.set_num_threads(threads)
        places = resolve(loaded.model, sites)
        names = tuple(str(site) for site in places)
        self._device, self._max_context = loaded.device, loaded.max_context
        self._batch_tokens = batch_tokens
        self._forward: Forward | None = Forward(loaded, places)
        self._widths = self._forward.widths
        self._edge = length_edge(loaded.config)
        self.facts = ReaderFacts(
            engine="hf",
            model=loaded.name,
            revision=loaded.revision,
            sites=names,
            d_model=_one_width(names, self._widths),
            dtype=_name_of(self._dtype),
            deterministic=loaded.device.type == "cpu",  # on a GPU some models sum their experts in varying order
        )

    def read(self, pieces: Sequence[Piece]) -> ExtractedRows:
        """Compute the rows of pieces; see `Reader.read`."""
        if self._forward is None:
            raise EngineError(f"{self.facts.model}: this reader is closed")
        self._check(pieces)
        starts = np.cumsum([0, *(piece.n_rows for piece in pieces)])
        landing = Landing(int(starts[-1]), self._widths, self._dtype)
        for batch in batches(pieces, self._batch_tokens, self._edge):
            self._read_batch(self._forward, pieces, batch, starts, landing)
        labels = np.concatenate([np.empty(0, ROW_LABEL), *(piece.labels() for piece in pieces)])
        rows = ExtractedRows(dict(zip(self.facts.sites, landing.finish(), strict=True)), labels)
        self._check_finite(rows)
        return rows

    def close(self) -> None:
        """Release the model. Idempotent."""
        self._forward = None

    def _read_batch(
        self, forward: Forward, pieces: Sequence[Piece], batch: PieceBatch, starts: np.ndarray, landing: Landing
    ) -> None:
        ids = np.zeros((len(batch.places), batch.width), np.int64)  # padding's id does not matter: no row sees it
        real, wanted = np.zeros(ids.shape, bool), np.zeros(ids.shape, bool)
        for line, place in enumerate(batch.places):
            piece = pieces[place]
            n = len(piece.token_ids)
            ids[line, :n], real[line, :n], wanted[line, :n] = piece.token_ids, True, piece.wanted
        places = np.concatenate([np.arange(starts[place], starts[place + 1]) for place in batch.places])
        device = self._device
        chosen = torch.from_numpy(np.flatnonzero(wanted)).to(device)
        targets = torch.from_numpy(places)
        forward.run(
            torch.from_numpy(ids).to(device),
            None if real.all() else torch.from_numpy(real.astype(np.int64)).to(device),
            lambda number, rows: landing.put(number, rows, chosen, targets),
        )

    def _check(self, pieces: Sequence[Piece]) -> None:
        longest = max((len(piece.token_ids) for piece in pieces), default=0)
        if longest > self._max_context:
            raise EngineError(
                f"a piece has {longest} tokens: {self.facts.model} reads at most {self._max_context} at once; "
                "cut the texts to a smaller context"
            )

    def _check_finite(self, rows: ExtractedRows) -> None:
        for site, values in rows.values.items():
            if not torch.isfinite(values).all():
                bad = int((~torch.isfinite(values)).any(1).nonzero()[0])
                label = rows.labels[bad]
                raise EngineError(
                    f"{self.facts.model}: the row of {site} at position {label['position']} of text {label['text']} (piece "
                    f"{label['piece']}) is not finite in {self.facts.dtype}; use dtype float32 or bfloat16, whose range is "
                    "larger than float16's, or exclude that text"
                )


def length_edge(config: PreTrainedConfig) -> int | None:
    """Return the length beyond which a LongRoPE model uses other rotary frequencies for its whole batch; None for most models."""
    given: dict[str, object] = getattr(config, "rope_parameters", None) or {}
    layers = [given, *(kind for kind in given.values() if isinstance(kind, dict))]
    edges = [p.get("original_max_position_embeddings") for p in layers if p.get("rope_type") == "longrope"]
    return min((int(edge) for edge in edges if edge), default=None)


def _row_dtype(name: str, own: torch.dtype) -> torch.dtype:
    if name != "auto" and name not in ROW_DTYPES:
        raise SettingsError(f"dtype {name!r}: expected one of auto, {', '.join(ROW_DTYPES)}")
    chosen = own if name == "auto" else ROW_DTYPES[name]
    return chosen if chosen in ROW_DTYPES.values() else torch.float32


def _name_of(dtype: torch.dtype) -> str:
    return next(name for name, known in ROW_DTYPES.items() if known == dtype)


def _one_width(names: Sequence[str], widths: Sequence[int]) -> int:
    if len(set(widths)) > 1:
        found = ", ".join(f"{name} {width}" for name, width in zip(names, widths, strict=True))
        raise SettingsError(f"sites must have one width, found {found}: read them separately")
    return widths[0]
