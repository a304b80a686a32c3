"""Summary figures of a recording: sizes, ratios, measured errors, coverage, drops."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from actscope.frames import RowFlag

if TYPE_CHECKING:
    from actscope.recording.reading.recording import Recording


def describe(recording: Recording, n_requests: int = 5) -> dict[str, Any]:
    """Return everything that `actscope info` shows, as JSON values. Lists at most `n_requests` requests (0: all)."""
    sites = {site: _site(recording, site) for site in recording.sites}
    stored = sum(site["stored_bytes"] for site in sites.values())
    ids = recording.requests
    summaries = [recording.request(request) for request in ids]
    present, computed = sum(s.present for s in summaries), sum(s.computed for s in summaries)
    rows = int(np.count_nonzero(recording.whole))
    listed = summaries[: n_requests or None]
    return {
        "path": str(recording.path),
        "id": recording.info.get("id"),
        "version": recording.info.get("version"),
        "created_wall_ns": recording.info.get("created_wall_ns"),
        "model": recording.info["model"],
        "settings": recording.info["settings"],
        "rows": rows,
        "rows_missing": recording.n_rows - rows,
        "rows_after_end": rows_after_end(recording),
        "tokens": {"computed": computed, "present": present, "coverage": computed / present if present else None},
        "bytes": sum(file.stat().st_size for file in Path(recording.path).iterdir() if file.is_file()),
        "stored_bytes": stored,
        "bytes_per_token": stored / rows if rows else None,
        "ratio_fp32": _ratio(sum(site["fp32_bytes"] for site in sites.values()), stored),
        "ratio_source": _ratio(sum(site["source_bytes"] for site in sites.values()), stored),
        "sites": sites,
        "n_requests": len(ids),
        "requests": [asdict(summary) for summary in listed],
        **_events(recording),
    }


def rows_after_end(recording: Recording) -> int:
    """Return the number of rows that a batch computed for requests after their end, and that are there at every site."""
    return int(np.count_nonzero(recording.labels()["flags"][recording.whole] & int(RowFlag.AFTER_EOS)))


def _site(recording: Recording, name: str) -> dict[str, Any]:
    site = recording[name]
    sizes = site.sizes()
    return {
        "rows": len(site),
        "width": site.width,
        "dtype": site.source_dtype,
        "codec_asked": recording.info["codecs"].get(name),
        "codecs_used": site.blocks.codec_names(),
        "blocks": len(site.blocks),
        "stored_bytes": sizes.stored,
        "fp32_bytes": sizes.fp32,
        "source_bytes": sizes.source,
        "ratio_fp32": _ratio(sizes.fp32, sizes.stored),
        "ratio_source": _ratio(sizes.source, sizes.stored),
        "error": asdict(site.errors()),
    }


def _ratio(raw: int, stored: int) -> float | None:
    return raw / stored if stored else None


def _events(recording: Recording) -> dict[str, Any]:
    dropped: dict[str, int] = {}
    for drop in recording.drops:
        dropped[drop.site] = dropped.get(drop.site, 0) + drop.n_rows
    sessions = recording.sessions
    return {
        "dropped_rows": dropped,
        "marks": [{"request": mark.request, "why": mark.why, "wall_ns": mark.wall_ns} for mark in recording.marks],
        "sessions": len([session for session in sessions if not session.ended]),
        "complete": recording.complete,
        "direct_io": sessions[-1].stats.get("direct") if sessions else None,
        "damage": [{**asdict(damage), "says": str(damage)} for damage in recording.damage],
    }


def summarize(recording: Recording) -> dict[str, Any]:
    """Return counts, sizes and errors as JSON values. `stored_bytes` and the ratios cover row blocks and codec states only."""
    sizes = [recording[site].sizes() for site in recording.sites]
    errors = [recording[site].errors() for site in recording.sites]
    stored = sum(size.stored for size in sizes)
    tokens = int(np.count_nonzero(recording.whole))
    rows = sum(error.rows for error in errors)
    return {
        "requests": len(recording.requests),
        "tokens": tokens,
        "rows_missing": recording.n_rows - tokens,
        "rows_after_end": rows_after_end(recording),
        "sites": len(recording.sites),
        "stored_bytes": stored,
        "bytes_per_token": stored / max(1, tokens),
        "ratio_source": sum(size.source for size in sizes) / max(1, stored),
        "ratio_fp32": sum(size.fp32 for size in sizes) / max(1, stored),
        "error_mean": sum(error.mean * error.rows for error in errors) / max(1, rows),
        "error_worst": max((error.worst for error in errors), default=0.0),
        "complete": recording.complete,
    }
