"""npy: a folder with two plain numpy files for each site; `np.load(..., mmap_mode="r")` reads them without a copy.

<site>.npy          [n, width]; bfloat16 as float32 (exact) or, with `bf16="uint16"`, its 16 bits
<site>.labels.npy   [n] records of position, step, time_ns, token_id, request, flags
export.json         requests (`request` counts in it), texts of tokens, the dtype that the rows came in
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np

from actscope.recording.export.columns import COLUMNS, columns, file_name
from actscope.recording.export.options import Progress
from actscope.recording.export.selection import ExportSource, converted


def write(source: ExportSource, to: Path, progress: Progress) -> dict[str, str]:
    """Write this format; see `registry.export`."""
    to.mkdir(mode=0o700)
    stored = {site.name: source.options.stored_dtype(site.dtype) for site in source.sites}
    done = 0
    for site in source.sites:
        name = file_name(site.name)
        with (to / f"{name}.npy").open("wb") as file:
            write_head(file, np.dtype(stored[site.name]), (len(site), site.width))
            for _, rows in site.batches():
                file.write(np.ascontiguousarray(converted(rows, site.dtype, stored[site.name])).data)
                done += rows.nbytes
                progress("npy", done, source.n_bytes)
        labels = np.empty(len(site), np.dtype(list(COLUMNS.items())))
        for column, values in columns(site.labels).items():
            labels[column] = values
        np.save(to / f"{name}.labels.npy", labels, allow_pickle=False)
    return stored


def write_head(file: BinaryIO, dtype: np.dtype, shape: tuple[int, ...]) -> None:
    """Write the header of a .npy file for an array in C order. Its data are written afterwards."""
    described = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, described)
