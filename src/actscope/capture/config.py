"""CaptureConfig: what is captured, and how it gets to the disk. Presets, a builder, and keyword overrides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from typing import Any, Literal

from actscope.capture.codec_choice import choose_codec
from actscope.capture.labels.position_filter import PositionFilter
from actscope.capture.presets import PRESETS
from actscope.codecs import encoder
from actscope.errors import SettingsError, SiteError
from actscope.recording.spec import PipelineOptions
from actscope.sites import POINTS
from actscope.sizes import parse_bytes
from actscope.store import StoreOptions

Policy = Literal["block", "drop", "error"]


@dataclass(frozen=True, slots=True)
class CaptureConfig:
    """Everything that can be chosen of a capture. Frozen: `with_*` and `override` give changed copies."""

    sites: str = "all"
    """Which layers, points or modules: the grammar of `actscope.sites`, `"0,7,15"`, `"model.layers.*.mlp"` ..."""
    points: tuple[str, ...] = ("resid_post",)
    """Points that are read where `sites` names only layers: resid_pre, attn_out, mlp_out, resid_post."""
    granularity: str = "full"
    """Which positions are kept: full, attention, mlp or sampled:TERMS (see `actscope.capture.labels.position_filter`).
    attention and mlp keep all positions and take the place of `points`."""
    codec: str = "auto"
    """How rows are encoded: none, lz4, zstd[:LEVEL], shuffle_lz4, lossless, error_bounded:ERROR, svd:K, auto[:ERROR] ..."""
    policy: Policy = "block"
    """When rows come faster than they can be written: the model waits, rows are dropped and counted, or an error is raised."""
    memory_bytes: int = 1 << 30
    """Bound of the rows in host memory between the model and the file, in bytes. At least 16 MiB."""
    workers: int = 0
    """Threads that encode; 0 takes half the cores, at most 4, or what `throughput` needs."""
    block_bytes: int = 4 << 20
    """Rows of a site are encoded together once they have this size, in bytes."""
    flush_seconds: float = 1.0
    """Rows wait at most about so long before they are encoded and written, in seconds."""
    checkpoint_tokens: int = 0
    """Make everything durable, and say so beside the recording, after so many tokens; 0: no checkpoints, only the
    group commits of the store."""
    sample: float = 1.0
    """Share of the requests that is kept, 0 to 1, chosen by a hash of the request's id (`actscope.sampling`)."""
    throughput: float = 0.0
    """Bytes of rows per second that must be kept up with; 0: not stated. With codec "auto" it chooses codec and workers:
    the strongest codec that half of the cores can run at that rate (see `actscope.capture.speeds`)."""
    text: bool = True
    """Keep the text of each token id, where a tokenizer was given."""
    direct: Literal["auto", "yes", "no"] = "auto"
    """Write past the page cache (O_DIRECT)."""
    segment_bytes: int = 1 << 30
    """Size at which a new file of the recording is begun, in bytes."""
    reason: str = field(default="", compare=False)
    """Why it is as it is, where it was derived; for people."""

    def __post_init__(self) -> None:
        unknown = [point for point in self.points if point not in POINTS]
        if unknown or not self.points:
            raise SettingsError(f"points {list(self.points)}: expected some of {', '.join(POINTS)}")
        PositionFilter.parse(self.granularity)
        encoder(self.codec)  # refuses one that does not exist
        if self.policy not in ("block", "drop", "error"):
            raise SettingsError(f"policy {self.policy!r}: expected block, drop or error")
        if self.direct not in ("auto", "yes", "no"):
            raise SettingsError(f"direct {self.direct!r}: expected auto, yes or no")
        if not 0.0 <= self.sample <= 1.0:
            raise SettingsError(f"sample {self.sample}: expected a share of the requests, 0 to 1")
        if self.workers < 0 or self.throughput < 0:
            raise SettingsError(f"expected workers and throughput >= 0, found {self.workers} and {self.throughput}")
        self.pipeline()  # checks the rest

    # --- making one -------------------------------------------------------------------------------------------------------

    @classmethod
    def preset(cls, name: str) -> CaptureConfig:
        """One of the presets. Raises SettingsError that names them."""
        if name not in PRESETS:
            near = get_close_matches(name, PRESETS, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise SettingsError(f"preset {name!r}: there are {', '.join(PRESETS)}{hint}")
        return cls().override(PRESETS[name])

    def override(self, values: Mapping[str, Any]) -> CaptureConfig:
        """A copy with these fields changed. Sizes may be texts such as "2GB". Raises SettingsError for an unknown one."""
        known = {f.name for f in fields(self)}
        changed: dict[str, Any] = {}
        for key, value in values.items():
            name = _ALIASES.get(key, key)
            if name not in known:
                near = get_close_matches(key, sorted(known | set(_ALIASES)), n=2)
                hint = f"; did you mean {' or '.join(near)}?" if near else f"; there are {', '.join(sorted(known))}"
                raise SettingsError(f"capture has no setting {key!r}{hint}")
            changed[name] = _converted(name, value)
        return replace(self, **changed)

    def with_sites(self, sites: str) -> CaptureConfig:
        return self.override({"sites": sites})

    def with_points(self, *points: str) -> CaptureConfig:
        return self.override({"points": points})

    def with_granularity(self, granularity: str) -> CaptureConfig:
        return self.override({"granularity": granularity})

    def with_codec(self, codec: str) -> CaptureConfig:
        return self.override({"codec": codec})

    def with_policy(self, policy: Policy) -> CaptureConfig:
        return self.override({"policy": policy})

    def with_memory(self, memory: int | str) -> CaptureConfig:
        """A bound in bytes, or "2GB" (10^9), "512MiB" (2^20)."""
        return self.override({"memory_bytes": memory})

    def with_workers(self, workers: int) -> CaptureConfig:
        return self.override({"workers": workers})

    def with_throughput(self, bytes_per_s: float | str) -> CaptureConfig:
        return self.override({"throughput": bytes_per_s})

    def with_sample(self, sample: float) -> CaptureConfig:
        return self.override({"sample": sample})

    def with_checkpoints(self, every_tokens: int) -> CaptureConfig:
        return self.override({"checkpoint_tokens": every_tokens})

    # --- what follows from it ---------------------------------------------------------------------------------------------

    @property
    def read_points(self) -> tuple[str, ...]:
        """The points that are read where `sites` names only layers."""
        return PositionFilter.parse(self.granularity).points or self.points

    def pipeline(self) -> PipelineOptions:
        """The recorder's options."""
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

    def explain(self, model: Any, tokens_per_s: float = 0.0) -> Any:
        """Deprecated: call `actscope.explain(config, model)`."""
        import warnings

        import actscope

        warnings.warn("config.explain(model) is now actscope.explain(config, model)", DeprecationWarning, stacklevel=2)
        return actscope.explain(self, model, tokens_per_s)


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
