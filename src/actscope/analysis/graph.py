"""Graph of statistical dependence between features of a recording: which fire together, and which tend to fire first.

**Co-activation is not causation.** An edge means that the firing of one feature helps to predict the firing of another, at the
same token at a later site or at a later token, beyond the other's own firing on the previous token. A common cause, a copied
input or a third feature gives the same edge. Only an intervention (ablation, patching, steering) can show causation.

`actscope.analysis.dependence` defines the scores and the control for chance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from actscope.analysis.dependence import Edge, Node, Series, dependence
from actscope.analysis.features import FeatureSet
from actscope.analysis.options import GraphOptions
from actscope.analysis.site import Progress, silent
from actscope.analysis.tokens import depth, genuine
from actscope.errors import MissingExtra, RecordingError
from actscope.near_miss import hinted
from actscope.recording.reading.recording import Recording
from actscope.runtime.publish import publish_file

if TYPE_CHECKING:
    from networkx import MultiDiGraph

NOTE = (
    "Edges are statistical dependence between firings (co-activation, in token and layer order), not causation: "
    "confirm with an intervention."
)


@dataclass(frozen=True, slots=True, eq=False)
class Graph:
    """A graph of dependence.

    Attributes:
        nodes: The features that were tested.
        edges: The significant edges, the highest te first.
        tested: Number of pairs tested.
        tokens: Number of tokens used.
        options: The options.
    """

    nodes: list[Node]
    edges: list[Edge]
    tested: int
    tokens: int
    options: GraphOptions

    def as_dict(self) -> dict[str, object]:
        """Return the graph as JSON values."""
        return {
            "note": NOTE,
            "tokens": self.tokens,
            "tested": self.tested,
            "options": msgspec.to_builtins(self.options),
            "nodes": [msgspec.to_builtins(node) for node in self.nodes],
            "edges": [msgspec.to_builtins(edge) for edge in self.edges],
        }

    def as_networkx(self) -> MultiDiGraph:
        """Convert to a networkx MultiDiGraph with one edge per lag. Raises MissingExtra if networkx is not installed."""
        networkx = _networkx()
        graph = networkx.MultiDiGraph(note=NOTE, tokens=self.tokens, tested=self.tested, fdr=self.options.fdr)
        for node in self.nodes:
            graph.add_node(node.id, **{k: v for k, v in msgspec.to_builtins(node).items() if k != "id"})
        for edge in self.edges:
            kept = {k: v for k, v in msgspec.to_builtins(edge).items() if k not in ("source", "target")}
            graph.add_edge(edge.source, edge.target, **kept)
        return graph

    def save(self, folder: Path) -> list[Path]:
        """Write `graph.json` and `graph.graphml` and return their paths. Raises MissingExtra if networkx is not installed."""
        paths = [folder / "graph.json", folder / "graph.graphml"]
        publish_file(paths[0], msgspec.json.format(msgspec.json.encode(self.as_dict()), indent=1))
        _networkx().write_graphml(self.as_networkx(), paths[1])
        return paths


@hinted
def feature_graph(
    recording: Recording, sets: Sequence[FeatureSet], options: GraphOptions | None = None, progress: Progress = silent
) -> Graph:
    """Compute the graph of dependence between features.

    Args:
        recording: The recording. Only tokens with rows at all sites of the sets are used.
        sets: The feature sets.
        options: Options; None for the defaults.
        progress: Callback for progress.

    Returns:
        The graph.

    Raises:
        RecordingError: No token has rows at all sites.
        SettingsError: There are too many pairs of features.
        MissingExtra: scipy is not installed.
    """
    options = options or GraphOptions()
    ids, request, position = _common_tokens(recording, sorted({features.site for features in sets}), options.tokens)
    begins = np.ones(len(ids), bool)
    begins[1:] = (request[1:] != request[:-1]) | (position[1:] != position[:-1] + 1)
    chosen: list[np.ndarray] = []
    nodes: list[list[Node]] = []
    for number, features in enumerate(sets):
        fires = _firing(recording, features, ids, progress)
        kept = _informative(fires, options)
        chosen.append(fires[:, kept])
        name = features.name if len({s.name for s in sets}) == len(sets) else f"{features.name}@{features.site}"
        name = name if [s.name + s.site for s in sets].count(features.name + features.site) == 1 else f"{name}#{number}"
        counts = fires[:, kept].sum(axis=0)
        nodes.append(
            [
                Node(
                    f"{name}/{features.ids[j]}",
                    features.name,
                    features.site,
                    features.ids[j],
                    int(n),
                    float(n / len(ids)),
                )
                for j, n in zip(kept.tolist(), counts.tolist(), strict=True)
            ]
        )
    depths = [depth(features.site) for features in sets]
    tested, edges = dependence(Series(chosen, begins, request), depths, nodes, options, progress)
    return Graph([node for group in nodes for node in group], edges, tested, len(ids), options)


def _common_tokens(recording: Recording, sites: list[str], limit: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return row ids, requests and positions of the tokens that all sites have, ordered by request and position.

    At least one request, and then whole requests until there are `limit` tokens.
    """
    ids: np.ndarray | None = None
    labels = recording.labels()[:0]
    for site in sites:
        found = recording[site]
        kept = genuine(found.labels)
        mine = found.row_ids[kept]
        ids = mine if ids is None else np.intersect1d(ids, mine)
        labels = found.labels[kept][np.isin(mine, ids)]
    if ids is None or not len(ids):
        raise RecordingError(f"{recording.path}: no token has rows at all of {', '.join(sites)}")
    order = np.lexsort((labels["position"], labels["request"]))
    request, position = labels["request"][order], labels["position"][order]
    if len(ids) > limit:  # cut between requests
        after = np.flatnonzero(np.append(request[1:] != request[:-1], True)) + 1
        n = int(after[min(int(np.searchsorted(after, limit)), len(after) - 1)])
        order, request, position = order[:n], request[:n], position[:n]
    return ids[order], request.astype(np.int64), position.astype(np.int64)


def _firing(recording: Recording, features: FeatureSet, ids: np.ndarray, progress: Progress) -> np.ndarray:
    """Return the firing of features on the tokens `ids`, bool [T, f]. Rows are read in the recording's order."""
    found = recording[features.site]
    fires = np.empty((len(ids), len(features.ids)), bool)
    order = np.argsort(ids)
    at = np.searchsorted(found.row_ids, ids[order])
    batch_rows = max(1, (32 << 20) // (4 * max(len(features.ids), found.width)))
    for start in range(0, len(ids), batch_rows):
        part = slice(start, start + batch_rows)
        rows = np.nan_to_num(found[at[part]].astype(np.float32))
        fires[order[part]] = features.encode(rows) > features.thresholds
        progress(f"firing of {features.name}", min(len(ids), start + batch_rows), len(ids))
    return fires


def _informative(fires: np.ndarray, options: GraphOptions) -> np.ndarray:
    counts, n = fires.sum(axis=0), len(fires)
    usable = np.flatnonzero(
        (counts >= options.min_fired) & (n - counts >= options.min_fired) & (counts <= options.max_rate * n)
    )
    return np.sort(usable[np.argsort(-counts[usable], kind="stable")[: options.nodes]])


def _networkx() -> ModuleType:
    try:
        import networkx as module
    except ImportError as error:
        raise MissingExtra("analyze", "networkx") from error
    found: ModuleType = module
    return found
