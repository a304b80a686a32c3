"""Facts about the model of a recording."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from actscope.probes import ProbedModel
from actscope.recording.reading.recording import Recording


@dataclass(frozen=True, slots=True)
class RecordedModel:
    """Facts about a recorded model, from the manifest or inferred from the rows. `widths` has each site that has rows."""

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
        """The facts that a probe bank needs."""
        return ProbedModel(self.name, self.revision, self.d_model, self.n_layers)


def recorded_model(recording: Recording) -> RecordedModel:
    """Read the model's facts from the manifest. Missing ones are inferred from the sites and their rows."""
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
    """Return the layer of a site, or None for a site with another name."""
    parts = site.split(".")
    return int(parts[1]) if len(parts) > 1 and parts[0] == "layers" and parts[1].isdigit() else None
