"""Dependence between features that fire or do not, along tokens and along layers, and how much of it chance would give.

For source X, target Y, and a lag of l tokens of the same request:

    te      I(Y_t ; X_{t-l} | Y_{t-1}) in bits: transfer entropy with histories of one token (Schreiber 2000, "Measuring
            Information Transfer"); at lag 0, from an earlier site to a later one, the same with X_t in the place of X_{t-l}
    pmi     log2 P(X, Y) / (P(X) P(Y)) of firing together (Church & Hanks 1990)
    phi     Pearson's correlation of the two series; its sign says whether they seek or avoid each other

**Control.** The source is turned in a circle within each request by a random number of tokens, `permutations` times: that keeps
each feature's own rhythm, and what two features share only because their request is about something. What is left must come from
their times. Each edge's `te` is put on its own null's scale (mean and standard deviation); the nulls' values, each scaled by the
others of its edge, are pooled over all edges, and p is the share of them that reach it. Edges with a Benjamini-Hochberg q of at
most `fdr` are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, TypedDict

import numpy as np

from actscope.analysis.site import Progress, silent
from actscope.errors import MissingExtra, SettingsError

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

_MAX_PAIRS = 400_000  # x 100 permutations: 160 MB of nulls, and some multiples of it


@dataclass(frozen=True, slots=True)
class GraphOptions:
    """How the graph is made."""

    lags: tuple[int, ...] = (0, 1)
    """Lags in tokens; 0 joins sites at the same token, from the earlier to the later one."""
    nodes: int = 64
    """At most so many features of each set: those that fire often enough, and those nearest to half the tokens first."""
    min_fired: int = 10
    """A feature must fire, and not fire, at least this often."""
    max_rate: float = 0.5
    """Features that fire on more of the tokens are left out."""
    tokens: int = 100_000
    """Whole requests are taken until there are about so many tokens."""
    permutations: int = 100
    """Random turns of the control."""
    fdr: float = 0.05
    """The share of false edges that is accepted among those that are kept."""
    max_edges: int = 500
    """The edges with the highest te of those that pass."""
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.lags or min(self.lags) < 0 or self.permutations < 20 or not 0 < self.fdr < 1 or self.nodes < 1:
            raise SettingsError(
                "expected lags >= 0, at least 20 permutations, fdr between 0 and 1, nodes >= 1; found "
                f"{self.lags}, {self.permutations}, {self.fdr}, {self.nodes}"
            )


@dataclass(frozen=True, slots=True)
class Node:
    """One feature."""

    id: str
    set: str
    site: str
    feature: str
    fired: int
    rate: float


@dataclass(frozen=True, slots=True)
class Edge:
    """Dependence of `target` on `source`, `lag` tokens earlier. `together`: tokens on which both fire so. te in bits; z in
    standard deviations of the edge's own null."""

    source: str
    target: str
    lag: int
    together: int
    pmi: float
    phi: float
    te: float
    z: float
    p: float
    q: float


@dataclass(frozen=True, slots=True, eq=False)
class Series:
    """Firing over tokens in the order of (request, position).

    `fires[s]` is bool [T, f] of set s; `begins` bool [T] marks tokens whose predecessor is not in the series; `request` [T].
    """

    fires: list[np.ndarray]
    begins: np.ndarray
    request: np.ndarray


def dependence(
    series: Series,
    depths: Sequence[tuple[float, int]],
    nodes: Sequence[Sequence[Node]],
    options: GraphOptions,
    progress: Progress = silent,
) -> tuple[int, list[Edge]]:
    """How many pairs were tested, and the edges that passed, the highest te first."""
    pairs = [
        (a, b, lag)
        for lag in options.lags
        for a in range(len(nodes))
        for b in range(len(nodes))
        if nodes[a] and nodes[b] and (lag > 0 or depths[a] < depths[b])
    ]
    size = sum(len(nodes[a]) * len(nodes[b]) for a, b, _ in pairs)
    if size > _MAX_PAIRS:
        raise SettingsError(
            f"{size} pairs of features are more than {_MAX_PAIRS}: choose fewer nodes, features or lags"
        )
    draw = np.random.default_rng(options.seed)
    turns = _Turns(series.request)
    real = [_scores(series, series.fires[a], series.fires[b], lag) for a, b, lag in pairs]
    null = [np.empty((options.permutations, *scores.te.shape), np.float32) for scores in real]
    for number in range(options.permutations):
        turned = turns.draw(draw)
        for (a, b, lag), kept in zip(pairs, null, strict=True):
            kept[number] = _scores(series, series.fires[a][turned], series.fires[b], lag).te
        progress("control", number + 1, options.permutations)
    if not pairs:
        return 0, []
    tested = [_tested(scores, a == b) for (a, b, _), scores in zip(pairs, real, strict=True)]
    values = np.concatenate([scores.te[mask] for scores, mask in zip(real, tested, strict=True)])
    if not len(values):
        return 0, []
    z, p = _pooled_p(values, np.concatenate([kept[:, mask] for kept, mask in zip(null, tested, strict=True)], axis=1))
    q = _false_discovery(p)
    passed = np.flatnonzero(q <= options.fdr)
    best = passed[np.argsort(-values[passed], kind="stable")][: options.max_edges]
    starts = np.cumsum([0, *(int(mask.sum()) for mask in tested)])
    edges = []
    for k in best.tolist():
        block = int(np.searchsorted(starts, k, side="right")) - 1
        a, b, lag = pairs[block]
        i, j = (int(part[k - starts[block]]) for part in np.nonzero(tested[block]))
        strength = _strength(real[block], (i, j))
        edges.append(Edge(nodes[a][i].id, nodes[b][j].id, lag, **strength, z=float(z[k]), p=float(p[k]), q=float(q[k])))
    return len(values), edges


def _tested(scores: _Scores, same: bool) -> np.ndarray:
    """bool [f, g]: all pairs, but for a feature with itself."""
    mask = np.ones(scores.te.shape, bool)
    if same:
        np.fill_diagonal(mask, False)
    return mask


class _Strength(TypedDict):
    together: int
    pmi: float
    phi: float
    te: float


def _strength(scores: _Scores, at: tuple[int, int]) -> _Strength:
    return {
        "together": int(scores.together[at]),
        "pmi": float(scores.pmi[at]),
        "phi": float(scores.phi[at]),
        "te": float(scores.te[at]),
    }


@dataclass(frozen=True, slots=True, eq=False)
class _Scores:
    """Of every source (rows) with every target (columns)."""

    te: np.ndarray
    together: np.ndarray
    pmi: np.ndarray
    phi: np.ndarray


class _Turns:
    """Random turns of all tokens in a circle within their requests."""

    def __init__(self, request: np.ndarray) -> None:
        edges = np.flatnonzero(np.append(True, request[1:] != request[:-1]))
        self._first = edges
        self._length = np.diff(np.append(edges, len(request)))
        self._offset = np.arange(len(request)) - np.repeat(edges, self._length)

    def draw(self, draw: np.random.Generator) -> np.ndarray:
        """Where each token's source value is taken from: int64 [T]."""
        by = draw.integers(1, np.maximum(self._length, 2))
        length, first = np.repeat(self._length, self._length), np.repeat(self._first, self._length)
        return np.asarray(first + (self._offset + np.repeat(by, self._length)) % length)


def _scores(series: Series, source: np.ndarray, target: np.ndarray, lag: int) -> _Scores:
    """Tables of 2 x 2 x 2 (source, target, the target's own last token) for all pairs, from four sparse products."""
    x, y, last = _aligned(series, source, target, lag)
    n = x.shape[0]
    both = y.multiply(last).tocsr()
    xyl, xy, xl = _counts(x, both), _counts(x, y), _counts(x, last)
    nx, ny = _sum(x)[:, None], _sum(y)[None, :]
    nl, nyl = _sum(last)[None, :], _sum(both)[None, :]
    # cells[x][y][l], by inclusion and exclusion
    cells = {
        (1, 1, 1): xyl,
        (1, 1, 0): xy - xyl,
        (1, 0, 1): xl - xyl,
        (1, 0, 0): nx - xy - xl + xyl,
        (0, 1, 1): nyl - xyl,
        (0, 1, 0): ny - nyl - (xy - xyl),
        (0, 0, 1): nl - nyl - (xl - xyl),
        (0, 0, 0): n - nx - ny + xy - nl + xl + nyl - xyl,
    }
    with np.errstate(divide="ignore", invalid="ignore"):
        pmi = np.log2(xy * n / (nx * ny))
        phi = (n * xy - nx * ny) / np.sqrt(nx * (n - nx) * ny * (n - ny))
    return _Scores(
        _conditional_information(cells, n), xy.astype(np.int64), np.nan_to_num(pmi, neginf=-99.0), np.nan_to_num(phi)
    )


def _aligned(
    series: Series, source: np.ndarray, target: np.ndarray, lag: int
) -> tuple[csr_matrix, csr_matrix, csr_matrix]:
    """Sparse float64 matrices of the source `lag` tokens ago, the target, and the target one token ago, where all three are."""
    sparse = _sparse()
    back = max(lag, 1)
    tokens = np.arange(back, len(target))
    since = np.cumsum(series.begins)
    tokens = tokens[since[tokens] == since[tokens - back]]
    return tuple(
        sparse.csr_matrix(part, dtype=np.float64) for part in (source[tokens - lag], target[tokens], target[tokens - 1])
    )


def _counts(left: csr_matrix, right: csr_matrix) -> np.ndarray:
    return np.asarray((left.T @ right).toarray())


def _sum(matrix: csr_matrix) -> np.ndarray:
    return np.asarray(matrix.sum(axis=0)).reshape(-1)


def _conditional_information(cells: dict[tuple[int, int, int], np.ndarray], n: int) -> np.ndarray:
    """I(X ; Y | L) in bits from counts: sum of p(x,y,l) log2( p(x,y,l) p(l) / (p(x,l) p(y,l)) )."""
    total = np.zeros(np.broadcast_shapes(*(cell.shape for cell in cells.values())))
    for before in (0, 1):
        whole = sum(cells[x, y, before] for x in (0, 1) for y in (0, 1))
        for x in (0, 1):
            for y in (0, 1):
                cell = cells[x, y, before]
                row, column = cells[x, 0, before] + cells[x, 1, before], cells[0, y, before] + cells[1, y, before]
                with np.errstate(divide="ignore", invalid="ignore"):
                    part = cell * np.log2(cell * whole / (row * column))
                total += np.where(cell > 0, part, 0)
    return np.asarray(np.maximum(total / max(1, n), 0))


def _pooled_p(values: np.ndarray, null: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """z of each edge against its own null [m], and p against the pooled null [permutations, m].

    Each value of the null is scaled by the others of its edge, as the real value is by the null: so they are alike.
    """
    b = len(null)
    wide = null.astype(np.float64)
    mean, square = wide.mean(axis=0), (wide**2).mean(axis=0)
    z = _scaled(values, mean, square)
    others = (mean * b - wide) / (b - 1)
    pooled = np.sort(_scaled(wide, others, (square * b - wide**2) / (b - 1)).reshape(-1))
    reached = len(pooled) - np.searchsorted(pooled, z, side="left")
    return z, (reached + 1) / (len(pooled) + 1)


def _scaled(value: np.ndarray, mean: np.ndarray, square: np.ndarray) -> np.ndarray:
    spread = np.sqrt(np.maximum(square - mean**2, 0))
    return np.asarray(np.where(spread > 1e-12, (value - mean) / np.maximum(spread, 1e-12), 0.0))


def _false_discovery(p: np.ndarray) -> np.ndarray:
    """Benjamini & Hochberg 1995."""
    try:
        from scipy.stats import false_discovery_control
    except ImportError as error:
        raise MissingExtra("analyze", "scipy") from error
    return np.asarray(false_discovery_control(p))


def _sparse() -> ModuleType:
    try:
        import scipy.sparse as module
    except ImportError as error:
        raise MissingExtra("analyze", "scipy") from error
    found: ModuleType = module
    return found
