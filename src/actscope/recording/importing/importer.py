"""Import of a packet stream as a recording."""

from __future__ import annotations

import os
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from actscope.codecs import DTYPES, itemsize
from actscope.errors import ActscopeError, RecordingError
from actscope.near_miss import hinted
from actscope.recording.format.index_keys import MAX_BLOCK_BYTES
from actscope.recording.format.packets import HEADER, VERSION, StreamHeader, scan_packets
from actscope.recording.importing.foreign import ForeignStream
from actscope.recording.importing.options import ImportOptions
from actscope.recording.importing.own import OwnStream, decode
from actscope.recording.importing.stream import Progress, StepStream
from actscope.recording.spec import PipelineOptions
from actscope.recording.writing.recorder import Recorder
from actscope.runtime.decoding import as_own_error
from actscope.runtime.publish import sync_directory
from actscope.runtime.regular_files import open_regular

#: Largest header. It has the texts of all tokens.
_MOST_HEADER = 256 << 20


@dataclass(frozen=True, slots=True)
class ImportReport:
    """Result of an import: sites, number of labelled rows, requests and packets, and number of skipped packets."""

    path: Path
    ours: bool
    sites: tuple[str, ...]
    rows: int
    requests: int
    packets: int
    skipped: int


def _silent(stage: str, done: int, total: int) -> None:
    """Ignore progress."""


@hinted
def import_packets(
    source: str | os.PathLike[str],
    to: str | os.PathLike[str],
    options: ImportOptions | None = None,
    progress: Progress = _silent,
) -> ImportReport:
    """Create a recording from a packet stream. Atomic: `to` appears complete or not at all.

    Args:
        source: File with the packet stream.
        to: Directory of the new recording; must not exist.
        options: Description of a foreign stream, and the codec; None uses the defaults.
        progress: Called with the stage, the amount done, and the total.

    Returns:
        Sites and counts of the new recording.

    Raises:
        RecordingError: `to` exists, the stream is truncated or inconsistent (the message gives the byte offset), or reading
            or writing failed.
        SettingsError: A foreign stream's dtype or width is missing, or `options.names` is not valid.
    """
    path, target, options = Path(source), Path(to).absolute(), options or ImportOptions()
    if os.path.lexists(target):
        raise RecordingError(f"{target} exists already; choose another path")
    try:
        with (
            os.fdopen(open_regular(path, RecordingError), "rb") as file,
            as_own_error(RecordingError, str(path)),
        ):
            header = _header_of(file, str(path))
            stream: StepStream = (
                OwnStream(file, path, header, options) if header else ForeignStream(file, path, options)
            )
            _record(stream, target, progress)
    except ActscopeError:
        raise
    except OSError as error:
        where = error.filename if error.filename is not None else path
        raise RecordingError(f"{where}: {error.strerror or error}") from error
    count = stream.count
    sites = stream.spec.sites
    return ImportReport(
        target, header is not None, sites, count.rows, len(count.requests), count.packets, count.skipped
    )


def _record(stream: StepStream, target: Path, progress: Progress) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        with Recorder.create(temporary, stream.spec, PipelineOptions(policy="block")) as recorder:
            recorder.texts = stream.texts
            for step, frames in stream.steps(progress):
                stream.count.rows += step.n_rows
                stream.count.requests.update(span.request for span in step.spans)
                recorder.write(step, frames)
        temporary.rename(target)
        sync_directory(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _header_of(file: BinaryIO, name: str) -> StreamHeader | None:
    """Return the header of an actscope stream, or None for a foreign stream."""
    first = next(scan_packets(file, name), None)
    if first is None:
        raise RecordingError(f"{name}: an empty stream")
    if first.name != HEADER:
        return None
    if first.length > _MOST_HEADER:
        raise RecordingError(f"{name}: its header has {first.length} bytes, at most {_MOST_HEADER} are accepted")
    file.seek(first.begin)
    header = decode(file.read(first.length), StreamHeader, name, first.offset)
    if header.format != "actscope-packets" or header.version != VERSION or header.byte_order != "little":
        raise RecordingError(
            f"{name}: its header says {header.format} version {header.version}, {header.byte_order}-endian; this actscope reads "
            f"actscope-packets version {VERSION}, little-endian"
        )
    bad = [
        site
        for site, form in header.sites.items()
        if form.dtype not in DTYPES or not 1 <= form.width * itemsize(form.dtype) <= MAX_BLOCK_BYTES
    ]
    if bad or not header.sites:
        raise RecordingError(f"{name}: its header has no sites, or a dtype or width that is not one: {bad}")
    return header
