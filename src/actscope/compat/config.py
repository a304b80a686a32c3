"""`InstrumentationConfig`: the older framework's configuration, as names for ours."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from actscope.capture.config import CaptureConfig
from actscope.errors import SettingsError

_ALGORITHMS = ("lz4", "zstd", "none")


class HookGranularity(Enum):
    """What to keep. The value is the granularity of `CaptureConfig`."""

    FULL_TENSOR = "full"
    SAMPLED_SLICES = "sampled:8"
    ATTENTION_ONLY = "attention"
    MLP_ONLY = "mlp"


@dataclass
class InstrumentationConfig:
    """Configuration of the older framework. A field that is None is left to the preset.

    The `with_*` methods change this object and return it, as they did there.

    Raises:
        SettingsError: A value is unknown or out of range.
    """

    granularity: HookGranularity | None = None
    """What to keep. SAMPLED_SLICES keeps every 8th position whole, and not a random part of each tensor."""
    compression_algorithm: str | None = None
    """lz4, zstd or none, which are codecs of ours too. None: the preset's codec, which is often smaller."""
    target_throughput_gbps: float | None = None
    """Target throughput in GB (10^9 bytes) of rows per second. It matters when no compression is named."""
    max_memory_gb: float | None = None
    """Bound on the rows in host memory, in GB (10^9 bytes)."""
    preset: str = "balanced"
    """Preset of `CaptureConfig` that the other fields override."""

    def __post_init__(self) -> None:
        self.capture_config()

    @classmethod
    def fast_capture(cls) -> InstrumentationConfig:
        """Return the preset `fast_capture`: three layers, uncompressed."""
        return cls(preset="fast_capture")

    @classmethod
    def max(cls) -> InstrumentationConfig:
        """Return the preset `max`: everything, lossless."""
        return cls(preset="max")

    @classmethod
    def balanced(cls) -> InstrumentationConfig:
        """Return the preset `balanced`: the residual stream after every block, lossless."""
        return cls(preset="balanced")

    @classmethod
    def max_compression(cls) -> InstrumentationConfig:
        """Return the preset `max_compression`: a relative error of at most 1e-3."""
        return cls(preset="max_compression")

    @classmethod
    def attention_analysis(cls) -> InstrumentationConfig:
        """Return the preset `attention_analysis`: the output of every attention block."""
        return cls(preset="attention_analysis")

    @classmethod
    def mlp_analysis(cls) -> InstrumentationConfig:
        """Return the preset `mlp_analysis`: the output of every MLP."""
        return cls(preset="mlp_analysis")

    def with_compression(self, algorithm: str) -> InstrumentationConfig:
        """Set `compression_algorithm`, and return this object."""
        return self._with("compression_algorithm", algorithm)

    def with_memory_limit(self, gigabytes: float) -> InstrumentationConfig:
        """Set `max_memory_gb`, and return this object."""
        return self._with("max_memory_gb", gigabytes)

    def with_throughput(self, gigabytes_per_s: float) -> InstrumentationConfig:
        """Set `target_throughput_gbps`, and return this object."""
        return self._with("target_throughput_gbps", gigabytes_per_s)

    def with_granularity(self, granularity: HookGranularity) -> InstrumentationConfig:
        """Set `granularity`, and return this object."""
        return self._with("granularity", granularity)

    def _with(self, name: str, value: object) -> InstrumentationConfig:
        setattr(self, name, value)
        self.capture_config()
        return self

    def capture_config(self) -> CaptureConfig:
        """Return the same as a configuration of `actscope.capture`. Raises SettingsError for an invalid value."""
        algorithm = self.compression_algorithm
        if algorithm is not None and algorithm not in _ALGORITHMS:
            raise SettingsError(
                f"compression_algorithm {algorithm!r}: expected one of {', '.join(_ALGORITHMS)}; CaptureConfig has more codecs"
            )
        if self.granularity is not None and not isinstance(self.granularity, HookGranularity):
            names = ", ".join(f"HookGranularity.{one.name}" for one in HookGranularity)
            raise SettingsError(f"granularity {self.granularity!r}: expected one of {names}")
        overrides = {
            "granularity": self.granularity.value if self.granularity else None,
            "codec": algorithm,
            "throughput": self._bytes("target_throughput_gbps"),
            "memory_bytes": self._bytes("max_memory_gb"),
        }
        return CaptureConfig.preset(self.preset).override({k: v for k, v in overrides.items() if v is not None})

    def _bytes(self, name: str) -> int | None:
        gigabytes = getattr(self, name)
        if gigabytes is None:
            return None
        if not isinstance(gigabytes, int | float) or not 0 < gigabytes < 1e9:
            raise SettingsError(f"{name} {gigabytes!r}: expected a number of gigabytes above 0")
        return int(gigabytes * 1e9)
