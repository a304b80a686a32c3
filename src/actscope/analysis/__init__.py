"""Analysis of recorded rows: statistics per site, features of SAEs and probes, a graph of their dependence, and plots."""

from __future__ import annotations

from typing import TYPE_CHECKING

from actscope._lazy import attach

if TYPE_CHECKING:
    from actscope.analysis.dependence import Edge, Node
    from actscope.analysis.features import FeatureReport, FeatureSet, load_features, measure_features
    from actscope.analysis.graph import Graph, feature_graph
    from actscope.analysis.options import AnalysisOptions, GraphOptions, SiteOptions
    from actscope.analysis.report import AnalysisReport, analyze
    from actscope.analysis.sae import Sae, load_sae
    from actscope.analysis.site import SiteStats, measure

__all__ = [
    "AnalysisOptions",
    "AnalysisReport",
    "Edge",
    "FeatureReport",
    "FeatureSet",
    "Graph",
    "GraphOptions",
    "Node",
    "Sae",
    "SiteOptions",
    "SiteStats",
    "analyze",
    "feature_graph",
    "load_features",
    "load_sae",
    "measure",
    "measure_features",
]

__getattr__, __dir__ = attach(
    __name__,
    {
        "AnalysisOptions": "actscope.analysis.options:AnalysisOptions",
        "AnalysisReport": "actscope.analysis.report:AnalysisReport",
        "Edge": "actscope.analysis.dependence:Edge",
        "FeatureReport": "actscope.analysis.features:FeatureReport",
        "FeatureSet": "actscope.analysis.features:FeatureSet",
        "Graph": "actscope.analysis.graph:Graph",
        "GraphOptions": "actscope.analysis.options:GraphOptions",
        "Node": "actscope.analysis.dependence:Node",
        "Sae": "actscope.analysis.sae:Sae",
        "SiteOptions": "actscope.analysis.options:SiteOptions",
        "SiteStats": "actscope.analysis.site:SiteStats",
        "analyze": "actscope.analysis.report:analyze",
        "feature_graph": "actscope.analysis.graph:feature_graph",
        "load_features": "actscope.analysis.features:load_features",
        "load_sae": "actscope.analysis.sae:load_sae",
        "measure": "actscope.analysis.site:measure",
        "measure_features": "actscope.analysis.features:measure_features",
    },
)
