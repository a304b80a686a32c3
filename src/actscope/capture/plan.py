"""Cost estimate of a capture configuration for a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from actscope.capture.codec_choice import CODEC_SPEEDS, choose_codec
from actscope.capture.config import CaptureConfig
from actscope.capture.labels.position_filter import PositionFilter
from actscope.codecs import rows_before_encoding
from actscope.errors import SiteError
from actscope.near_miss import hinted
from actscope.sites import Site
from actscope.taps.anatomy import Location, resolve
from actscope.taps.text_model import active_adapters, blocks, stream_dtype, text_config, unwrapped

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Properties of a model that a capture depends on; 0 or "" if unknown."""

    architecture: str
    name: str
    n_layers: int
    d_model: int
    dtype: str
    n_parameters: int
    adapters: tuple[str, ...] = ()
    """Names of the adapters (LoRA and the like) that are active."""

    @property
    def itemsize(self) -> int:
        """Bytes per element; 4 if the dtype is unknown."""
        return int(getattr(torch, self.dtype).itemsize) if self.dtype else 4

    def facts(self) -> dict[str, object]:
        """Return the model facts for the recording's manifest, as JSON values."""
        return {
            "name": self.name,
            "architecture": self.architecture,
            "n_layers": self.n_layers,
            "d_model": self.d_model,
            "dtype": self.dtype,
            **({"adapters": list(self.adapters)} if self.adapters else {}),
        }


def shape_of(model: nn.Module) -> ModelShape:
    """Return a model's architecture, layer count, width, dtype and parameter count, as far as they are known.

    Of a model inside a wrapper of PEFT, they are those of the model. The dtype is that of the residual stream, also if weights
    are quantized or offloaded.
    """
    dtype = stream_dtype(model)
    config: PreTrainedConfig | None
    try:
        config, n_layers = text_config(model), len(blocks(model))
    except SiteError:
        config, n_layers = getattr(model, "config", None), 0
    whole = getattr(unwrapped(model), "config", None)
    return ModelShape(
        type(unwrapped(model)).__name__,
        str(getattr(whole, "_name_or_path", "") or ""),
        n_layers,
        int(getattr(config, "hidden_size", 0) or 0),
        str(dtype).removeprefix("torch.") if dtype is not None else "",
        sum(p.numel() for p in model.parameters()),
        active_adapters(model),
    )


@dataclass(frozen=True, slots=True)
class CapturePlan:
    """Cost of a configuration for a model. `str(plan)` is a human-readable report.

    Sizes are bytes of uncompressed rows.
    """

    config: CaptureConfig
    shape: ModelShape
    sites: tuple[str, ...]
    widths: dict[str, int]
    """Row width (elements) by site. Sites whose width is known only after a forward pass are missing."""
    tokens_per_s: float = 0.0
    """Expected speed in tokens/s; 0 if unknown."""

    @property
    def kept_share(self) -> float:
        """Estimated fraction (0 to 1) of all rows that sample and granularity keep."""
        return self.config.sample * PositionFilter.parse(self.config.granularity).share()

    @property
    def bytes_per_token(self) -> float:
        """Mean uncompressed bytes kept per token, summed over all sites of known width."""
        return sum(self.widths.values()) * self.shape.itemsize * self.kept_share

    @property
    def gigabytes_per_s(self) -> float:
        """GB/s (10^9 bytes) of uncompressed rows at `tokens_per_s`; 0 if that is unknown."""
        return self.bytes_per_token * self.tokens_per_s / 1e9

    def __str__(self) -> str:
        config, shape = self.config, self.shape
        choice = choose_codec(config.codec, config.workers, config.throughput)
        codec, workers, why = choice.codec, choice.workers, choice.reason
        lines = [
            f"model       {shape.architecture}: {shape.n_layers or '?'} layers of width {shape.d_model or '?'}, {shape.dtype}",
            f"sites       {len(self.sites)}: {_shortened(self.sites)}",
            f"codec       {codec}"
            + (f", {workers} worker{'s' * (workers != 1)}: {why}" if config.throughput else _expectation(codec)),
            f"policy      {config.policy}, {config.memory_bytes / 1e9:.2f} GB of host memory at most",
            f"size        {_size(self.bytes_per_token)} a token, {_size(1000 * self.bytes_per_token)} per 1,000 tokens, "
            "before compression",
        ]
        if self.kept_share < 1:
            lines.append(
                f"kept        about {self.kept_share:.1%} of all rows ({config.granularity}, sample {config.sample:g})"
            )
        if self.tokens_per_s:
            lines.append(f"rate        {self.gigabytes_per_s:.3f} GB/s at {self.tokens_per_s:g} tokens/s")
        unknown = len(self.sites) - len(self.widths)
        if unknown:
            lines.append(f"not counted {unknown} sites whose width only a pass can tell")
        if config.reason:
            lines.append(f"because     {config.reason}")
        return "\n".join(lines)


@hinted
def explain(config: CaptureConfig, model: nn.Module, tokens_per_s: float = 0.0) -> CapturePlan:
    """Estimate the cost of a capture configuration for a model.

    Args:
        config: The configuration.
        model: The model to capture; it is not run.
        tokens_per_s: Expected speed in tokens/s, for the rate in GB/s; 0 omits the rate.

    Returns:
        The plan: sites, widths and bytes per token. `str(plan)` is a human-readable report.

    Raises:
        SiteError: The model does not have the sites.
    """
    shape = shape_of(model)
    places = resolve(model, config.sites, config.read_points)
    return CapturePlan(config, shape, tuple(site.name for site in places), widths_of(places, shape), tokens_per_s)


def widths_of(places: Mapping[Site, Location], shape: ModelShape) -> dict[str, int]:
    """Return the row width (elements) by site, of the sites whose width is known before a forward pass."""
    return {site.name: width for site, place in places.items() if (width := _width(site, place, shape))}


def _width(site: Site, place: Location, shape: ModelShape) -> int:
    if not site.is_module:
        return shape.d_model
    if isinstance(place.module, nn.Linear):
        return place.module.in_features if place.side == "input" else place.module.out_features
    weight = getattr(place.module, "weight", None)
    is_norm = isinstance(weight, torch.Tensor) and weight.ndim == 1
    return int(weight.shape[0]) if is_norm and weight is not None else 0


def _expectation(codec: str) -> str:
    if rows := rows_before_encoding(codec):
        return f": lossless for the first {rows:,} rows of each site, on which its basis is fitted"
    if codec not in CODEC_SPEEDS:
        return ""
    speed, ratio = CODEC_SPEEDS[codec]
    return f": about {ratio:g}x smaller on fp32 rows, {speed:g} GB/s a core"


def _shortened(sites: tuple[str, ...]) -> str:
    return ", ".join(sites) if len(sites) <= 4 else f"{sites[0]}, {sites[1]} ... {sites[-1]}"


def _size(n_bytes: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n_bytes >= size:
            return f"{n_bytes / size:.3g} {unit}"
    return f"{n_bytes:.0f} bytes"
