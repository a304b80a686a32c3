"""parquet: a folder with one file for each site, zstd, row groups that fit in memory.

    <site>.parquet    row: fixed_size_list<float16 | float32 | …>[width]; bfloat16 as float32 (exact) or, with `bf16="uint16"`,
                      its 16 bits; position, step, time_ns (int64), token_id, flags (int32), site, request and text (strings, as
                      dictionaries; text is null where no tokenizer was known)
    .huggingface.yaml one configuration for each site: `datasets.load_dataset(folder, site)` never mixes sites
    _export.json      what export.json is in other formats; readers of parquet folders skip names that begin with _ or .

All files have one schema, so that pandas, pyarrow, DuckDB and polars read the folder as one table, whose column `site` tells rows
apart. So sites of different widths are stored as lists of any size, and float dtypes that differ as the widest (exact).

The schema's metadata has, under "actscope", the site's name, the dtype that the rows came in, and the recording's model.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from actscope.errors import MissingExtra
from actscope.recording.export.columns import columns, file_name
from actscope.recording.export.options import Progress
from actscope.recording.export.selection import ExportSource, SiteSource, converted

if TYPE_CHECKING:
    from pyarrow import Array, DataType, Schema


def write(source: ExportSource, to: Path, progress: Progress) -> dict[str, str]:
    """Write this format; see `registry.export`."""
    pyarrow = _pyarrow()
    to.mkdir(mode=0o700)
    stored = _one_kind({site.name: source.options.stored_dtype(site.dtype) for site in source.sites})
    same_width = len({site.width for site in source.sites}) == 1
    _write_configurations(source, to)
    done = 0
    for site in source.sites:
        schema = _schema(pyarrow, source, site, stored[site.name], same_width)
        path = to / f"{file_name(site.name)}.parquet"
        labels = site.labels
        words = {"compression": "zstd", "use_dictionary": ["site", "request", "text"]}
        with pyarrow.parquet.ParquetWriter(path, schema, **words) as file:
            for first, rows in site.batches():
                table = _table(pyarrow, source, site, schema, labels[first : first + len(rows)])
                wanted = converted(rows, site.dtype, stored[site.name]).astype(stored[site.name], copy=False)
                vectors = _vectors(pyarrow, np.ascontiguousarray(wanted), schema.field("row").type)
                file.write_table(pyarrow.table([vectors, *table], schema=schema), row_group_size=len(rows))
                done += rows.nbytes
                progress("parquet", done, source.n_bytes)
    return stored


def _one_kind(stored: dict[str, str]) -> dict[str, str]:
    """Return one dtype for all sites if all are floats: the widest, which holds the others exactly."""
    kinds = {np.dtype(name) for name in stored.values()}
    if len(kinds) == 1 or any(kind.kind != "f" for kind in kinds):
        return stored
    return dict.fromkeys(stored, max(kinds, key=lambda kind: kind.itemsize).name)


def _write_configurations(source: ExportSource, to: Path) -> None:
    """Write the configurations that `datasets` reads. JSON is YAML."""
    names = [file_name(site.name) for site in source.sites]
    configurations = [{"config_name": name, "data_files": f"{name}.parquet"} for name in names]
    (to / ".huggingface.yaml").write_text(json.dumps({"configs": configurations}, indent=1))


def _vectors(pyarrow: ModuleType, rows: np.ndarray, kind: DataType) -> Array:
    """Return rows [n, width] as an array of lists of type `kind`."""
    values = pyarrow.array(rows.reshape(-1))
    if pyarrow.types.is_fixed_size_list(kind):
        return pyarrow.FixedSizeListArray.from_arrays(values, type=kind)
    edges = np.arange(len(rows) + 1, dtype=np.int64) * rows.shape[1]
    return pyarrow.LargeListArray.from_arrays(pyarrow.array(edges), values, type=kind)


def _schema(pyarrow: ModuleType, source: ExportSource, site: SiteSource, stored: str, same_width: bool) -> Schema:
    element = pyarrow.field("element", pyarrow.from_numpy_dtype(np.dtype(stored)), nullable=False)
    facts = {
        "site": site.name,
        "dtype": site.dtype,
        "model": source.recording.info["model"],
        "recording": source.recording.info.get("id", ""),
    }
    integers = [(name, pyarrow.from_numpy_dtype(values.dtype)) for name, values in columns(site.labels[:0]).items()]
    word = pyarrow.dictionary(pyarrow.int32(), pyarrow.string())
    fields = [
        ("row", pyarrow.list_(element, site.width) if same_width else pyarrow.large_list(element)),
        *[(name, kind) for name, kind in integers if name != "request"],
        ("site", word),
        ("request", word),
        ("text", word),
    ]
    return pyarrow.schema(fields, metadata={"actscope": json.dumps(facts)})


def _table(
    pyarrow: ModuleType, source: ExportSource, site: SiteSource, schema: Schema, labels: np.ndarray
) -> list[Array]:
    """Return all columns except the rows."""
    found = columns(labels)
    plain = [pyarrow.array(found[name]) for name in schema.names if name in found and name != "request"]
    tokens, at = np.unique(found["token_id"], return_inverse=True)
    texts = [source.recording.texts.get(token) for token in tokens.tolist()]
    known = [text is not None for text in texts]
    place = np.cumsum(known) - 1
    words = pyarrow.array([text for text in texts if text is not None], pyarrow.string())
    text = pyarrow.DictionaryArray.from_arrays(
        pyarrow.array(place[at].astype(np.int32), mask=~np.array(known, bool)[at]), words
    )
    numbers, of_row = np.unique(found["request"], return_inverse=True)
    known_requests = source.recording.requests
    names = pyarrow.array([known_requests[number] for number in numbers.tolist()], pyarrow.string())
    here = pyarrow.DictionaryArray.from_arrays(pyarrow.array(np.zeros(len(labels), np.int32)), [site.name])
    return [*plain, here, pyarrow.DictionaryArray.from_arrays(pyarrow.array(of_row.astype(np.int32)), names), text]


def _pyarrow() -> ModuleType:
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise MissingExtra("export", "pyarrow") from error
    found: ModuleType = pyarrow
    return found
