"""Specification of a recording, and settings of its pipeline."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Literal

from actscope.errors import SettingsError
from actscope.store import StoreOptions

Policy = Literal["block", "drop", "error"]
FORMAT_VERSION = 1
#: Largest `PipelineOptions.block_bytes`. A block has at most twice its target, which readers rely on.
MAX_BLOCK_TARGET = 128 << 20


def _usual_workers() -> int:
    return max(1, min(4, (os.cpu_count() or 1) // 2))


@dataclass(frozen=True, slots=True)
class RecordingSpec:
    """Contents of a recording: sites, codecs, model. Written once at creation; immutable.

    Raises:
        SettingsError: There are no sites, duplicate ones, or a codec is named for a site that is not recorded.
    """

    sites: tuple[str, ...]
    """Names of the sites, in the order of their channels."""
    codec: str = "lossless"
    """Codec of every site that `codecs` does not name (see `actscope.codecs`)."""
    codecs: dict[str, str] = field(default_factory=dict)
    """Codecs by site; override `codec`."""
    model: dict[str, object] = field(default_factory=dict)
    """Model metadata: name, revision, d_model, n_layers, dtype …"""
    settings: dict[str, object] = field(default_factory=dict)
    """Capture settings, as JSON values. Informational."""

    def __post_init__(self) -> None:
        if not self.sites or len(set(self.sites)) != len(self.sites):
            raise SettingsError(f"a recording needs one or more different sites, found {list(self.sites)}")
        unknown = sorted(set(self.codecs) - set(self.sites))
        if unknown:
            raise SettingsError(f"codecs are named for sites that are not recorded: {', '.join(unknown)}")

    def codec_of(self, site: str) -> str:
        """Return the codec of a site."""
        return self.codecs.get(site, self.codec)


@dataclass(frozen=True, slots=True)
class PipelineOptions:
    """Settings of the pipeline from the model's thread to the disk.

    Raises:
        SettingsError: A value is out of range.
    """

    policy: Policy = "block"
    """When the queue is full: block (back pressure), drop the frame and count it, or raise RecordingError."""
    memory_bytes: int = 1 << 30
    """Memory budget for rows that are not yet in the file, in bytes (at least 16 MiB). Includes the store's buffers."""
    workers: int = field(default_factory=_usual_workers)
    """Number of encoder threads."""
    block_bytes: int = 4 << 20
    """Target size of a block of one site's rows before encoding, in bytes, at most 128 MiB. Smaller if many share memory."""
    flush_seconds: float = 1.0
    """Approximate maximum delay before queued rows are encoded and labels are written, in seconds."""
    checkpoint_tokens: int = 0
    """Write a checkpoint after this many rows. 0: no checkpoints; the store's group commits make rows durable."""
    store: StoreOptions = field(default_factory=StoreOptions)
    """Settings of the store. Its `buffer_bytes` is capped at half of `memory_bytes`."""

    def __post_init__(self) -> None:
        if self.policy not in ("block", "drop", "error"):
            raise SettingsError(f"policy {self.policy!r}: expected block, drop or error")
        if self.memory_bytes < 16 << 20:
            raise SettingsError(f"memory_bytes {self.memory_bytes}: at least 16 MiB are needed")
        if self.block_bytes > MAX_BLOCK_TARGET:
            raise SettingsError(f"block_bytes {self.block_bytes}: expected at most {MAX_BLOCK_TARGET}")
        if self.workers < 1 or self.block_bytes < 1 or self.flush_seconds <= 0 or self.checkpoint_tokens < 0:
            raise SettingsError(
                "expected workers >= 1, block_bytes >= 1, flush_seconds > 0, checkpoint_tokens >= 0; found "
                f"{self.workers}, {self.block_bytes}, {self.flush_seconds}, {self.checkpoint_tokens}"
            )

    @property
    def store_bytes(self) -> int:
        """Return the store's share of the memory budget, in bytes."""
        return min(self.store.buffer_bytes, self.memory_bytes // 2)

    @property
    def queue_bytes(self) -> int:
        """Return the byte budget of the queue: half of the remaining memory, since encoding needs the other half."""
        return (self.memory_bytes - self.store_bytes) // 2

    def block_bytes_of(self, n_sites: int) -> int:
        """Return the block size, in bytes, at which `n_sites` sites share the queue without starving each other."""
        return max(1, min(self.block_bytes, self.queue_bytes // (2 * n_sites)))
