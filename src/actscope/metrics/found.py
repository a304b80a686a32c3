"""The model's processes, found without being named: engines by their cards, writers of recordings by their open files."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from actscope.errors import ActscopeError, MetricsError
from actscope.metrics.lines import RecordingDevice
from actscope.metrics.sources.devices import BlockDevices
from actscope.ring.discovery import MAX_CARD_BYTES, EngineCard
from actscope.runtime.decoding import decode_json
from actscope.runtime.directory import runtime_dir
from actscope.runtime.process import process_start
from actscope.runtime.regular_files import read_regular
from actscope.store.files import SEGMENT

_log = logging.getLogger(__name__)
_CARD = re.compile(r"engine-[0-9a-f]{16}\.json")
_WRITES = os.O_WRONLY | os.O_RDWR


@dataclass(frozen=True, slots=True)
class FoundProcess:
    """A process that belongs to a model.

    Attributes:
        what: What it was recognised as.
        recording: Directory of the recording that it writes, or None.
    """

    pid: int
    what: str
    recording: Path | None = None


def found_processes() -> list[FoundProcess]:
    """Return the processes of all running engines and the writers of all recordings, as far as this user may see them.

    Root sees those of all users: collectors run as root, and engines do not.
    """
    writers = {one.pid: one for one in _writers()}
    engines = {one.pid: one for one in _engines()}
    both = {
        pid: FoundProcess(pid, engines[pid].what, writers[pid].recording) for pid in engines.keys() & writers.keys()
    }
    return list((writers | engines | both).values())


def _engines() -> Iterator[FoundProcess]:
    for directory in _runtime_dirs():
        for name in _names(directory):
            if _CARD.fullmatch(name):
                try:
                    data = read_regular(directory / name, MAX_CARD_BYTES, MetricsError, follow=False)
                    card = decode_json(data, EngineCard, MetricsError, f"{directory / name}")
                except (ActscopeError, OSError) as error:
                    _log.debug("left out %s: %s", name, error)
                    continue
                if process_start(card.pid) == card.pid_start:
                    yield FoundProcess(card.pid, f"engine {card.id} ({card.model})")


def _runtime_dirs() -> list[Path]:
    """Return this user's runtime directory, and for root those of all users."""
    try:
        found = [runtime_dir()]
    except ActscopeError:
        found = []
    if os.geteuid() == 0:
        found += [Path("/run/user") / uid / "actscope" for uid in _names(Path("/run/user"))]
        found += [Path("/tmp") / name for name in _names(Path("/tmp")) if re.fullmatch(r"actscope-\d+", name)]
    return [path for path in dict.fromkeys(found) if path.is_dir() and not path.is_symlink()]


def _writers() -> Iterator[FoundProcess]:
    for name in _names("/proc"):
        directory = _recording_of(int(name)) if name.isdigit() else None
        if directory is not None:
            yield FoundProcess(int(name), f"writer of {directory}", directory)


def _recording_of(pid: int) -> Path | None:
    """Return the directory of the recording that a process has open for writing, or None."""
    files = f"/proc/{pid}/fd"  # plain strings: this looks at every open file of the machine
    for number in _names(files):
        try:
            target = os.readlink(f"{files}/{number}")
            directory, _, name = target.rpartition("/")
            if SEGMENT.fullmatch(name) and _is_open_for_writing(pid, number):
                return Path(directory)
        except OSError:
            continue
    return None


def _is_open_for_writing(pid: int, number: str) -> bool:
    text = Path(f"/proc/{pid}/fdinfo/{number}").read_text()
    flags = next((line.split()[1] for line in text.splitlines() if line.startswith("flags:")), "0")
    return bool(int(flags, 8) & _WRITES)


def recording_devices(found: list[FoundProcess], devices: BlockDevices) -> list[RecordingDevice]:
    """Return the device under each recording that is written. `device_name` is "" for a file system in memory."""
    lines = []
    for one in found:
        if one.recording is not None:
            try:
                chain = devices.under(one.recording)
            except OSError:
                continue  # it was removed, or lies in another mount namespace
            lines.append(
                RecordingDevice(
                    str(one.recording), chain[0].name if chain else "", [str(part) for part in chain], one.pid
                )
            )
    return lines


def _names(directory: Path | str) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:
        return []
