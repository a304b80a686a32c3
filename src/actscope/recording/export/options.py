"""Export options and report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from actscope.errors import SettingsError
from actscope.near_miss import hinted_class

#: Called with (stage, amount done, total).
Progress = Callable[[str, int, int], None]


def silent(stage: str, done: int, total: int) -> None:
    """Ignore progress."""


@hinted_class
@dataclass(frozen=True, slots=True)
class ExportOptions:
    """Options of an export.

    Raises:
        SettingsError: A value is out of range.
    """

    bf16: Literal["float32", "uint16"] = "float32"
    """dtype that replaces bfloat16 in formats without it (zarr, parquet, npy): float32 (exact), or uint16 with its bits."""
    shard_bytes: int = 5 << 30
    """safetensors: approximate maximum size of a file."""
    chunk_bytes: int = 8 << 20
    """Maximum size of one site's rows in a zarr chunk, parquet row group or packet, and in one read."""
    force: bool = False
    """Replace an earlier export at the same path."""

    def __post_init__(self) -> None:
        if self.bf16 not in ("float32", "uint16"):
            raise SettingsError(f"bf16 {self.bf16!r}: expected float32 or uint16")
        if self.shard_bytes < 1 or not 1 <= self.chunk_bytes <= 1 << 30:
            raise SettingsError(
                f"expected shard_bytes >= 1 and chunk_bytes from 1 to 1 GiB, found {self.shard_bytes}, {self.chunk_bytes}"
            )

    def stored_dtype(self, dtype: str) -> str:
        """Return the dtype that stores rows of `dtype` in a format without bfloat16."""
        return self.bf16 if dtype == "bfloat16" else dtype


@dataclass(frozen=True, slots=True)
class ExportReport:
    """Result of an export.

    Attributes:
        path: Absolute path of the file or directory.
        format: Key of `FORMATS`.
        rows: Number of rows by site. Sites without a selected row are missing.
        stored_as: Stored dtype by site.
        files: Number of files.
        bytes: Total size of the files.
    """

    path: Path
    format: str
    rows: dict[str, int]
    stored_as: dict[str, str]
    files: int
    bytes: int
