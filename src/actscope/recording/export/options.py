"""How rows are written, and what was written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from actscope.errors import SettingsError

#: Called with (what is being done, done, total).
Progress = Callable[[str, int, int], None]


def silent(stage: str, done: int, total: int) -> None:
    """Progress that nobody watches."""


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """How rows are written."""

    bf16: Literal["float32", "uint16"] = "float32"
    """What bfloat16 becomes where the form does not have it (zarr, parquet, npy): float32 (exact) or its 16 bits."""
    shard_bytes: int = 5 << 30
    """safetensors: no file is larger than about this."""
    chunk_bytes: int = 8 << 20
    """zarr chunks, parquet row groups and packets: at most this much of one site's rows; also what is read at a time."""
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
        """What rows of `dtype` become in a form without bfloat16."""
        return self.bf16 if dtype == "bfloat16" else dtype


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What was written: rows of each site, and all bytes of all files."""

    path: Path
    format: str
    rows: dict[str, int]
    stored_as: dict[str, str]
    files: int
    bytes: int
