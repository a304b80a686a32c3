"""What is to be recorded, and how the pipeline is to run."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any, Literal

from actscope.errors import SettingsError
from actscope.store import StoreOptions

Policy = Literal["block", "drop", "error"]
FORMAT_VERSION = 1


def _usual_workers() -> int:
    return max(1, min(4, (os.cpu_count() or 1) // 2))


@dataclass(frozen=True, slots=True)
class RecordingSpec:
    """What a recording holds. It is written once, when the recording is made, and never changes."""

    sites: tuple[str, ...]
    """Names of the sites, in the order of their channels."""
    codec: str = "lossless"
    """Codec of every site that `codecs` does not name (see `actscope.codecs`)."""
    codecs: dict[str, str] = field(default_factory=dict)
    """Codecs of single sites."""
    model: dict[str, Any] = field(default_factory=dict)
    """What is known of the model: name, revision, d_model, n_layers, dtype …"""
    settings: dict[str, Any] = field(default_factory=dict)
    """How it was captured; for people."""

    def __post_init__(self) -> None:
        if not self.sites or len(set(self.sites)) != len(self.sites):
            raise SettingsError(f"a recording needs one or more different sites, found {list(self.sites)}")
        unknown = sorted(set(self.codecs) - set(self.sites))
        if unknown:
            raise SettingsError(f"codecs are named for sites that are not recorded: {', '.join(unknown)}")

    def codec_of(self, site: str) -> str:
        return self.codecs.get(site, self.codec)


@dataclass(frozen=True, slots=True)
class PipelineOptions:
    """How rows get from the model's thread to the disk."""

    policy: Policy = "block"
    """What happens to a frame that finds the queue full: wait, drop it and count, or raise RecordingError."""
    memory_bytes: int = 1 << 30
    """Bound of all rows that were accepted and are not yet in the file, the store's own buffers included."""
    workers: int = field(default_factory=_usual_workers)
    """Threads that encode."""
    block_bytes: int = 4 << 20
    """Rows of a site are encoded together once they have this size; less where many sites share little memory."""
    flush_seconds: float = 1.0
    """Rows wait at most about this long to be encoded, and labels to be written."""
    checkpoint_tokens: int = 0
    """Make everything durable after so many rows; 0 leaves it to the store's group commits."""
    store: StoreOptions = field(default_factory=StoreOptions)

    def __post_init__(self) -> None:
        if self.policy not in ("block", "drop", "error"):
            raise SettingsError(f"policy {self.policy!r}: expected block, drop or error")
        if self.memory_bytes < 16 << 20:
            raise SettingsError(f"memory_bytes {self.memory_bytes}: at least 16 MiB are needed")
        if self.workers < 1 or self.block_bytes < 1 or self.flush_seconds <= 0 or self.checkpoint_tokens < 0:
            raise SettingsError(
                "expected workers >= 1, block_bytes >= 1, flush_seconds > 0, checkpoint_tokens >= 0; found "
                f"{self.workers}, {self.block_bytes}, {self.flush_seconds}, {self.checkpoint_tokens}"
            )

    @property
    def store_bytes(self) -> int:
        """The store's share of the memory."""
        return min(self.store.buffer_bytes, self.memory_bytes // 2)

    @property
    def queue_bytes(self) -> int:
        """Rows in the queue, half of the rest: encoding a block needs room beside it."""
        return (self.memory_bytes - self.store_bytes) // 2

    def block_bytes_of(self, n_sites: int) -> int:
        """The size of a block where all sites share the queue and none may starve the others."""
        return max(1, min(self.block_bytes, self.queue_bytes // (2 * n_sites)))
