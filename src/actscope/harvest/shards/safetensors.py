"""Shard as a safetensors file (https://github.com/huggingface/safetensors#format).

text       int64 [n]    number of the text in the dataset; -1 for tokens of no text
piece      int32 [n]    number of the piece in the text; packed: number of the context in the unit
position   int32 [n]    position of the token in the piece, as the model sees it
token_id   int32 [n]
<site>     [n, d]       float32, bfloat16 or float16
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from actscope.harvest.cutting import OwnedPiece
from actscope.harvest.plan import HarvestPlan, Unit

if TYPE_CHECKING:
    from torch import Tensor

#: safetensors' name of a dtype, and bytes of a value.
TYPES = {"float32": ("F32", 4), "bfloat16": ("BF16", 2), "float16": ("F16", 2)}
LABELS = {"text": ("I64", 8), "piece": ("I32", 4), "position": ("I32", 4), "token_id": ("I32", 4)}


class SafetensorsShard:
    """safetensors shard that is being written. It is laid out for `n_rows` rows and filled in place; memory holds one copy."""

    suffix = "safetensors"

    def __init__(self, plan: HarvestPlan, unit: Unit, n_rows: int) -> None:
        self._n, self._at = n_rows, 0
        header, self._offsets = _header(plan, unit, n_rows)
        self._row_bytes = plan.d_model * TYPES[plan.dtype][1]
        self._data = bytearray(len(header) + self._offsets["end"])
        self._data[: len(header)] = header
        self._start = len(header)

    def add(self, pieces: Sequence[OwnedPiece], values: dict[str, Tensor]) -> None:
        """Copy the rows and labels of the next pieces to their places in the file."""
        import torch

        labels = _labels(pieces)
        for name, (_, size) in LABELS.items():
            self._put(name, size, labels[name])
        for site, rows in values.items():
            self._put(site, self._row_bytes, rows.contiguous().view(torch.uint8).numpy())
        self._at += len(labels["text"])

    def finish(self) -> memoryview:
        """Return the whole file. Exactly `n_rows` rows must have been added."""
        assert self._at == self._n, f"{self._at} rows of {self._n}"
        return memoryview(self._data)

    def _put(self, name: str, row_bytes: int, rows: np.ndarray) -> None:
        begin = self._start + self._offsets[name] + self._at * row_bytes
        view = np.frombuffer(self._data, np.uint8)[begin : begin + rows.nbytes]
        view[:] = rows.reshape(-1).view(np.uint8)


def _header(plan: HarvestPlan, unit: Unit, n: int) -> tuple[bytes, dict[str, int]]:
    """Return the header, length-prefixed and padded to 8 bytes, and the offset of each tensor after it; "end" is their total."""
    dtype, size = TYPES[plan.dtype]
    tensors = [(name, kind, [n], n * width) for name, (kind, width) in LABELS.items()]
    tensors += [(site, dtype, [n, plan.d_model], n * plan.d_model * size) for site in plan.sites]
    entries: dict[str, object] = {"__metadata__": _metadata(plan, unit)}
    offsets, end = {}, 0
    for name, kind, shape, length in tensors:
        entries[name] = {"dtype": kind, "shape": shape, "data_offsets": [end, end + length]}
        offsets[name], end = end, end + length
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text, {**offsets, "end": end}


def _metadata(plan: HarvestPlan, unit: Unit) -> dict[str, str]:
    return {
        "format": "pt",
        "actscope_harvest": plan.id,
        "unit": str(unit.number),
        "unit_id": unit.id,
        "model": plan.model,
        "revision": plan.revision,
        "dataset": plan.dataset,
    }


def _labels(pieces: Sequence[OwnedPiece]) -> dict[str, np.ndarray]:
    wanted = [owned.piece.labels() for owned in pieces]
    labels = np.concatenate(wanted)
    texts = np.concatenate([owned.texts[owned.piece.wanted] for owned in pieces])
    return {
        "text": texts.astype("<i8"),
        "piece": labels["piece"].astype("<i4"),
        "position": labels["position"].astype("<i4"),
        "token_id": labels["token_id"].astype("<i4"),
    }
