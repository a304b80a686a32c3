"""Append-only .npy file, whose header is rewritten with the final length on close."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

import numpy as np

from actscope.runtime.publish import private_opener


class GrowingNpy:
    """A one-dimensional array in a .npy file, written in parts. numpy pads the header so that a longer shape fits in place."""

    def __init__(self, path: Path, dtype: np.dtype) -> None:
        self._dtype = dtype
        self._length = 0
        self._file = open(path, "wb", opener=private_opener)  # noqa: SIM115 - closed by `close`
        self._write_head()
        self._data = self._file.tell()

    def add(self, values: np.ndarray) -> None:
        """Append values [n], cast to the file's dtype."""
        self._file.write(np.ascontiguousarray(values, self._dtype).data)
        self._length += len(values)

    def close(self) -> None:
        """Write the final length into the header and close the file."""
        self._file.seek(0)
        self._write_head()
        assert self._file.tell() == self._data, "the header has outgrown its padding"
        self._file.close()

    def _write_head(self) -> None:
        described = {"descr": self._dtype.str, "fortran_order": False, "shape": (self._length,)}
        np.lib.format.write_array_header_1_0(self._file, described)

    def __enter__(self) -> GrowingNpy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
