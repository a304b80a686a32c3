"""zarr, version 3: one group for each site, chunks of whole rows, zstd.

<site>/rows        [n, width]; bfloat16 as float32 (exact) or, with `bf16="uint16"`, its 16 bits
<site>/position    [n] int64; also step, time_ns (int64), token_id, request, flags (int32)
attributes         of the root: the model, requests, the recording; of a site: its name, the dtype that the rows came in
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from actscope.errors import MissingExtra, RecordingError
from actscope.recording.export.columns import columns, file_name
from actscope.recording.export.options import Progress
from actscope.recording.export.selection import ExportSource, SiteSource, converted

if TYPE_CHECKING:
    from zarr import Array, Group

_LABEL_CHUNK = 1 << 16


def write(source: ExportSource, to: Path, progress: Progress) -> dict[str, str]:
    """Write this format; see `registry.export`."""
    zarr = _zarr()
    stored = {site.name: source.options.stored_dtype(site.dtype) for site in source.sites}
    described = source.describe(stored)
    root = zarr.create_group(to, zarr_format=3, attributes={k: v for k, v in described.items() if k != "texts"})
    done = 0
    for site in source.sites:
        group = root.create_group(file_name(site.name), attributes={"site": site.name, "dtype": site.dtype})
        _write_labels(zarr, group, site)
        rows = _create(zarr, group, "rows", (len(site), site.width), stored[site.name], (site.batch_rows, site.width))
        for first, batch in site.batches():
            rows[first : first + len(batch)] = converted(batch, site.dtype, stored[site.name])
            done += batch.nbytes
            progress("zarr", done, source.n_bytes)
    return stored


def _write_labels(zarr: ModuleType, group: Group, site: SiteSource) -> None:
    for name, values in columns(site.labels).items():
        _create(zarr, group, name, values.shape, values.dtype.name, (_LABEL_CHUNK,))[:] = values


def _create(
    zarr: ModuleType, group: Group, name: str, shape: tuple[int, ...], dtype: str, chunks: tuple[int, ...]
) -> Array[Any]:
    whole = tuple(min(chunk, length) for chunk, length in zip(chunks, shape, strict=True))
    zstd = zarr.codecs.ZstdCodec(level=3)
    names = ["row"] if len(shape) == 1 else ["row", "dimension"]
    return group.create_array(
        name, shape=shape, dtype=np.dtype(dtype), chunks=whole, compressors=[zstd], dimension_names=names
    )


def _zarr() -> ModuleType:
    try:
        import zarr
    except ModuleNotFoundError as error:
        raise MissingExtra("export", "zarr") from error
    except (ImportError, ValueError, AttributeError) as error:  # zfpy built for numpy 1 breaks zarr's import
        raise RecordingError(
            f"zarr is installed but cannot be imported ({error}); if zfpy is installed, remove it"
        ) from error
    return zarr
