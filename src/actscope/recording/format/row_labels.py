"""Row labels. Rows are numbered from 0 over the whole recording, and blocks refer to these numbers.

A batch holds the labels of some steps, in the order of their rows, as zstd-compressed MessagePack.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import zstandard

from actscope.errors import RecordingDamaged
from actscope.frames import Step
from actscope.runtime.decoding import as_own_error, decode_msgpack

#: Label of one row, as readers return it. `request` is an index into `Recording.requests`.
LABEL = np.dtype(
    [
        ("position", "<i8"),
        ("token_id", "<i4"),
        ("flags", "<u4"),
        ("request", "<u4"),
        ("step", "<u8"),
        ("time_ns", "<i8"),
    ]
)
_STEP = np.dtype([("number", "<u8"), ("time_ns", "<i8"), ("generation", "<u8"), ("n_rows", "<u4"), ("n_spans", "<u4")])
_SPAN = np.dtype(
    [("request", "<u4"), ("n_rows", "<u4"), ("first_position", "<i8"), ("flags", "<u4"), ("n_prompt", "<u4")]
)
_ROW = np.dtype([("position", "<i8"), ("token_id", "<i4"), ("flags", "<u4")])
#: Largest batch, unpacked. A writer puts at most 65,536 rows of 16 bytes into one, or one step, and their spans.
MAX_BATCH_BYTES = 256 << 20
#: Largest position and row number.
MAX_NUMBER = 1 << 62


class _Wire(msgspec.Struct, array_like=True):
    """Batch on disk. `first_rows` is the first row of each step; incomplete steps leave gaps."""

    requests: list[str]
    steps: bytes
    spans: bytes
    rows: bytes
    first_rows: bytes


@dataclass(frozen=True, slots=True)
class RowLabels:
    """Labels of some steps: `labels` LABEL [n] (`request` is an index into `requests`), `row_ids` int64 [n], and `spans`."""

    requests: list[str]
    labels: np.ndarray
    row_ids: np.ndarray
    spans: np.ndarray


def encode(steps: Sequence[tuple[Step, int]]) -> bytes:
    """Encode a batch of steps, each with the number of its first row."""
    requests: dict[str, int] = {}
    spans = [(requests.setdefault(s.request, len(requests)), s) for step, _ in steps for s in step.spans]
    wire = _Wire(
        list(requests),
        np.array([(s.number, s.time_ns, s.generation, s.n_rows, len(s.spans)) for s, _ in steps], _STEP).tobytes(),
        np.array([(r, s.n_rows, s.first_position, s.flags, s.n_prompt) for r, s in spans], _SPAN).tobytes(),
        np.concatenate([_rows(step) for step, _ in steps] or [np.empty(0, _ROW)]).tobytes(),
        np.array([first for _, first in steps], "<u8").tobytes(),
    )
    return zstandard.ZstdCompressor(level=1).compress(msgspec.msgpack.encode(wire))


def _rows(step: Step) -> np.ndarray:
    rows = np.empty(step.n_rows, _ROW)
    for name in ("position", "token_id", "flags"):
        rows[name] = step.meta[name]
    return rows


def decode(body: bytes | memoryview) -> RowLabels:
    """Decode a batch. Raises RecordingDamaged when it cannot be decoded or its parts are inconsistent."""
    what = "a batch of labels cannot be read"
    with as_own_error(RecordingDamaged, what):
        wire = decode_msgpack(_unpacked(body), _Wire, RecordingDamaged, what)
        steps, spans = np.frombuffer(wire.steps, _STEP), np.frombuffer(wire.spans, _SPAN)
        rows, first_rows = np.frombuffer(wire.rows, _ROW), np.frombuffer(wire.first_rows, "<u8")
    fits = steps["n_rows"].sum() == len(rows) == spans["n_rows"].sum() and steps["n_spans"].sum() == len(spans)
    if not fits or len(first_rows) != len(steps) or (len(spans) and spans["request"].max() >= len(wire.requests)):
        raise RecordingDamaged(f"a batch of labels has {len(rows)} rows, but its steps and spans say otherwise")
    _check_numbers(spans, rows, first_rows)
    return RowLabels(wire.requests, _labels(steps, spans, rows), _row_ids(steps, first_rows), spans)


def _unpacked(body: bytes | memoryview) -> bytes:
    """Decompress a batch. Its size is checked first: zstandard allocates what a frame states, whatever limit it is given."""
    try:
        size = zstandard.get_frame_parameters(body).content_size
        if size > MAX_BATCH_BYTES:  # a frame that states no size has 2**64 - 1
            raise RecordingDamaged(f"a batch of labels states {size} bytes; a writer makes at most {MAX_BATCH_BYTES}")
        return zstandard.ZstdDecompressor().decompress(body, MAX_BATCH_BYTES, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise RecordingDamaged(f"a batch of labels cannot be read: {error}") from error


def _check_numbers(spans: np.ndarray, rows: np.ndarray, first_rows: np.ndarray) -> None:
    """Raise RecordingDamaged for positions and row numbers whose sums would not fit 64 bits."""
    positions = (spans["first_position"], rows["position"])
    beyond = any(len(p) and (int(p.min()) < -MAX_NUMBER or int(p.max()) > MAX_NUMBER) for p in positions)
    if beyond or int(first_rows.max(initial=0)) > MAX_NUMBER:
        raise RecordingDamaged(f"a batch of labels has a position or a row number beyond {MAX_NUMBER}")


def _labels(steps: np.ndarray, spans: np.ndarray, rows: np.ndarray) -> np.ndarray:
    labels = np.empty(len(rows), LABEL)
    for name in ("position", "token_id", "flags"):
        labels[name] = rows[name]
    labels["request"] = np.repeat(spans["request"], spans["n_rows"])
    labels["step"] = np.repeat(steps["number"], steps["n_rows"])
    labels["time_ns"] = np.repeat(steps["time_ns"], steps["n_rows"])
    return labels


def _row_ids(steps: np.ndarray, first_rows: np.ndarray) -> np.ndarray:
    counts = steps["n_rows"].astype(np.int64)
    starts = np.cumsum(counts) - counts
    return np.repeat(first_rows.astype(np.int64) - starts, counts) + np.arange(counts.sum())
