"""safetensors: a folder of shards with an index like those of Hugging Face models; bfloat16 stays bfloat16.

    rows-00001-of-00003.safetensors …
    rows.safetensors.index.json         {"metadata": {"total_size": …}, "weight_map": {tensor: file}}
    export.json                         requests, texts of tokens, the model

Tensors of a site, cut into parts so that no shard is too large:

    <site>/<part>/rows       [n, width] in the dtype that the rows came in
    <site>/<part>/position   [n] int64; also step, time_ns (int64), token_id, request, flags (int32)

The files are written as they stream, without torch: 8 bytes of header length, the header, the data. Tensors of wide elements come
first, so that each lies aligned. Format: https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from actscope.codecs import itemsize
from actscope.recording.export.columns import COLUMNS, columns
from actscope.recording.export.options import Progress
from actscope.recording.export.selection import ExportSource, SiteSource

#: Names of our dtypes in safetensors.
NAMES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "uint64": "U64", "int32": "I32",
    "uint32": "U32", "int16": "I16", "uint16": "U16", "int8": "I8", "uint8": "U8",
}  # fmt: skip
_LABEL_BYTES = sum(np.dtype(dtype).itemsize for dtype in COLUMNS.values())


@dataclass(frozen=True, slots=True)
class _Part:
    """Rows `start .. stop` of a site."""

    site: SiteSource
    number: int
    start: int
    stop: int

    @property
    def bytes(self) -> int:
        return (self.stop - self.start) * (self.site.row_bytes + _LABEL_BYTES)


@dataclass(frozen=True, slots=True)
class _Tensor:
    """A tensor of a shard: a column of labels, or the rows (column "rows")."""

    part: _Part
    column: str

    @property
    def name(self) -> str:
        return f"{self.part.site.name}/{self.part.number:05d}/{self.column}"

    @property
    def dtype(self) -> str:
        return self.part.site.dtype if self.column == "rows" else np.dtype(COLUMNS[self.column]).name

    @property
    def shape(self) -> list[int]:
        n = self.part.stop - self.part.start
        return [n, self.part.site.width] if self.column == "rows" else [n]

    @property
    def bytes(self) -> int:
        return int(np.prod(self.shape)) * itemsize(self.dtype)


def write(source: ExportSource, to: Path, progress: Progress) -> dict[str, str]:
    """Write this format; see `registry.export`."""
    to.mkdir(mode=0o700)
    shards = _shards(source)
    weight_map: dict[str, str] = {}
    done = 0
    for number, parts in enumerate(shards, 1):
        name = f"rows-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = sorted(
            (_Tensor(part, column) for part in parts for column in (*COLUMNS, "rows")), key=lambda t: -itemsize(t.dtype)
        )
        weight_map.update((tensor.name, name) for tensor in tensors)
        with (to / name).open("wb") as file:
            file.write(_header(tensors))
            for tensor in tensors:
                done += _write_tensor(file, tensor)
                progress("safetensors", done, source.n_bytes)
    total = sum(part.bytes for parts in shards for part in parts)
    index = {"metadata": {"total_size": total, "format": "actscope-export"}, "weight_map": weight_map}
    (to / "rows.safetensors.index.json").write_text(json.dumps(index, indent=1))
    return {site.name: site.dtype for site in source.sites}


def _shards(source: ExportSource) -> list[list[_Part]]:
    """Return all parts in order, grouped into shards of at most about `shard_bytes`."""
    limit = source.options.shard_bytes
    shards: list[list[_Part]] = []
    room = 0
    for site in source.sites:
        rows = max(1, limit // (site.row_bytes + _LABEL_BYTES))
        for number, start in enumerate(range(0, len(site), rows)):
            part = _Part(site, number, start, min(len(site), start + rows))
            if not shards or part.bytes > room:
                shards.append([])
                room = limit
            shards[-1].append(part)
            room -= part.bytes
    return shards


def _header(tensors: list[_Tensor]) -> bytes:
    described: dict[str, object] = {"__metadata__": {"format": "actscope-export"}}
    begin = 0
    for tensor in tensors:
        end = begin + tensor.bytes
        described[tensor.name] = {"dtype": NAMES[tensor.dtype], "shape": tensor.shape, "data_offsets": [begin, end]}
        begin = end
    raw = json.dumps(described, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    return len(raw).to_bytes(8, "little") + raw


def _write_tensor(file: BinaryIO, tensor: _Tensor) -> int:
    part = tensor.part
    if tensor.column != "rows":
        file.write(columns(part.site.labels[part.start : part.stop])[tensor.column].tobytes())
        return 0
    for _, rows in part.site.batches(part.start, part.stop):
        file.write(np.ascontiguousarray(rows).data)
    return tensor.bytes
