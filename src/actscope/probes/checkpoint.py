"""Reads tensors from untrusted files as float32, without unpickling. Sizes are capped before allocation."""

from __future__ import annotations

import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import Any, TypedDict

import msgspec
import numpy as np

from actscope.errors import ProbeError

MAX_BYTES = 64 << 30
_MAX_JSON = 16 << 20
_DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16, "F64": np.float64}


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON object. Raises ProbeError, naming the file, if it is not one or exceeds 16 MiB."""
    if path.stat().st_size > _MAX_JSON:
        raise ProbeError(f"{path.name} is larger than {_MAX_JSON >> 20} MiB")
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise ProbeError(f"{path.name} is not a JSON object: {error}") from error


def read_safetensors(path: Path, wanted: Collection[str]) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """Return the metadata and those of the `wanted` tensors that exist, as float32.

    Includes bfloat16, which numpy's own safetensors reader lacks. Raises ProbeError if none exists, if a tensor is not finite or
    not floating-point, or if the file is not safetensors or exceeds 64 GiB.
    """
    from safetensors import SafetensorError, deserialize

    _check_size(path.stat().st_size)
    raw = path.read_bytes()
    try:
        found = deserialize(raw)  # type: ignore[no-untyped-call]
    except SafetensorError as error:
        raise ProbeError(f"{path.name} is not a safetensors file: {error}") from error
    tensors = {name: _float32(name, tensor) for name, tensor in found if name in wanted}
    if not tensors:
        names = ", ".join(sorted(name for name, _ in found)[:8])
        raise ProbeError(f"{path.name} holds no encoder: none of {', '.join(wanted)}; it has {names or 'nothing'}")
    header = msgspec.json.decode(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    return {str(k): str(v) for k, v in (header.get("__metadata__") or {}).items()}, tensors


def read_npz(path: Path, wanted: Collection[str]) -> dict[str, np.ndarray]:
    """Return those of the `wanted` arrays that exist, as float32.

    Raises ProbeError for pickled objects, values that are not finite floats, and archives that unpack to more than 64 GiB.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            _check_size(sum(entry.file_size for entry in archive.infolist()))  # the declared unpacked size
        with np.load(path, allow_pickle=False) as arrays:
            return {name: _numbers(name, arrays[name]) for name in arrays.files if name in wanted}
    except (zipfile.BadZipFile, ValueError, EOFError) as error:
        raise ProbeError(f"{path.name} is not a numpy archive of plain numbers: {error}") from error


def _check_size(size: int) -> None:
    if size > MAX_BYTES:
        raise ProbeError(f"the file is larger than {MAX_BYTES >> 30} GiB")


class _RawTensor(TypedDict):
    """A tensor as `safetensors.deserialize` gives it."""

    dtype: str
    shape: list[int]
    data: bytes


def _float32(name: str, tensor: _RawTensor) -> np.ndarray:
    dtype = _DTYPES.get(tensor["dtype"])
    if dtype is None:
        raise ProbeError(f"tensor {name} is {tensor['dtype']}; expected one of {', '.join(_DTYPES)}")
    flat = np.frombuffer(tensor["data"], dtype)
    if tensor["dtype"] == "BF16":  # bfloat16 is the upper half of a float32
        flat = (flat.astype(np.uint32) << 16).view(np.float32)
    return _numbers(name, flat.reshape(tensor["shape"]))


def _numbers(name: str, array: np.ndarray) -> np.ndarray:
    if array.dtype.kind != "f":
        raise ProbeError(f"tensor {name} is {array.dtype}; expected floating-point numbers")
    values = array.astype(np.float32, copy=False)
    if not np.isfinite(values).all():
        raise ProbeError(f"tensor {name} holds NaN or infinity")
    return values
