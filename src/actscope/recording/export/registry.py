"""Export formats by name, and `export`, which writes a recording in any of them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import msgspec

from actscope.errors import ActscopeError, RecordingError, SettingsError
from actscope.near_miss import hint, hinted
from actscope.recording.export import npy, packets, parquet, safetensors, zarr
from actscope.recording.export.options import ExportOptions, ExportReport, Progress, silent
from actscope.recording.export.publishing import DESCRIPTION, HIDDEN_DESCRIPTION, check_free, publishing
from actscope.recording.export.selection import ExportSource, Selection
from actscope.recording.reading.recording import Recording
from actscope.runtime.writable import check_can_create

#: Writes the selected rows to a path that does not exist; returns the stored dtype of each site.
Writer = Callable[[ExportSource, Path, Progress], dict[str, str]]

FORMATS: dict[str, Writer] = {
    "safetensors": safetensors.write,
    "zarr": zarr.write,
    "parquet": parquet.write,
    "npy": npy.write,
    "packets": packets.write,
}


@hinted
def export(
    recording: Recording,
    to: str | os.PathLike[str],
    format: str = "safetensors",
    selection: Selection | None = None,
    options: ExportOptions | None = None,
    progress: Progress = silent,
) -> ExportReport:
    """Write rows and labels of a recording in another format. Atomic: `to` appears complete or not at all.

    Memory use is bounded by a few chunks and the labels.

    Args:
        recording: Source of the rows.
        to: Path of the new file ("packets") or directory (other formats).
        format: A key of `FORMATS`: "safetensors", "zarr", "parquet", "npy" or "packets".
        selection: Sites, requests and positions to export; None: all.
        options: Options of the export; None uses the defaults.
        progress: Called with the stage, the amount done, and the total.

    Returns:
        Rows and stored dtype by site, number of files and their size in bytes.

    Raises:
        SettingsError: The format is not known.
        SiteError: A selected site is not in the recording.
        MissingExtra: The format's library is not installed.
        RecordingError: `to` exists and may not be replaced, a selected request is not in the recording, the selected positions
            are not a range from 0 up, the selection is empty, or writing failed.
        RecordingDamaged: A block of the recording cannot be read.
    """
    if format not in FORMATS:
        raise SettingsError(f"no export format {format!r}; there are {', '.join(FORMATS)}{hint(format, FORMATS)}")
    options = options or ExportOptions()
    path = Path(to).absolute()
    check_free(path, force=options.force)
    check_can_create(path, "--to", RecordingError, within=path.parent)
    source = ExportSource(recording, selection or Selection(), options)
    try:
        with publishing(path, force=options.force) as temporary:
            stored = FORMATS[format](source, temporary, progress)
            if temporary.is_dir():
                description = {"form": format, **source.describe(stored)}
                name = HIDDEN_DESCRIPTION if format == "parquet" else DESCRIPTION
                (temporary / name).write_bytes(msgspec.json.format(msgspec.json.encode(description), indent=1))
    except ActscopeError:
        raise
    except OSError as error:
        raise RecordingError(
            f"{path}: the export cannot be written there ({error.strerror or error}), and nothing of it is there: make room, or "
            "choose another place"
        ) from error
    files = [path] if path.is_file() else [found for found in path.rglob("*") if found.is_file()]
    rows = {site.name: len(site) for site in source.sites}
    return ExportReport(path, format, rows, stored, len(files), sum(found.stat().st_size for found in files))
