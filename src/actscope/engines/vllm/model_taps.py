"""The taps of one model: its hooks, and the buffers on its device that they fill."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from actscope.engines.vllm.layer_outputs import Read, attach, sites_here
from actscope.engines.vllm.settings import GraphSpec
from actscope.engines.vllm.sidecar_protocol import Features
from actscope.engines.vllm.truth.check import examine
from actscope.errors import SettingsError, SiteError
from actscope.probes.encoder import SaeEncoder
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
        refused: Selected sites that are not read, and why, by name.
        d: Width of a row (d_model).
        max_rows: Most rows of a pass.
    """

    def __init__(self, runner: Any, graph: GraphSpec) -> None:
        """Find out what is read at each site, and attach the taps. Runs the model on trial.

        Raises:
            SiteError: The model has no such site, or all selected ones are refused.
            SettingsError: The SAE does not fit.
        """
        self._runner, self._model = runner, runner.get_model()
        encoder = self._encoder(graph) if graph.sae else None
        scored = sites_here(self._model, graph.sites)
        kept = sites_here(self._model, graph.row_sites)
        encoded = sites_here(self._model, encoder.site or "") if encoder else ()
        verdicts = examine(runner, self._model, in_model_order([*scored, *kept, *encoded]))
        taps, self.refused = verdicts.taps, verdicts.refused
        self._taps = taps
        self.sites: tuple[Site, ...] = in_model_order([site for site in (*scored, *kept) if site in taps])
        if self.refused and not self.sites:
            raise SiteError(f"no selected site of {type(self._model).__name__} can be read: {listed(self.refused)}")
        self.kept = [self.sites.index(site) for site in kept if site in taps]
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
        self._hooks = [attach(taps[site], self._reader(i)) for i, site in enumerate(self.sites)]
        if encoder is not None:
            self._attach_sae(encoder, graph, [site for site in encoded if site in taps])

    def _reader(self, index: int) -> Read:
        buffers = self.buffers

        def read(hidden: torch.Tensor, residual: torch.Tensor | None) -> None:
            buffers.tap(index, hidden, residual)

        return read

    def _encoder(self, graph: GraphSpec) -> SaeEncoder:
        encoder = load_encoder(Path(graph.sae), graph.sae_site or None)
        d = int(text_config(self._model).hidden_size)
        if encoder.site is None:
            raise SettingsError(
                f"sae {graph.sae}: it does not say where it belongs; set sae_site, e.g. layers.12.resid_post"
            )
        if encoder.d != d:
            raise SettingsError(f"sae {graph.sae}: it reads rows of width {encoder.d}, this model has d_model {d}")
        return encoder

    def _attach_sae(self, encoder: SaeEncoder, graph: GraphSpec, sites: Sequence[Site]) -> None:
        """Hook in the SAE's encoder. On other stages, and at a refused site, its columns stay NaN (not computed)."""
        for site in sites:
            sae = SaeBuffers(encoder, graph.sae_top_k, self.buffers.board.device)
            self._hooks.append(attach(self._taps[site], partial(sae.encode, self.buffers)))
            name = encoder.name or Path(graph.sae).name
            self.features = Features(site.name, graph.sae_top_k, encoder.n_features, name)

    def examine_again(self) -> dict[int, str]:
        """Repeat the check, between two passes.

        Returns:
            The taps that do not read their site right any more, as an index into `sites` (that of the SAE comes after them), and
            why. The sites are in `refused` from now on, or no longer.
        """
        verdicts = examine(self._runner, self._model, self._taps)
        changed = "the weights have changed, and with them what its row is; restart vLLM"
        wrong = {
            site: verdicts.refused.get(site.name, changed)
            for site, tap in self._taps.items()
            if verdicts.taps.get(site) != tap
        }
        names = {site.name for site in self._taps}
        self.refused = {name: why for name, why in self.refused.items() if name not in names}
        self.refused.update({site.name: why for site, why in wrong.items()})
        found = {i: wrong[site] for i, site in enumerate(self.sites) if site in wrong}
        if self.features is not None and self.features.site in self.refused:
            found[len(self.sites)] = self.refused[self.features.site]
        return found

    @property
    def site_names(self) -> list[str]:
        """Return the names of `sites`."""
        return [site.name for site in self.sites]

    @property
    def kept_names(self) -> list[str]:
        """Return the names of the sites whose raw rows are kept."""
        return [self.sites[i].name for i in self.kept]

    def read_last(self) -> None:
        """Move the hooks behind all others of their modules: rows have the changes that other plugins' hooks make."""
        for hook in self._hooks:
            others = hook.hooks_dict_ref()
            if others is not None and hook.id in others:
                others.move_to_end(hook.id)

    def remove(self) -> None:
        """Remove the hooks. Idempotent."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []


def listed(refused: Mapping[str, str]) -> str:
    """Return the first refusal, and the number of the others."""
    name, why = next(iter(refused.items()))
    more = len(refused) - 1
    return f"{name}: {why}" + (f" (and {more} more)" if more else "")
