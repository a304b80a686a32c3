"""Analysis of recorded rows: statistics per site, features of SAEs and probes, a graph of their dependence, and plots."""

from actscope.analysis.dependence import Edge, GraphOptions, Node
from actscope.analysis.features import FeatureReport, FeatureSet, load_features, measure_features
from actscope.analysis.graph import Graph, feature_graph
from actscope.analysis.report import AnalysisOptions, AnalysisReport, analyze
from actscope.analysis.sae import Sae, load_sae
from actscope.analysis.site import SiteOptions, SiteStats, measure

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
