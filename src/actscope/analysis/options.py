"""Options of an analysis. They load without numpy, for the flags that are made of them."""

from __future__ import annotations

from dataclasses import dataclass, field

from actscope.errors import SettingsError
from actscope.near_miss import hinted_class


@hinted_class
@dataclass(frozen=True, slots=True)
class SiteOptions:
    """Measurement of one site.

    Raises:
        SettingsError: A value is out of range.
    """

    batch_bytes: int = 32 << 20
    """Size of a batch of rows, as float64."""
    sigmas: float = 6.0
    """Distance from the median, in robust standard deviations, at which a dimension is an outlier."""
    spectrum_rows: int = 50_000
    """Approximate number of rows for the spectrum, drawn at random with a fixed seed. 0: no spectrum."""
    spectrum_width: int = 8192
    """Maximum width of rows whose spectrum is computed: it takes 8 width^2 bytes and width^3 operations."""

    def __post_init__(self) -> None:
        if self.batch_bytes < 1 or self.sigmas <= 0 or self.spectrum_rows < 0:
            raise SettingsError(
                "expected batch_bytes >= 1, sigmas > 0, spectrum_rows >= 0; found "
                f"{self.batch_bytes}, {self.sigmas}, {self.spectrum_rows}"
            )


@hinted_class
@dataclass(frozen=True, slots=True)
class GraphOptions:
    """Dependence graph of the features.

    Raises:
        SettingsError: A value is out of range.
    """

    lags: tuple[int, ...] = (0, 1)
    """Graph: lag in tokens. 0 joins sites at the same token, from the earlier to the later one. Repeatable."""
    nodes: int = 64
    """Graph: maximum number of features of each set. The most frequent ones are chosen."""
    min_fired: int = 10
    """Graph: minimum number of tokens on which a feature fires, and on which it does not."""
    max_rate: float = 0.5
    """Graph: maximum fraction of tokens on which a feature fires."""
    tokens: int = 100_000
    """Graph: approximate number of tokens to use, in whole requests."""
    permutations: int = 100
    """Graph: number of random rotations for the control, at least 20."""
    fdr: float = 0.05
    """Graph: accepted fraction of false edges among the edges that are kept (false discovery rate), between 0 and 1."""
    max_edges: int = 500
    """Graph: maximum number of edges. Those with the highest transfer entropy are kept."""
    seed: int = 0
    """Graph: seed of the control."""

    def __post_init__(self) -> None:
        if not self.lags or min(self.lags) < 0 or self.permutations < 20 or not 0 < self.fdr < 1 or self.nodes < 1:
            raise SettingsError(
                "expected lags >= 0, at least 20 permutations, fdr between 0 and 1, nodes >= 1; found "
                f"{self.lags}, {self.permutations}, {self.fdr}, {self.nodes}"
            )


@hinted_class
@dataclass(frozen=True, slots=True)
class AnalysisOptions:
    """Scope of an analysis.

    Raises:
        SettingsError: A graph is asked for without features.
    """

    sites: tuple[str, ...] = ()
    """Full names of sites. By default all."""
    features: tuple[str, ...] = ()
    """Autoencoder (a file or an SAELens folder) or folder of probes, as PATH or SITE=PATH. Repeatable."""
    graph: bool = False
    """Compute the graph of dependence between the features."""
    plots: bool = True
    """Draw plots (PNG) if there is a folder to write to."""
    site: SiteOptions = field(default_factory=SiteOptions)
    """Measurement of a site."""
    graph_options: GraphOptions = field(default_factory=GraphOptions)
    """Computation of the graph."""

    def __post_init__(self) -> None:
        if self.graph and not self.features:
            raise SettingsError("a graph is between features: name some (--features SAE_DIR or PROBE_DIR)")
