"""Steps with labels and rows that tell where they belong."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from actscope.frames import ROW_META, Frame, RowFlag, Span, Step

Lane = tuple[str, int, int]  # request, first position, rows


def step_of(number: int, lanes: Sequence[Lane], *, n_prompt: int = 4, time_ns: int | None = None) -> Step:
    """A step with these spans; token ids are functions of request and position."""
    spans, metas, offset = [], [], 0
    for i, (request, first, n) in enumerate(lanes):
        spans.append(Span(request, first, n, offset, n_prompt=n_prompt))
        meta = np.zeros(n, ROW_META)
        meta["position"] = np.arange(first, first + n)
        meta["token_id"] = [token_of(request, p) for p in range(first, first + n)]
        meta["flags"] = np.where(meta["position"] < n_prompt, RowFlag.PREFILL, 0)
        meta["span"], meta["step"] = i, number
        metas.append(meta)
        offset += n
    meta = np.concatenate(metas) if metas else np.empty(0, ROW_META)
    return Step(number, 1000 * number if time_ns is None else time_ns, tuple(spans), meta)


def token_of(request: str, position: int) -> int:
    return (sum(request.encode()) * 31 + position * 7) % 997


def rows_of(step: Step, site: str, d: int = 8, dtype: str = "float32") -> np.ndarray:
    """Rows [n, d] that follow from request, position and site."""
    owners = [s.request for s in step.spans for _ in range(s.n_rows)]
    return np.array(
        [row_of(r, int(p), site, d) for r, p in zip(owners, step.meta["position"], strict=True)], dtype
    ).reshape(-1, d)


def row_of(request: str, position: int, site: str, d: int = 8) -> np.ndarray:
    seed = sum(f"{request}|{position}|{site}".encode()) + 1009 * position
    return np.random.default_rng(seed).standard_normal(d).astype(np.float32)


def frames_of(step: Step, sites: Sequence[str], d: int = 8) -> list[Frame]:
    return [Frame(site, rows_of(step, site, d)) for site in sites]
