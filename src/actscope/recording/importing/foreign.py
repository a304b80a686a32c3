"""Foreign streams: packets of a name and bytes, without labels."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

import numpy as np

from actscope.codecs import itemsize
from actscope.errors import RecordingError, SettingsError
from actscope.frames import ROW_META, Span, Step
from actscope.recording.format.packets import Entry, PacketName, SiteForm, scan_packets
from actscope.recording.importing.options import ImportOptions
from actscope.recording.importing.stream import Count, Progress, Steps, Texts, as_rows, frame_of
from actscope.recording.spec import RecordingSpec

_MAX_SITES = 4096


@dataclass(frozen=True, slots=True)
class _Lump:
    """A packet of a foreign stream: rows of one site, and their place in the file."""

    place: PacketName
    rows: int
    entry: Entry


class ForeignStream:
    """Stream without labels. Packets of several sites with the same request, position and number of rows form one step."""

    def __init__(self, file: BinaryIO, path: Path, options: ImportOptions) -> None:
        if not options.dtype or not options.width:
            raise SettingsError(
                f"{path}: a foreign packet stream, which does not say what its bytes are: give dtype and width (--dtype, --width)"
            )
        self._file, self._name, self._options = file, str(path), options
        self._form = SiteForm(options.dtype, options.width)
        self.count = Count()
        self._groups = self._scan()
        sites = list(dict.fromkeys(lump.place.site for group in self._groups for lump in group))
        if not sites:
            raise RecordingError(f"{path}: none of its {self.count.packets} packets is wanted")
        self._check_cuts()
        self.spec = RecordingSpec(tuple(sites), codec=options.codec, settings={"imported_from": path.name})
        self.texts: Texts | None = None

    def _scan(self) -> list[list[_Lump]]:
        pattern = self._options.pattern
        counted: dict[tuple[str, str], int] = {}
        seen: dict[tuple[PacketName, int], int] = {}
        groups: dict[tuple[str, int, int, int], list[_Lump]] = {}
        sites: set[str] = set()
        for entry in scan_packets(self._file, self._name):
            self.count.packets += 1
            site, request, position = self._read_name(entry, pattern)
            if not self._options.wants(site):
                self.count.skipped += 1
                continue
            sites.add(site)
            if len(sites) > _MAX_SITES:
                raise RecordingError(
                    f"{self._name}: more than {_MAX_SITES} different names: give a pattern that says which part of a name "
                    "is the site (--names '(?P<site>.+)_step(?P<position>[0-9]+)')"
                )
            rows = self._rows_of(entry)
            if position is None:
                position = counted.get((site, request), 0)
            counted[site, request] = position + rows
            place = PacketName(site, request, position)
            time = seen[place, rows] = seen.get((place, rows), -1) + 1
            groups.setdefault((request, position, rows, time), []).append(_Lump(place, rows, entry))
        return list(groups.values())

    def _read_name(self, entry: Entry, pattern: re.Pattern[str] | None) -> tuple[str, str, int | None]:
        usual = self._options.request
        if pattern is None:
            place = PacketName.parse(entry.name)
            return (entry.name, usual, None) if place is None else (place.site, place.request, place.position)
        match = pattern.fullmatch(entry.name)
        if match is None:
            raise RecordingError(
                f"{self._name}: the name {entry.name[:60]!r} at byte {entry.offset} does not fit the pattern {pattern.pattern!r}"
            )
        said = match.groupdict()
        position = said.get("position")
        if position is not None and not (position.isascii() and position.isdecimal() and len(position) < 19):
            raise RecordingError(
                f"{self._name}: position {position[:30]!r} of the packet at byte {entry.offset} is no number"
            )
        return said["site"] or entry.name, said.get("request") or usual, None if position is None else int(position)

    def _rows_of(self, entry: Entry) -> int:
        size = self._form.width * itemsize(self._form.dtype)
        if not entry.length or entry.length % size:
            raise RecordingError(
                f"{self._name}: the {entry.length} bytes of the packet {entry.name[:60]!r} at byte {entry.offset} are no "
                f"rows of {self._form.width} x {self._form.dtype}, which have {size} each: check dtype and width, or take other "
                "sites (--sites)"
            )
        return entry.length // size

    def _check_cuts(self) -> None:
        """Check that all sites of a request split its positions alike: otherwise a token's rows would not be aligned."""
        cuts: dict[str, dict[tuple[int, int], _Lump]] = {}
        for group in self._groups:
            lump = group[0]
            known = cuts.setdefault(lump.place.request, {})
            known.setdefault((lump.place.position, lump.rows), lump)
        for request, known in cuts.items():
            ordered = sorted(known)
            for (start, rows), second in pairwise(ordered):
                if second[0] < start + rows:
                    one, other = known[start, rows].entry, known[second].entry
                    raise RecordingError(
                        f"{self._name}: packets of request {request!r} overlap otherwise than whole: {one.name[:60]!r} at byte "
                        f"{one.offset} has positions {start} to {start + rows - 1}, {other.name[:60]!r} at byte "
                        f"{other.offset} begins at {second[0]}"
                    )

    def steps(self, progress: Progress) -> Steps:
        """Iterate over the steps with their frames. Token ids are -1, and steps are numbered from 1."""
        for number, group in enumerate(self._groups, 1):
            lump = group[0]
            meta = np.zeros(lump.rows, ROW_META)
            meta["position"] = lump.place.position + np.arange(lump.rows)
            meta["token_id"], meta["step"] = -1, number
            step = Step(number, 0, (Span(lump.place.request, lump.place.position, lump.rows),), meta)
            yield step, [frame_of(each.place.site, [self._read(each)], self._form.dtype) for each in group]
            progress("import", number, len(self._groups))

    def _read(self, lump: _Lump) -> np.ndarray:
        self._file.seek(lump.entry.begin)
        where = f"{self._name}: the packet at byte {lump.entry.offset}"
        return as_rows(self._file.read(lump.entry.length), self._form, where)
