"""Reads tensors from untrusted files as float32, without unpickling. Sizes are capped before allocation."""

from __future__ import annotations

import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple, TypedDict, TypeVar

import msgspec
import numpy as np

from actscope.errors import ProbeError

MAX_BYTES = 64 << 30
_MAX_JSON = 16 << 20
_DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16, "F64": np.float64}
#: Formats of Python objects: opening one can run code.
PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle", ".joblib")

_T = TypeVar("_T")


class Checkpoint(NamedTuple):
    """Tensors of a safetensors file as float32, its metadata, and the dtypes in which they are stored (F32, BF16 …)."""

    metadata: dict[str, str]
    tensors: dict[str, np.ndarray]
    dtypes: dict[str, str]


def read_config(path: Path, kind: type[_T]) -> _T:
    """Read a JSON object as a `msgspec.Struct`. Keys that the struct lacks are ignored.

    Raises ProbeError, naming the file, if it is not such an object, is nested too deeply or exceeds 16 MiB.
    """
    if path.stat().st_size > _MAX_JSON:
        raise ProbeError(f"{path.name} is larger than {_MAX_JSON >> 20} MiB")
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except msgspec.DecodeError as error:
        raise ProbeError(f"{path.name} is not a JSON object of this layout: {error}") from error
    except RecursionError:
        raise ProbeError(f"{path.name} is nested too deeply") from None


def read_safetensors(path: Path, wanted: Collection[str], absent: str = "holds no encoder") -> Checkpoint:
    """Return the metadata and those of the `wanted` tensors that exist, as float32.

    A name in `wanted` that ends with `*` stands for all names that begin with it. Includes bfloat16, which numpy's own
    safetensors reader lacks. `absent` begins the message if none of them exists.

    Raises ProbeError if none exists, if a tensor is not finite or not floating-point, or if the file is not safetensors or
    exceeds 64 GiB.
    """
    from safetensors import SafetensorError, deserialize

    _check_size(path.stat().st_size)
    raw = path.read_bytes()
    try:
        found = deserialize(raw)  # type: ignore[no-untyped-call]
    except SafetensorError as error:
        raise ProbeError(f"{path.name} is not a safetensors file: {error}") from error
    begins = tuple(name[:-1] for name in wanted if name.endswith("*"))
    chosen = {name: t for name, t in found if name in wanted or (begins and name.startswith(begins))}
    if not chosen:
        names = ", ".join(sorted(name for name, _ in found)[:8])
        raise ProbeError(f"{path.name} {absent}: none of {', '.join(wanted)}; it has {names or 'nothing'}")
    tensors = {name: _float32(name, t) for name, t in chosen.items()}
    return Checkpoint(_metadata(raw), tensors, {name: t["dtype"] for name, t in chosen.items()})


def read_npz(path: Path, wanted: Collection[str]) -> dict[str, np.ndarray]:
    """Return those of the `wanted` arrays that exist, as float32.

    Raises ProbeError for pickled objects, values that are not finite floats, arrays that are larger than the archive says or
    than their own header allows, and archives that unpack to more than 64 GiB.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = {entry.filename: entry.file_size for entry in archive.infolist()}
            _check_size(sum(sizes.values()))  # the declared unpacked size
            for name in wanted:
                _check_npy(archive, f"{name}.npy", sizes)
        with np.load(path, allow_pickle=False) as arrays:
            return {name: _numbers(name, arrays[name]) for name in arrays.files if name in wanted}
    except (zipfile.BadZipFile, ValueError, EOFError, NotImplementedError, RuntimeError, MemoryError) as error:
        if isinstance(error, ProbeError):
            raise
        raise ProbeError(f"{path.name} is not a numpy archive of plain numbers: {error}") from error


def refuse_pickle(name: str) -> ProbeError:
    """Return the error for a file of pickled Python objects, with the command that converts it."""
    stem = name.rpartition(".")[0] or name
    command = (
        "import sys, torch; from safetensors.torch import save_file; "
        "state = torch.load(sys.argv[1], map_location='cpu', weights_only=True); "
        "save_file({k: v.contiguous().clone() for k, v in state.items()}, sys.argv[2])"
    )
    return ProbeError(
        f"{name} is a pickle, which can run code when it is opened; its tensors are read from {stem}.safetensors. Where torch "
        f'is installed, convert it (tensors only, no code is run):\n  python -c "{command}" {name} {stem}.safetensors'
    )


def _check_size(size: int) -> None:
    if size > MAX_BYTES:
        raise ProbeError(f"the file is larger than {MAX_BYTES >> 30} GiB")


def _check_npy(archive: zipfile.ZipFile, name: str, sizes: dict[str, int]) -> None:
    """Raise ProbeError if an array's own header declares more bytes than the archive: numpy would allocate them at once."""
    if name not in sizes:
        return
    with archive.open(name) as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
    declared = dtype.itemsize
    for size in shape:
        declared *= size
    if declared > sizes[name]:
        raise ProbeError(f"array {name} declares {declared} bytes and has {sizes[name]}")


class _RawTensor(TypedDict):
    """A tensor as `safetensors.deserialize` gives it."""

    dtype: str
    shape: list[int]
    data: bytes


class _Header(msgspec.Struct):
    """The part of a safetensors header that is not about tensors."""

    metadata: dict[str, str] | None = msgspec.field(name="__metadata__", default=None)


def _metadata(raw: bytes) -> dict[str, str]:
    try:
        return msgspec.json.decode(raw[8 : 8 + int.from_bytes(raw[:8], "little")], type=_Header).metadata or {}
    except (msgspec.DecodeError, RecursionError) as error:
        raise ProbeError(f"the header's __metadata__ is not an object of strings: {error}") from error


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
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite, and is refused below
        values = array.astype(np.float32, copy=False)
    if not np.isfinite(values).all():
        raise ProbeError(f"tensor {name} holds NaN or infinity (as float32)")
    return values
