"""The taps of one model: its hooks, and the buffers on its device that they fill."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch

from actscope.engines.vllm.layer_outputs import Read, attach, sites_here
from actscope.engines.vllm.settings import GraphSpec
from actscope.engines.vllm.sidecar_protocol import Features
from actscope.errors import SettingsError
from actscope.probes.sae import load_encoder
from actscope.sites import Site, in_model_order
from actscope.taps.tap import SaeBuffers, TapBuffers
from actscope.taps.text_model import text_config


class ModelTaps:
    """Hooks and buffers of the sites that this process has. Every tensor-parallel rank needs them: all compile one graph.

    Attributes:
        sites: Tapped sites in model order.
        kept: Indices in `sites` of those whose raw rows are kept.
        buffers: What the taps write, on the model's device.
        features: The SAE in the graph, or None.
        d: Width of a row (d_model).
        max_rows: Most rows of a pass.
    """

    def __init__(self, runner: Any, graph: GraphSpec) -> None:
        """Attach the taps. Raises SiteError for a site that cannot be read, SettingsError for an SAE that does not fit."""
        self._model = runner.model
        scored = sites_here(self._model, graph.sites)
        kept = sites_here(self._model, graph.row_sites)
        self.sites: tuple[Site, ...] = in_model_order([*scored, *kept])
        self.kept = [self.sites.index(site) for site in kept]
        self.d = int(text_config(self._model).hidden_size)
        self.max_rows = int(runner.vllm_config.scheduler_config.max_num_batched_tokens)
        self.features: Features | None = None
        self.buffers = TapBuffers(
            n_sites=len(self.sites),
            kept=self.kept,
            d=self.d,
            width=graph.width,
            max_rows=self.max_rows,
            dtype=runner.model_config.dtype,
            device=torch.device(runner.device),
            n_features=graph.sae_top_k if graph.sae else 0,
        )
        self._hooks = [attach(self._model, site, self._reader(i)) for i, site in enumerate(self.sites)]
        if graph.sae:
            self._attach_sae(graph)

    def _reader(self, index: int) -> Read:
        buffers = self.buffers

        def read(hidden: torch.Tensor, residual: torch.Tensor | None) -> None:
            buffers.tap(index, hidden, residual)

        return read

    def _attach_sae(self, graph: GraphSpec) -> None:
        """Hook in the SAE's encoder. On other stages its columns stay NaN (not computed)."""
        encoder = load_encoder(Path(graph.sae), graph.sae_site or None)
        if encoder.site is None:
            raise SettingsError(
                f"sae {graph.sae}: it does not say where it belongs; set sae_site, e.g. layers.12.resid_post"
            )
        if encoder.d != self.d:
            raise SettingsError(f"sae {graph.sae}: it reads rows of width {encoder.d}, this model has d_model {self.d}")
        for site in sites_here(self._model, encoder.site):
            sae = SaeBuffers(encoder, graph.sae_top_k, self.buffers.board.device)
            self._hooks.append(attach(self._model, site, partial(sae.encode, self.buffers)))
            name = encoder.name or Path(graph.sae).name
            self.features = Features(site.name, graph.sae_top_k, encoder.n_features, name)

    @property
    def site_names(self) -> list[str]:
        """Return the names of `sites`."""
        return [site.name for site in self.sites]

    @property
    def kept_names(self) -> list[str]:
        """Return the names of the sites whose raw rows are kept."""
        return [self.sites[i].name for i in self.kept]

    def remove(self) -> None:
        """Remove the hooks. Idempotent."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
