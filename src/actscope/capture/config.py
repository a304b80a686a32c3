"""Capture configuration: presets, builder methods and keyword overrides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from actscope.capture.codec_choice import choose_codec
from actscope.capture.presets import PRESETS
from actscope.capture.settings import Direct
from actscope.errors import SettingsError, SiteError, UnknownArgument
from actscope.near_miss import hint, hinted_class
from actscope.recording.spec import Policy
from actscope.sites import POINTS
from actscope.sizes import parse_bytes

if TYPE_CHECKING:
    from torch import nn

    from actscope.capture.plan import CapturePlan
    from actscope.recording.spec import PipelineOptions


@hinted_class
@dataclass(frozen=True, slots=True)
class CaptureConfig:
    """Settings of a capture. Frozen: `with_*` and `override` return changed copies.

    Raises:
        SettingsError: A value is out of range or unknown.
    """

    sites: str = "all"
    """Sites to capture, e.g. all, 0,7,15, first,middle,last or model.layers.*.mlp."""
    points: tuple[str, ...] = ("resid_post",)
    """Point to capture if `sites` names only layers: resid_pre, attn_out, mixer_out, mlp_out or resid_post. Repeatable."""
    granularity: str = "full"
    """Positions to keep: full, attention, mlp, or sampled:TERMS, e.g. sampled:8+last=4. attention and mlp keep all positions and
    override `points` (see `actscope.capture.labels.position_filter`)."""
    codec: str = "auto"
    """Codec of the rows: none, lz4, zstd[:LEVEL], shuffle_lz4, lossless, error_bounded:ERROR, svd:K or auto[:ERROR]."""
    policy: Policy = "block"
    """Reaction to a full queue: block makes the model wait, drop drops and counts rows, error raises, also for a pass without
    certain labels."""
    memory_bytes: int = 1 << 30
    """Maximum size of the rows in host memory between the model and the file, at least 16 MiB."""
    workers: int = 0
    """Number of encoder threads. 0 uses half the cores, at most 4, or the number that `throughput` needs."""
    block_bytes: int = 4 << 20
    """Block size: rows of a site are encoded together once they reach it."""
    flush_seconds: float = 1.0
    """Approximate maximum time before rows are encoded and written."""
    checkpoint_tokens: int = 0
    """Interval in tokens between checkpoints, which make all rows durable and note it beside the recording. 0 writes no
    checkpoints and relies on the group commits of the store."""
    sample: float = 1.0
    """Fraction of requests to keep, 0 to 1, selected by a hash of the request id (`actscope.sampling`)."""
    throughput: float = 0.0
    """Target throughput in bytes of rows per second; 0 if unstated. With codec "auto" it selects the codec and the workers:
    the lossless codec with the best ratio that half of the cores can run at that rate (`actscope.capture.codec_choice`)."""
    text: bool = True
    """Record the text of each token id. Requires a tokenizer."""
    direct: Direct = "auto"
    """Bypass the page cache when writing (O_DIRECT): yes, no, or auto, where the file system supports it."""
    segment_bytes: int = 1 << 30
    """Size at which the recording starts a new file."""
    reason: str = field(default="", compare=False)
    """Human-readable reason for a derived configuration. Ignored in comparisons."""

    def __post_init__(self) -> None:
        unknown = [point for point in self.points if point not in POINTS]
        if unknown or not self.points:
            raise SettingsError(f"points {list(self.points)}: expected some of {', '.join(POINTS)}")
        from actscope.capture.labels.position_filter import (
            PositionFilter,  # here: flags are made of this class, and help is light
        )
        from actscope.codecs import encoder

        PositionFilter.parse(self.granularity)
        encoder(self.codec)  # raises for an unknown codec
        if self.policy not in ("block", "drop", "error"):
            raise SettingsError(f"policy {self.policy!r}: expected block, drop or error")
        if self.direct not in ("auto", "yes", "no"):
            raise SettingsError(f"direct {self.direct!r}: expected auto, yes or no")
        if not 0.0 <= self.sample <= 1.0:
            raise SettingsError(f"sample {self.sample}: expected a share of the requests, 0 to 1")
        if self.workers < 0 or self.throughput < 0:
            raise SettingsError(f"expected workers and throughput >= 0, found {self.workers} and {self.throughput}")
        self.pipeline()  # validates the remaining fields

    # --- construction -----------------------------------------------------------------------------------------------------

    @classmethod
    def preset(cls, name: str) -> CaptureConfig:
        """Return the configuration of a preset.

        Args:
            name: A key of `actscope.capture.presets.PRESETS`.

        Raises:
            SettingsError: The preset is unknown; the message lists the presets.
        """
        if name not in PRESETS:
            raise SettingsError(f"preset {name!r}: there are {', '.join(PRESETS)}{hint(name, PRESETS, form=repr)}")
        return cls().override(PRESETS[name])

    def override(self, values: Mapping[str, object]) -> CaptureConfig:
        """Return a copy with some fields replaced.

        Args:
            values: New values by field name. `memory` and `checkpoint` are aliases of `memory_bytes` and `checkpoint_tokens`.
                Sizes may be strings such as "2GB".

        Raises:
            SettingsError: A field is unknown or its value is invalid.
            SiteError: `sites` is neither a string nor an iterable.
        """
        known = {f.name for f in fields(self)}
        changed: dict[str, Any] = {}
        for key, value in values.items():
            name = _ALIASES.get(key, key)
            if name not in known:
                near = hint(key, (*_ALIASES, *sorted(known), *_OF_CAPTURE), f"there are {', '.join(sorted(known))}")
                raise UnknownArgument(f"capture has no setting {key!r}{near}")
            changed[name] = _converted(name, value)
        return replace(self, **changed)

    def with_sites(self, sites: str) -> CaptureConfig:
        """Return a copy that captures these sites (the grammar of `actscope.sites`)."""
        return self.override({"sites": sites})

    def with_points(self, *points: str) -> CaptureConfig:
        """Return a copy that captures these points when `sites` names only layers."""
        return self.override({"points": points})

    def with_granularity(self, granularity: str) -> CaptureConfig:
        """Return a copy with this granularity: full, attention, mlp or sampled:TERMS."""
        return self.override({"granularity": granularity})

    def with_codec(self, codec: str) -> CaptureConfig:
        """Return a copy with this codec, e.g. "lossless" or "error_bounded:1e-3"."""
        return self.override({"codec": codec})

    def with_policy(self, policy: Policy) -> CaptureConfig:
        """Return a copy with this reaction to a full queue: block, drop or error."""
        return self.override({"policy": policy})

    def with_memory(self, memory: int | str) -> CaptureConfig:
        """Return a copy with this bound on host memory, in bytes or as "2GB" (10^9), "512MiB" (2^20)."""
        return self.override({"memory_bytes": memory})

    def with_workers(self, workers: int) -> CaptureConfig:
        """Return a copy with this number of encoder threads; 0 chooses automatically."""
        return self.override({"workers": workers})

    def with_throughput(self, bytes_per_s: float | str) -> CaptureConfig:
        """Return a copy with this target throughput in bytes of rows per second, or as text such as "2GB"."""
        return self.override({"throughput": bytes_per_s})

    def with_sample(self, sample: float) -> CaptureConfig:
        """Return a copy that keeps this fraction of requests, 0 to 1."""
        return self.override({"sample": sample})

    def with_checkpoints(self, every_tokens: int) -> CaptureConfig:
        """Return a copy that writes a checkpoint after this many tokens; 0 writes none."""
        return self.override({"checkpoint_tokens": every_tokens})

    # --- derived values ---------------------------------------------------------------------------------------------------

    @property
    def read_points(self) -> tuple[str, ...]:
        """Points captured when `sites` names only layers. A granularity of attention or mlp overrides `points`."""
        from actscope.capture.labels.position_filter import PositionFilter

        return PositionFilter.parse(self.granularity).points or self.points

    def pipeline(self) -> PipelineOptions:
        """Return the recorder's options. Raises SettingsError for an invalid value."""
        from actscope.recording.spec import PipelineOptions
        from actscope.store import StoreOptions

        options = PipelineOptions(
            policy=self.policy,
            memory_bytes=self.memory_bytes,
            block_bytes=self.block_bytes,
            flush_seconds=self.flush_seconds,
            checkpoint_tokens=self.checkpoint_tokens,
            store=StoreOptions(direct=self.direct, segment_bytes=self.segment_bytes),
        )
        workers = choose_codec(self.codec, self.workers, self.throughput).workers
        return replace(options, workers=workers) if workers else options

    def explain(self, model: nn.Module, tokens_per_s: float = 0.0) -> CapturePlan:
        """Deprecated: call `actscope.explain(config, model)`."""
        import warnings

        import actscope

        warnings.warn("config.explain(model) is now actscope.explain(config, model)", DeprecationWarning, stacklevel=2)
        return actscope.explain(self, model, tokens_per_s)


#: Arguments of `actscope.capture` that are no settings.
_OF_CAPTURE = ("to", "preset", "config", "resume", "tokenizer", "model_facts", "recorder")
_ALIASES = {"memory": "memory_bytes", "checkpoint": "checkpoint_tokens"}


def _converted(name: str, value: Any) -> Any:
    if name in ("memory_bytes", "block_bytes", "segment_bytes", "throughput") and isinstance(value, str):
        return parse_bytes(value)
    if name == "points":
        given = value.split(",") if isinstance(value, str) else value
        return tuple(part.strip() for part in given)
    if name == "sites" and not isinstance(value, str):
        try:
            return ",".join(str(item) for item in value)
        except TypeError:
            raise SiteError(f"sites {value!r}: expected a selection such as 'all' or '0,7,15'") from None
    return value
