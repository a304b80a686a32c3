"""Reading a recording: rows by site, request and position. Works while it is being written, and after a crash."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import msgspec
import numpy as np

from actscope.errors import RecordingError, SiteError
from actscope.recording.format import manifest, records, row_labels
from actscope.recording.format.index_keys import CHANNELS, KEY, Kind
from actscope.recording.reading.label_index import LabelIndex, RequestSummary
from actscope.recording.reading.site_rows import Blocks, Rows, SiteRows
from actscope.recording.reading.summary import describe, summarize
from actscope.recording.reading.verification import Verification, verify
from actscope.store import Damage, StoreReader

Positions = int | slice | Sequence[int] | np.ndarray
R = TypeVar("R", bound=msgspec.Struct)


@dataclass(frozen=True, slots=True)
class TokenRow:
    """One computed token: `stored_bytes` is its share of the blocks that hold it, over all sites."""

    position: int
    token_id: int
    text: str | None
    time_ns: int
    stored_bytes: float


class Recording:
    """A recording, read lazily.

    rec = actscope.open("run.acts")
    rec.sites, rec.requests
    rec["layers.3.resid_post"][:100]                                  # numpy [100, d]
    rec.rows("layers.3.resid_post", request="r000001", positions=slice(0, 10))
    """

    def __init__(self, store: StoreReader) -> None:
        self._store = store
        self.path = store.path
        self.info: dict[str, Any] = store.manifest
        self.sites: tuple[str, ...] = tuple(store.manifest["sites"])

    def __repr__(self) -> str:
        state = "complete" if self.complete else "not complete"
        size = f"{len(self.requests)} requests, {self.n_rows} rows, {len(self.sites)} sites"
        return f"<Recording {str(self.path)!r}: {size}, {state}>"

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Recording:
        """Raises RecordingError when there is no recording, or one of another version."""
        store = StoreReader.open(path)
        manifest.check(store.manifest, path)
        return cls(store)

    def refresh(self) -> int:
        """Take in what has been written since: the number of new messages. Site objects from before do not change."""
        found = self._store.refresh()
        if found:
            for name in ("_keys", "_labels", "_sites", "texts", "marks", "drops", "sessions", "_bytes_of_rows"):
                self.__dict__.pop(name, None)
        return found

    # --- what is there --------------------------------------------------------------------------------------------------

    @property
    def damage(self) -> list[Damage]:
        """What opening has found to be torn, missing or changed."""
        return list(self._store.damage)

    @property
    def complete(self) -> bool:
        """Whether the last writer came to its end."""
        return bool(self.sessions) and self.sessions[-1].ended

    @property
    def requests(self) -> list[str]:
        """Request ids, in the order in which they began."""
        return list(self._labels.requests)

    def request(self, request: str) -> RequestSummary:
        """What is known of one request."""
        return self._labels.summary(self._number(request))

    @property
    def n_rows(self) -> int:
        """Labelled rows; each is one token at every site."""
        return len(self._labels.row_ids)

    def labels(self, request: str | None = None) -> np.ndarray:
        """LABEL [n] of all rows, or of one request's, in the order in which they were computed."""
        found: np.ndarray = self._labels.all
        return found if request is None else found[self._labels.of_request(self._number(request))]

    def wall_ns(self, request: str | None = None) -> np.ndarray:
        """int64 [n]: wall time of each row of `labels(request)`, nanoseconds since the epoch, by its own writer's clocks."""
        begun = [session for session in self.sessions if not session.ended]
        offsets = np.array([session.wall_ns - session.monotonic_ns for session in begun], np.int64)
        at = np.searchsorted([session.first_row for session in begun], self._labels.row_ids, side="right") - 1
        times: np.ndarray = self._labels.all["time_ns"] + offsets[at]
        return times if request is None else times[self._labels.of_request(self._number(request))]

    @property
    def row_ids(self) -> np.ndarray:
        """int64 [n]: the number of each row of `labels()`, ascending; gaps are rows whose step did not end."""
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
            progress: Called with a stage ("bytes", "blocks"), how much is done, and the total.

        Returns:
            What was found; its `ok` is False when acknowledged bytes are missing or changed, or something does not decode.
        """
        return verify(self.path, progress) if progress else verify(self.path)

    # --- rows -----------------------------------------------------------------------------------------------------------

    def __getitem__(self, site: str) -> SiteRows:
        if site not in self.sites:
            raise SiteError(f"{self.path} has no site {site!r}; it has {', '.join(self.sites)}")
        if site not in self._sites:
            mine = self._store.entries[self._store.entries["channel"] == len(CHANNELS) + self.sites.index(site)]
            self._sites[site] = SiteRows(site, Blocks(self._store, mine), self._labels.row_ids, self._labels.all)
        return self._sites[site]

    def rows(self, site: str, request: str | None = None, positions: Positions | None = None) -> Rows:
        """Rows of a request in the order of positions, each as it was computed last; without a request, all rows as they came.

        A slice gives what is there; positions that are named one by one must be there, else RecordingError.
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
            summary = self._labels.summary(self._number(request))
            start, stop, step = positions.indices(summary.present)
            return np.flatnonzero(np.isin(have, np.arange(start, stop, step)))
        wanted = np.atleast_1d(np.asarray(positions, np.int64))
        at = np.searchsorted(have, wanted)
        missing = [p for p, i in zip(wanted.tolist(), at.tolist(), strict=True) if i >= len(have) or have[i] != p]
        if missing:
            raise RecordingError(f"request {request!r} has no rows at positions {missing}: they were never computed")
        return at

    def iter_rows(self, site: str, batch_rows: int = 4096) -> Iterator[Rows]:
        """All rows of a site in order, without holding more than a few blocks in memory."""
        return self[site].batches(batch_rows)

    # --- tokens ---------------------------------------------------------------------------------------------------------

    @cached_property
    def texts(self) -> dict[int, str]:
        """Texts of the token ids, where a tokenizer was known."""
        return {i: text for record in self._records(Kind.TOKENS, records.Tokens) for i, text in record.texts.items()}

    def tokens(self, request: str) -> list[TokenRow]:
        """The computed tokens of a request, in the order of positions."""
        labels = self._labels
        newest = labels.newest(labels.of_request(self._number(request)))
        return [
            TokenRow(
                int(r["position"]), int(r["token_id"]), self.texts.get(int(r["token_id"])), int(r["time_ns"]), float(b)
            )
            for r, b in zip(labels.all[newest], self._bytes_of_rows[newest], strict=True)
        ]

    def recorded_tokens(self) -> list[records.Token]:
        """Tokens that were recorded by hand."""
        return [token for record in self._records(Kind.TOKENS, records.Tokens) for token in record.tokens]

    @cached_property
    def _bytes_of_rows(self) -> np.ndarray:
        """float64 [n_rows]: stored bytes of each labelled row, a block's bytes shared evenly."""
        ids = self._labels.row_ids
        total = np.zeros(int(ids.max(initial=-1)) + 2)
        for site in self.sites:
            blocks = self[site].blocks
            first = np.minimum(blocks.keys["first_row"].astype(np.int64), len(total) - 1)
            after = np.minimum(first + blocks.keys["n_rows"], len(total) - 1)
            share = blocks.entries["length"] / np.maximum(1, blocks.keys["n_rows"])
            np.add.at(total, first, share)
            np.add.at(total, after, -share)
        shares: np.ndarray = np.cumsum(total)[ids]
        return shares

    # --- small records ----------------------------------------------------------------------------------------------------

    @cached_property
    def marks(self) -> list[records.Mark]:
        return self._records(Kind.MARK, records.Mark)

    @cached_property
    def drops(self) -> list[records.Drop]:
        """Every loss that the pipeline has counted."""
        return [drop for record in self._records(Kind.DROPS, records.Drops) for drop in record.drops]

    @cached_property
    def sessions(self) -> list[records.Session]:
        """Beginnings and ends of the writers."""
        return self._records(Kind.SESSION, records.Session)

    # --- inside -----------------------------------------------------------------------------------------------------------

    @cached_property
    def _keys(self) -> np.ndarray:
        keys: np.ndarray = np.ascontiguousarray(self._store.entries["key"]).view(KEY).reshape(-1)
        return keys

    @cached_property
    def _labels(self) -> LabelIndex:
        return LabelIndex(row_labels.decode(body) for body in self._bodies(Kind.LEDGER))

    @cached_property
    def _sites(self) -> dict[str, SiteRows]:
        return {}

    def _number(self, request: str) -> int:
        number = self._labels.number_of(request)
        if number is None:
            shown = ", ".join(self._labels.requests[:5]) or "none"
            raise RecordingError(f"{self.path} has no request {request!r}; it has {len(self.requests)}: {shown} …")
        return number

    def _bodies(self, kind: Kind) -> Iterator[memoryview]:
        for index in np.flatnonzero(self._keys["kind"] == kind):
            yield self._store.read(self._store.entries[index])

    def _records(self, kind: Kind, record: type[R]) -> list[R]:
        return [records.read(body, record) for body in self._bodies(kind)]
