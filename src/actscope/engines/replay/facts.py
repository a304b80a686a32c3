"""What a recording says of the model that it was made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from actscope.probes import ProbedModel
from actscope.recording.reading.recording import Recording


@dataclass(frozen=True, slots=True)
class RecordedModel:
    """The model's facts; what its manifest does not say follows from the rows. `widths`: of each site that has rows."""

    name: str
    revision: str
    device: str
    dtype: str
    n_layers: int
    d_model: int
    max_context: int
    path: str
    widths: Mapping[str, int]

    @property
    def facts(self) -> ProbedModel:
        """As a bank of probes needs them."""
        return ProbedModel(self.name, self.revision, self.d_model, self.n_layers)


def recorded_model(recording: Recording) -> RecordedModel:
    """Read the manifest; a fact that it lacks is taken from the sites and their rows."""
    said = recording.info["model"]
    widths = {site: recording[site].width for site in recording.sites if len(recording[site])}
    layers = [layer for layer in map(_layer_of, recording.sites) if layer is not None]
    dtype = recording[next(iter(widths))].source_dtype if widths else ""
    return RecordedModel(
        name=str(said.get("name") or "unknown model"),
        revision=str(said.get("revision") or ""),
        device=str(said.get("device") or ""),
        dtype=str(said.get("dtype") or dtype).removeprefix("torch."),
        n_layers=int(said.get("n_layers") or max(layers, default=-1) + 1),
        d_model=int(said.get("d_model") or max(widths.values(), default=0)),
        max_context=int(said.get("max_context") or int(recording.labels()["position"].max(initial=-1)) + 1),
        path=str(said.get("path") or ""),
        widths=widths,
    )


def _layer_of(site: str) -> int | None:
    """A recording may have sites that are not of the usual names."""
    parts = site.split(".")
    return int(parts[1]) if len(parts) > 1 and parts[0] == "layers" and parts[1].isdigit() else None
