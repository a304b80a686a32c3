"""Recording reader: rows by site, request and position. Works during writing and after a crash."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import msgspec
import numpy as np

from actscope.errors import RecordingDamaged, RecordingError, SiteError
from actscope.near_miss import hinted_class
from actscope.recording.format import manifest, records
from actscope.recording.format.index_keys import CHANNELS, KEY, Kind
from actscope.recording.reading.label_index import LabelIndex, RequestSummary, check_label_room, labels_of
from actscope.recording.reading.site_rows import Blocks, Rows, SiteRows
from actscope.recording.reading.summary import describe, summarize
from actscope.recording.reading.verification import Verification, verify
from actscope.recording.reading.write_history import WriteHistory, write_history
from actscope.sites import foreign_hint
from actscope.store import Damage, StoreReader

Positions = int | slice | Sequence[int] | np.ndarray
R = TypeVar("R", bound=msgspec.Struct)


@dataclass(frozen=True, slots=True)
class TokenRow:
    """A computed token. `time_ns` is CLOCK_MONOTONIC; `stored_bytes` is its share of its blocks, summed over all sites."""

    position: int
    token_id: int
    text: str | None
    time_ns: int
    stored_bytes: float


@hinted_class
class Recording:
    """Lazy reader of a recording. Opening reads the index; rows are read and decoded on access.

        rec = actscope.open("run.acts")
        rec.sites, rec.requests
        rec["layers.3.resid_post"][:100]                                  # numpy [100, d]
        rec.rows("layers.3.resid_post", request="r000001", positions=slice(0, 10))

    Methods that read bodies raise RecordingDamaged when bytes are missing or fail their checksum.

    Attributes:
        path: Directory of the recording.
        info: The recording's manifest: model, settings, codecs.
        sites: Names of the sites, in the order of their channels.
    """

    def __init__(self, store: StoreReader) -> None:
        self._store = store
        self.path = store.path
        self.info = manifest.info_of(store)
        self.sites: tuple[str, ...] = tuple(self.info["sites"])

    def __repr__(self) -> str:
        state = "complete" if self.complete else "not complete"
        size = f"{len(self.requests)} requests, {self.n_rows} rows, {len(self.sites)} sites"
        return f"<Recording {str(self.path)!r}: {size}, {state}>"

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Recording:
        """Open the recording at `path`.

        Args:
            path: Directory of the recording.

        Returns:
            A reader of the messages written so far; call `refresh` for later ones.

        Raises:
            RecordingError: There is no recording, or its format version is not supported.
            RecordingDamaged: No copy of its manifest can be read.
        """
        return cls(StoreReader.open(path))

    def refresh(self) -> int:
        """Read the messages that were written since the last look.

        `SiteRows` objects obtained earlier do not change.

        Returns:
            The number of new messages.

        Raises:
            RecordingError: The recording was removed, or a file cannot be read.
        """
        found = self._store.refresh()
        if found:
            for name in (
                "_keys",
                "_labels",
                "_sites",
                "texts",
                "marks",
                "drops",
                "sessions",
                "whole",
                "_bytes_of_rows",
            ):
                self.__dict__.pop(name, None)
        return found

    # --- contents -------------------------------------------------------------------------------------------------------

    @property
    def damage(self) -> list[Damage]:
        """Return the torn, missing or changed parts that the last `open` or `refresh` found."""
        return list(self._store.damage)

    @property
    def complete(self) -> bool:
        """Return whether the last writer closed the recording."""
        return bool(self.sessions) and self.sessions[-1].ended

    @property
    def requests(self) -> list[str]:
        """Return the request ids, in the order in which the requests began."""
        return list(self._labels.requests)

    def request(self, request: str) -> RequestSummary:
        """Return counts and times of one request.

        Args:
            request: Request id.

        Returns:
            Its summary.

        Raises:
            RecordingError: The request is not in the recording.
        """
        return self._labels.summary(self._number(request), self.whole)

    @property
    def n_rows(self) -> int:
        """Return the number of labelled rows. A row is one token at every site."""
        return len(self._labels.row_ids)

    @cached_property
    def whole(self) -> np.ndarray:
        """Return which rows of `labels()` are in the recording at every site: bool [n].

        A row that was dropped, or was still to be written when its writer ended, has a label and no values. A site without any
        row counts only while the recording is not complete: a complete one may have a site that was refused.
        """
        ids = self._labels.row_ids
        change = np.zeros(len(ids) + 1, np.int64)  # of the number of sites, from one labelled row to the next
        expected = 0
        for site in self.sites:
            try:
                ranges = self[site].blocks.ranges
            except RecordingDamaged:  # `self[site]` says what is wrong; none of its rows can be read
                return np.zeros(len(ids), bool)
            expected += bool(len(ranges)) or not self.complete
            first, after = np.searchsorted(ids, ranges.T)
            np.add.at(change, first, 1)
            np.add.at(change, after, -1)
        found: np.ndarray = (np.cumsum(change)[: len(ids)] >= expected) & (expected > 0)
        return found

    def missing_rows(self, request: str) -> int:
        """Return the number of a request's positions that have a label, and no values at some site.

        Args:
            request: Request id.

        Raises:
            RecordingError: The request is not in the recording.
        """
        newest = self._labels.newest(self._labels.of_request(self._number(request)))
        return int((~self.whole[newest]).sum())

    def labels(self, request: str | None = None) -> np.ndarray:
        """Return the labels of all rows or of one request's rows.

        Args:
            request: Request id; None: all rows.

        Returns:
            LABEL [n] (`position`, `token_id`, `flags`, `request`, `step`, `time_ns`), in the order of computation.

        Raises:
            RecordingError: The request is not in the recording.
        """
        found: np.ndarray = self._labels.all
        return found if request is None else found[self._labels.of_request(self._number(request))]

    def wall_ns(self, request: str | None = None) -> np.ndarray:
        """Return the wall time of each row of `labels(request)`.

        Args:
            request: Request id; None: all rows.

        Returns:
            int64 [n], nanoseconds since the epoch, converted with the clock pair of the session that wrote the row.

        Raises:
            RecordingError: The request is not in the recording.
        """
        begun = [session for session in self.sessions if not session.ended]
        if not begun and self.n_rows:
            raise RecordingDamaged(
                f"{self.path}: no record of a session is left, so the wall time of its rows is not known"
            )
        offsets = np.array([session.wall_ns - session.monotonic_ns for session in begun], np.int64)
        at = np.searchsorted([session.first_row for session in begun], self._labels.row_ids, side="right") - 1
        times: np.ndarray = self._labels.all["time_ns"] + offsets[at]
        return times if request is None else times[self._labels.of_request(self._number(request))]

    @property
    def row_ids(self) -> np.ndarray:
        """Return the number of each row of `labels()`: int64 [n], ascending. Gaps are rows whose step did not complete."""
        found: np.ndarray = self._labels.row_ids
        return found

    # --- figures ----------------------------------------------------------------------------------------------------------

    def summary(self) -> dict[str, Any]:
        """Return counts, sizes, compression ratios and measured errors, as JSON values."""
        return summarize(self)

    def describe(self, n_requests: int = 5) -> dict[str, Any]:
        """Return everything that `actscope info` shows, as JSON values.

        Args:
            n_requests: How many requests are listed; 0 lists all.
        """
        return describe(self, n_requests)

    def verify(self, progress: Callable[[str, int, int], None] | None = None) -> Verification:
        """Check every byte on disk: checksums, that all blocks and labels decode, and that rows have labels.

        Args:
            progress: Called with the stage ("bytes" or "blocks"), the amount done, and the total.

        Returns:
            The findings. `ok` is False when acknowledged bytes are missing or changed, or when a message does not decode.
        """
        return verify(self.path, progress) if progress else verify(self.path)

    def write_history(self) -> WriteHistory:
        """Return when its blocks were written, what waited then, and when rows were dropped.

        Raises:
            RecordingDamaged: A record of drops or of a session cannot be read.
        """
        return write_history(self._store.entries, self._keys, self.sessions, self._records(Kind.DROPS, records.Drops))

    # --- rows -----------------------------------------------------------------------------------------------------------

    def __getitem__(self, site: str) -> SiteRows:
        """Return the rows of a site as a lazy array [n, d]. Raises SiteError if the site is not in the recording."""
        if site not in self.sites:
            raise SiteError(f"{self.path} has no site {site!r}; it has {', '.join(self.sites)}{foreign_hint(site)}")
        if site not in self._sites:
            mine = self._store.entries[self._store.entries["channel"] == len(CHANNELS) + self.sites.index(site)]
            self._sites[site] = SiteRows(site, Blocks(self._store, mine), self._labels.row_ids, self._labels.all)
        return self._sites[site]

    def rows(self, site: str, request: str | None = None, positions: Positions | None = None) -> Rows:
        """Return rows of a site, with their labels.

        With a request: its rows in the order of positions, each as computed last, without spurious rows. Without a request: all
        rows of the site in the order of computation.

        Args:
            site: Name of the site.
            request: Request id; None: all rows.
            positions: An int, a slice or a sequence of ints. Needs a request. A slice selects the rows that exist, in ascending
                order; positions given one by one must all exist. None: all positions.

        Returns:
            Values [n, d] (bfloat16 as float32, exactly) and labels LABEL [n].

        Raises:
            SiteError: The site is not in the recording.
            RecordingError: The request is not in the recording, `positions` lacks a request, or a position was not computed
                or not kept.
            RecordingDamaged: A block cannot be read.
        """
        found = self[site]
        if request is None:
            if positions is not None:
                raise RecordingError("positions are of a request: name it")
            return Rows(found[:], found.labels)
        newest = self._labels.newest(self._labels.of_request(self._number(request)))
        chosen = newest if positions is None else newest[self._choose(newest, positions, request)]
        at = np.searchsorted(found.row_ids, self._labels.row_ids[chosen])
        held = np.zeros(len(at), bool)
        inside = at < len(found)
        held[inside] = found.row_ids[at[inside]] == self._labels.row_ids[chosen][inside]
        if positions is not None and not isinstance(positions, slice) and not held.all():
            lost = self._labels.all["position"][chosen][~held].tolist()
            raise RecordingError(f"request {request!r}: {site} was not kept at positions {lost}")
        return Rows(found[at[held]], found.labels[at[held]])

    def _choose(self, newest: np.ndarray, positions: Positions, request: str) -> np.ndarray:
        have = self._labels.all["position"][newest]
        if isinstance(positions, slice):
            summary = self.request(request)
            start, stop, step = positions.indices(summary.present)
            low, high = (start, stop) if step > 0 else (stop + 1, start + 1)
            return np.flatnonzero((have >= low) & (have < high) & ((have - start) % step == 0))
        wanted = np.atleast_1d(np.asarray(positions, np.int64))
        at = np.searchsorted(have, wanted)
        missing = [p for p, i in zip(wanted.tolist(), at.tolist(), strict=True) if i >= len(have) or have[i] != p]
        if missing:
            raise RecordingError(f"request {request!r} has no rows at positions {missing}: they were never computed")
        return at

    def iter_rows(self, site: str, batch_rows: int = 4096) -> Iterator[Rows]:
        """Iterate over all rows of a site in order, with only a few decoded blocks in memory.

        Args:
            site: Name of the site.
            batch_rows: Maximum rows of a batch.

        Returns:
            An iterator of batches: values [n, d] and labels LABEL [n], n <= `batch_rows`.

        Raises:
            SiteError: The site is not in the recording.
            RecordingDamaged: A block cannot be read; raised by the iterator.
        """
        return self[site].batches(batch_rows)

    # --- tokens ---------------------------------------------------------------------------------------------------------

    @cached_property
    def texts(self) -> dict[int, str]:
        """Return the texts of token ids. Empty if no tokenizer was available."""
        return {i: text for record in self._records(Kind.TOKENS, records.Tokens) for i, text in record.texts.items()}

    def tokens(self, request: str) -> list[TokenRow]:
        """Return the computed tokens of a request, in the order of positions.

        Args:
            request: Request id.

        Returns:
            One `TokenRow` for each position that has a row.

        Raises:
            RecordingError: The request is not in the recording.
        """
        labels = self._labels
        newest = labels.newest(labels.of_request(self._number(request)))
        return [
            TokenRow(
                int(r["position"]), int(r["token_id"]), self.texts.get(int(r["token_id"])), int(r["time_ns"]), float(b)
            )
            for r, b in zip(labels.all[newest], self._bytes_of_rows[newest], strict=True)
        ]

    def recorded_tokens(self) -> list[records.Token]:
        """Return the tokens that `Recorder.record_token` wrote."""
        return [token for record in self._records(Kind.TOKENS, records.Tokens) for token in record.tokens]

    @cached_property
    def _bytes_of_rows(self) -> np.ndarray:
        """Return float64 [n_rows]: the stored bytes of each labelled row; a block's bytes are divided evenly."""
        ids = self._labels.row_ids
        change = np.zeros(len(ids) + 1)  # of the bytes, from one labelled row to the next
        for site in self.sites:
            blocks = self[site].blocks
            first, after = np.searchsorted(ids, blocks.ranges.T)
            share = blocks.entries["length"] / np.maximum(1, blocks.keys["n_rows"])
            np.add.at(change, first, share)
            np.add.at(change, after, -share)
        shares: np.ndarray = np.cumsum(change)[: len(ids)]
        return shares

    # --- small records ----------------------------------------------------------------------------------------------------

    @cached_property
    def marks(self) -> list[records.Mark]:
        """Return the marks: requests that were selected, and why."""
        return self._records(Kind.MARK, records.Mark)

    @cached_property
    def drops(self) -> list[records.Drop]:
        """Return the row ranges that the recorder dropped, by site."""
        return [drop for record in self._records(Kind.DROPS, records.Drops) for drop in record.drops]

    @cached_property
    def sessions(self) -> list[records.Session]:
        """Return the session records: one at the start of each writer, one at its end."""
        return self._records(Kind.SESSION, records.Session)

    @property
    def codec_reports(self) -> dict[str, dict[str, object]]:
        """Return what the codec of each site reported at the end of the last session, by site. Empty while one is running."""
        ended = [session for session in self.sessions if session.ended]
        reports = ended[-1].stats.get("codecs") if ended else None
        known = reports if isinstance(reports, dict) else {}
        return {str(site): report for site, report in known.items() if isinstance(report, dict)}

    # --- internals --------------------------------------------------------------------------------------------------------

    @cached_property
    def _keys(self) -> np.ndarray:
        keys: np.ndarray = np.ascontiguousarray(self._store.entries["key"]).view(KEY).reshape(-1)
        return keys

    @cached_property
    def _labels(self) -> LabelIndex:
        keys = self._keys[self._keys["kind"] == Kind.LABELS]
        check_label_room(keys, self.path)
        return LabelIndex(map(labels_of, keys, self._bodies(Kind.LABELS)))

    @cached_property
    def _sites(self) -> dict[str, SiteRows]:
        return {}

    def _number(self, request: str) -> int:
        number = self._labels.number_of(request)
        if number is None:
            shown = (", ".join(self._labels.requests[:5]) or "none") + " …" * (len(self.requests) > 5)
            raise RecordingError(f"{self.path} has no request {request!r}; it has {len(self.requests)}: {shown}")
        return number

    def _bodies(self, kind: Kind) -> Iterator[memoryview]:
        for index in np.flatnonzero(self._keys["kind"] == kind):
            yield self._store.read(self._store.entries[index])

    def _records(self, kind: Kind, record: type[R]) -> list[R]:
        return [records.read(body, record) for body in self._bodies(kind)]
