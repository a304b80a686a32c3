"""Statistical dependence between binary firings of features, across tokens and layers, tested against a permutation null.

For source X, target Y, and a lag of l tokens of the same request:

    te      I(Y_t ; X_{t-l} | Y_{t-1}) in bits: transfer entropy with histories of one token (Schreiber 2000, "Measuring
            Information Transfer"); at lag 0, from an earlier site to a later one, the same with X_t in place of X_{t-l}
    pmi     pointwise mutual information of firing together, log2 P(X, Y) / (P(X) P(Y)) (Church & Hanks 1990)
    phi     Pearson's correlation of the two series; positive if they fire together more often than by chance

**Control.** The source is shifted circularly within each request by a random number of tokens, `permutations` times. This
preserves each feature's autocorrelation, and dependence that exists only because both features follow the request's topic. Any
dependence beyond that must come from their timing. Each edge's `te` is standardised by its own null's mean and standard
deviation. The null values, each standardised by the other null values of its edge, are pooled over all edges, and p is the share
of them that reach the edge's value. Edges with a Benjamini-Hochberg q of at most `fdr` are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, TypedDict

import numpy as np

from actscope.analysis.options import GraphOptions
from actscope.analysis.site import Progress, silent
from actscope.errors import MissingExtra, SettingsError

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

_MAX_PAIRS = 400_000  # x 100 permutations: 160 MB of null values, and a few copies of them


@dataclass(frozen=True, slots=True)
class Node:
    """A feature, with the number and the share of tokens on which it fires."""

    id: str
    set: str
    site: str
    feature: str
    fired: int
    rate: float


@dataclass(frozen=True, slots=True)
class Edge:
    """Dependence of `target` on `source`.

    Attributes:
        source: Id of the source's node.
        target: Id of the target's node.
        lag: Number of tokens by which the source precedes the target.
        together: Number of tokens on which the target fires and the source fired `lag` tokens before.
        pmi: Pointwise mutual information, in bits; -99 if they never fire together.
        phi: Pearson's correlation.
        te: Transfer entropy, in bits.
        z: te in standard deviations of the edge's own null, from that null's mean.
        p: Share of the pooled null that reaches z.
        q: p adjusted by Benjamini-Hochberg.
    """

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
    """Firing of features over tokens, ordered by (request, position).

    Attributes:
        fires: For each set, bool [T, f].
        begins: bool [T], true for tokens whose predecessor is not in the series.
        request: Request of each token, [T].
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
    """Test all pairs of features.

    Args:
        series: Firing of the features.
        depths: Sort key of each set's site; at lag 0 edges lead only from earlier to later sites.
        nodes: For each set, the nodes of its columns.
        options: Options.
        progress: Callback for progress, in permutations.

    Returns:
        The number of pairs tested, and the significant edges, the highest te first.

    Raises:
        SettingsError: There are too many pairs.
        MissingExtra: scipy is not installed.
    """
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
    """Return the mask of tested pairs, bool [f, g]: all pairs except a feature with itself."""
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
    """Scores of every source (rows) with every target (columns)."""

    te: np.ndarray
    together: np.ndarray
    pmi: np.ndarray
    phi: np.ndarray


class _Turns:
    """Random circular shifts of all tokens within their requests."""

    def __init__(self, request: np.ndarray) -> None:
        edges = np.flatnonzero(np.append(True, request[1:] != request[:-1]))
        self._first = edges
        self._length = np.diff(np.append(edges, len(request)))
        self._offset = np.arange(len(request)) - np.repeat(edges, self._length)

    def draw(self, draw: np.random.Generator) -> np.ndarray:
        """Draw a shift per request. Returns the index from which each token takes its source's value, int64 [T]."""
        by = draw.integers(1, np.maximum(self._length, 2))
        length, first = np.repeat(self._length, self._length), np.repeat(self._first, self._length)
        return np.asarray(first + (self._offset + np.repeat(by, self._length)) % length)


def _scores(series: Series, source: np.ndarray, target: np.ndarray, lag: int) -> _Scores:
    """Score all pairs from their 2 x 2 x 2 tables (source, target, target one token ago), from three sparse matrix products."""
    x, y, last = _aligned(series, source, target, lag)
    n = x.shape[0]
    both = y.multiply(last).tocsr()
    xyl, xy, xl = _counts(x, both), _counts(x, y), _counts(x, last)
    nx, ny = _sum(x)[:, None], _sum(y)[None, :]
    nl, nyl = _sum(last)[None, :], _sum(both)[None, :]
    # cells[x, y, l], by inclusion and exclusion
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
    """Return sparse float64 matrices of the source `lag` tokens ago, the target, and the target one token ago.

    Their rows are the tokens for which all three exist in one unbroken run.
    """
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
    """Return I(X ; Y | L) in bits from counts: the sum of p(x,y,l) log2( p(x,y,l) p(l) / (p(x,l) p(y,l)) )."""
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
    """Return z of each edge against its own null [m], and p against the pooled null [permutations, m].

    Each null value is standardised by the other null values of its edge, as the real value is by the null, so that both are
    comparable.
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
    """Adjust p values for the false-discovery rate (Benjamini & Hochberg 1995)."""
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
