"""Conversion between numpy and torch rows. numpy carries bfloat16 as uint16."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from actscope.errors import RecordingError
from actscope.frames import RowArray

if TYPE_CHECKING:
    import torch


def as_numpy(rows: RowArray, dtype: str | None = None) -> tuple[np.ndarray, str]:
    """Return rows [n, d] as a C-contiguous numpy array, and the name of their dtype. Copies only non-contiguous rows.

    `rows` is a numpy array or a torch tensor on the CPU. `dtype` overrides the dtype name of a numpy array: "bfloat16" for
    uint16 bits.

    Raises:
        RecordingError: The rows are not two-dimensional.
    """
    if isinstance(rows, np.ndarray):
        _check_ndim(rows)
        return np.ascontiguousarray(rows), dtype or rows.dtype.name
    name = str(rows.dtype).removeprefix("torch.")
    tensor = rows.detach().contiguous()
    if name == "bfloat16":
        tensor = tensor.view(_uint16())
    array: np.ndarray = tensor.numpy()
    _check_ndim(array)
    return array, name


def _check_ndim(array: np.ndarray) -> None:
    if array.ndim != 2:
        raise RecordingError(f"rows must be [n, d], found {list(array.shape)}")


def as_torch(rows: np.ndarray, dtype: str) -> torch.Tensor:
    """Return the rows as a torch tensor of dtype `dtype`."""
    import torch

    tensor = torch.from_numpy(rows if rows.flags.writeable else rows.copy())
    return tensor.view(torch.bfloat16) if dtype == "bfloat16" else tensor


def _uint16() -> torch.dtype:
    import torch

    return torch.uint16
