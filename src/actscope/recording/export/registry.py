"""The forms by name, and the way from a recording to any of them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import msgspec

from actscope.errors import ActscopeError, RecordingError, SettingsError
from actscope.recording.export import npy, packets, parquet, safetensors, zarr
from actscope.recording.export.options import ExportOptions, ExportReport, Progress, silent
from actscope.recording.export.publishing import DESCRIPTION, check_free, publishing
from actscope.recording.export.selection import ExportSource, Selection
from actscope.recording.reading.recording import Recording

#: Writes the chosen rows at a path that is not there yet; returns what each site's rows are stored as.
Writer = Callable[[ExportSource, Path, Progress], dict[str, str]]

FORMATS: dict[str, Writer] = {
    "safetensors": safetensors.write,
    "zarr": zarr.write,
    "parquet": parquet.write,
    "npy": npy.write,
    "packets": packets.write,
}


def export(
    recording: Recording,
    to: str | os.PathLike[str],
    format: str = "safetensors",
    selection: Selection | None = None,
    options: ExportOptions | None = None,
    progress: Progress = silent,
) -> ExportReport:
    """Write rows and labels of a recording in another form. It appears at `to` whole, or not at all.

    Memory is bounded by a few chunks and the labels. Raises SettingsError for a form that is not known, MissingExtra where
    its library is not installed, RecordingError when `to` is taken or nothing is chosen.
    """
    if format not in FORMATS:
        raise SettingsError(f"no export format {format!r}; there are {', '.join(FORMATS)}")
    options = options or ExportOptions()
    path = Path(to).absolute()
    check_free(path, force=options.force)
    source = ExportSource(recording, selection or Selection(), options)
    try:
        with publishing(path, force=options.force) as temporary:
            stored = FORMATS[format](source, temporary, progress)
            if temporary.is_dir():
                description = {"form": format, **source.describe(stored)}
                (temporary / DESCRIPTION).write_bytes(msgspec.json.format(msgspec.json.encode(description), indent=1))
    except ActscopeError:
        raise
    except OSError as error:
        raise RecordingError(f"{path}: the export cannot be written there: {error.strerror or error}") from error
    files = [path] if path.is_file() else [found for found in path.rglob("*") if found.is_file()]
    rows = {site.name: len(site) for site in source.sites}
    return ExportReport(path, format, rows, stored, len(files), sum(found.stat().st_size for found in files))
