"""Reads tensors from untrusted files as float32, without unpickling. Sizes are capped before allocation."""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, BinaryIO, NamedTuple, TypeVar

import msgspec
import numpy as np

from actscope.errors import ProbeError
from actscope.runtime.decoding import as_own_error, decode_json
from actscope.runtime.memory import check_room
from actscope.runtime.regular_files import open_regular, read_regular

#: Largest file. The largest published SAEs have 2 x 15 GiB; a tensor is read only if it fits into the memory of this machine.
MAX_BYTES = 64 << 30
#: Most that weights are compressed in an archive; smaller arrays, such as zero biases, are exempt.
_MOST_PACKING, _SMALL = 50, 16 << 20
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
    raw = read_regular(path, _MAX_JSON, ProbeError)
    return decode_json(raw, kind, ProbeError, f"{path.name} is not a JSON object of this layout")


def read_safetensors(path: Path, wanted: Collection[str], absent: str = "holds no encoder") -> Checkpoint:
    """Return the metadata and those of the `wanted` tensors that exist, as float32.

    A name in `wanted` that ends with `*` stands for all names that begin with it. Includes bfloat16, which numpy's own
    safetensors reader lacks. `absent` begins the message if none of them exists.

    Only these tensors are read, and only after the header was held against the file's size and their sizes against the memory.
    Raises ProbeError if none exists, if a tensor is not finite or not floating-point, or if the file is not safetensors, exceeds
    64 GiB, or its tensors do not fit into memory.
    """
    with os.fdopen(open_regular(path, ProbeError), "rb") as file:
        metadata, found, start = _header(file, path.name)
        begins = tuple(name[:-1] for name in wanted if name.endswith("*"))
        chosen = {name: t for name, t in found.items() if name in wanted or (begins and name.startswith(begins))}
        if not chosen:
            names = ", ".join(sorted(found)[:8])
            raise ProbeError(f"{path.name} {absent}: none of {', '.join(wanted)}; it has {names or 'nothing'}")
        check_room(sum(map(_memory_of, chosen.values())), ProbeError, f"{path.name}: reading {', '.join(chosen)}")
        tensors = {name: _float32(name, t, _read(file, start, t, path.name)) for name, t in chosen.items()}
    return Checkpoint(metadata, tensors, {name: t.dtype for name, t in chosen.items()})


def read_npz(path: Path, wanted: Collection[str]) -> dict[str, np.ndarray]:
    """Return those of the `wanted` arrays that exist, as float32.

    Raises ProbeError for pickled objects, values that are not finite floats, arrays that are larger than the archive says or
    than their own header allows, and archives that unpack to more than 64 GiB.
    """
    what = f"{path.name} is not a numpy archive of plain numbers"
    with as_own_error(ProbeError, what), os.fdopen(open_regular(path, ProbeError), "rb") as file:
        with zipfile.ZipFile(file) as archive:
            sizes = {entry.filename: entry.file_size for entry in archive.infolist()}
            packed = {entry.filename: entry.compress_size for entry in archive.infolist()}
            chosen = [f"{name}.npy" for name in wanted if f"{name}.npy" in sizes]
            for name in chosen:
                _check_packing(name, sizes[name], packed[name])
                check_npy(archive, name, sizes)
            # each is read whole, and converted if it is of another precision
            check_room(2 * sum(sizes[name] for name in chosen), ProbeError, f"{path.name}: reading {', '.join(chosen)}")
        file.seek(0)
        with np.load(file, allow_pickle=False) as arrays:
            return {name: _numbers(name, arrays[name]) for name in arrays.files if name in wanted}


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


def _check_packing(name: str, size: int, packed: int) -> None:
    """Raise ProbeError if an entry of an archive unpacks to more than weights do: their mantissas hardly compress."""
    if size > MAX_BYTES or size > _MOST_PACKING * packed + _SMALL:
        raise ProbeError(f"array {name} says that its {packed} bytes unpack to {size}, which no array of weights does")


def check_npy(archive: zipfile.ZipFile, name: str, sizes: dict[str, int]) -> None:
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
    if dtype.hasobject:
        raise ProbeError(f"array {name} holds Python objects, which are pickled: not a numpy archive of plain numbers")
    if declared > sizes[name]:
        raise ProbeError(f"array {name} declares {declared} bytes and has {sizes[name]}")


class _StoredTensor(msgspec.Struct):
    """A tensor of a safetensors header: its dtype, shape, and place after the header."""

    dtype: str
    shape: list[Annotated[int, msgspec.Meta(ge=0, le=1 << 48)]]
    data_offsets: tuple[int, int]

    @property
    def n_bytes(self) -> int:
        """Size of its data in the file."""
        return self.data_offsets[1] - self.data_offsets[0]


def _header(file: BinaryIO, name: str) -> tuple[dict[str, str], dict[str, _StoredTensor], int]:
    """Return the metadata and the tensors of a safetensors file, and the offset of their data.

    Raises ProbeError if the header is malformed, a tensor is not wholly in the file, or two of them share bytes.
    """
    what = f"{name} is not a safetensors file"
    size, length = os.fstat(file.fileno()).st_size, int.from_bytes(file.read(8), "little")
    if size > MAX_BYTES:
        raise ProbeError(f"{name} is larger than {MAX_BYTES >> 30} GiB")
    if size < 8 or length > min(_MAX_JSON, size - 8):
        raise ProbeError(f"{what}: its header claims {length} bytes of {size}; at most {_MAX_JSON} are accepted")
    raw = decode_json(file.read(length), dict[str, msgspec.Raw], ProbeError, what)
    text = raw.pop("__metadata__", None)
    metadata = (
        {}
        if text is None or bytes(text) == b"null"
        else decode_json(text, dict[str, str], ProbeError, f"{what}: its __metadata__")
    )
    tensors = {
        key: decode_json(one, _StoredTensor, ProbeError, f"{what}: tensor {key[:80]!r}") for key, one in raw.items()
    }
    end = 0
    for key, tensor in sorted(tensors.items(), key=lambda item: item[1].data_offsets):
        begin, after = tensor.data_offsets
        if not end <= begin <= after <= size - 8 - length:
            raise ProbeError(f"{what}: tensor {key[:80]!r} is at bytes {begin} to {after}, not in the file alone")
        end = after
    return metadata, tensors, 8 + length


def _memory_of(tensor: _StoredTensor) -> int:
    """Return the bytes that reading a tensor takes: its own, a float32 copy of other dtypes, and the check for NaN."""
    count = math.prod(tensor.shape)
    return tensor.n_bytes + (0 if tensor.dtype == "F32" else 8 * count) + count


def _read(file: BinaryIO, start: int, tensor: _StoredTensor, name: str) -> bytes:
    file.seek(start + tensor.data_offsets[0])
    data = file.read(tensor.n_bytes)
    if len(data) != tensor.n_bytes:
        raise ProbeError(f"{name}: the file was cut while it was read")
    return data


def _float32(name: str, tensor: _StoredTensor, data: bytes) -> np.ndarray:
    dtype = _DTYPES.get(tensor.dtype)
    if dtype is None:
        raise ProbeError(f"tensor {name} is {tensor.dtype}; expected one of {', '.join(_DTYPES)}")
    if math.prod(tensor.shape) * np.dtype(dtype).itemsize != len(data):
        raise ProbeError(f"tensor {name} of shape {tensor.shape} and dtype {tensor.dtype} has {len(data)} bytes")
    flat = np.frombuffer(data, dtype)
    if tensor.dtype == "BF16":  # bfloat16 is the upper half of a float32
        flat = (flat.astype(np.uint32) << 16).view(np.float32)
    return _numbers(name, flat.reshape(tensor.shape))


def _numbers(name: str, array: np.ndarray) -> np.ndarray:
    if array.dtype.kind != "f":
        raise ProbeError(f"tensor {name} is {array.dtype}; expected floating-point numbers")
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite, and is refused below
        values = array.astype(np.float32, copy=False)
    if not np.isfinite(values).all():
        raise ProbeError(f"tensor {name} holds NaN or infinity (as float32)")
    return values
