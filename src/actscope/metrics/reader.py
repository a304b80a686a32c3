"""Reading files of measurements: ours, and those of the tools that people come from."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from actscope.errors import MetricsError
from actscope.metrics.lines import IoLine, SystemLine
from actscope.runtime.decoding import decode_json
from actscope.runtime.regular_files import open_regular

#: Longest line that is read. One of 16,384 threads has some 5 MB.
MOST_LINE_BYTES = 64 << 20


@dataclass(slots=True)
class MeasurementFile:
    """The lines of one file.

    Attributes:
        io: Lines of block I/O, in the order of the file.
        system: Lines of CPU, memory and pressure.
        skipped: Lines that could not be read, with the reason: half a line where a writer was killed, or a foreign one.
    """

    path: Path
    io: list[IoLine] = field(default_factory=list)
    system: list[SystemLine] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


def read_measurements(path: Path) -> MeasurementFile:
    """Read a file of measurements.

    Args:
        path: A file of `actscope metrics io` or `system`, or of the tools that wrote tracepoints.jsonl and system_metrics.jsonl.

    Returns:
        Its lines. Both kinds may be in one file.

    Raises:
        MetricsError: The file cannot be read, or none of its lines is a measurement.
    """
    found = MeasurementFile(path)
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        try:
            one = _decoded(line, f"{path}, line {number}")
        except MetricsError as error:
            found.skipped.append(str(error))
            continue
        (found.io if isinstance(one, IoLine) else found.system).append(one)  # type: ignore[arg-type]
    if not found.io and not found.system:
        why = found.skipped[0] if found.skipped else f"{path}: is empty"
        raise MetricsError(f"{why}. Expected lines of `actscope metrics io` or `actscope metrics system`")
    return found


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with os.fdopen(open_regular(path, MetricsError), "rb") as file:
            while line := file.readline(MOST_LINE_BYTES + 1):
                if len(line) > MOST_LINE_BYTES:
                    raise MetricsError(f"{path}: a line has more than {MOST_LINE_BYTES} bytes, which are accepted")
                yield line
    except FileNotFoundError as error:
        raise MetricsError(f"{path}: there is no such file") from error


def _decoded(line: bytes, where: str) -> IoLine | SystemLine:
    """Decode one line. Its kind follows from its fields, because old files do not name it."""
    fields = decode_json(line, dict[str, object], MetricsError, where)
    if "latency_histogram" in fields:
        return decode_json(line, IoLine, MetricsError, where)
    if "off_cpu_ns" in fields:
        return decode_json(line, SystemLine, MetricsError, where)
    raise MetricsError(
        f"{where}: expected latency_histogram or off_cpu_ns, found {', '.join(sorted(fields)[:8])[:200]!r}"
    )


def follow_rotation(path: Path) -> list[Path]:
    """Return a file and those that it was renamed to when it grew, oldest first."""
    older: list[Path] = []
    while (one := path.with_name(f"{path.name}.{len(older) + 1}")).exists():
        older.append(one)
    return [*reversed(older), *([path] if path.exists() or not older else [])]


def as_json(line: msgspec.Struct) -> str:
    """Return a line as text."""
    return msgspec.json.encode(line).decode()
