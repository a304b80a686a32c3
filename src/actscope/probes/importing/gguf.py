"""Reader of small GGUF files: control vectors. Nothing is allocated that the file does not hold.

The format is ggml's: a header, key-value pairs, descriptions of tensors, and their data at an aligned offset
(https://github.com/ggml-org/ggml/blob/master/docs/gguf.md). Models are recognised by their architecture and refused.
"""

from __future__ import annotations

import math
import os
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from actscope.errors import ProbeError
from actscope.runtime.regular_files import open_regular

MAX_FILE_BYTES = 64 << 20
_MAX_TENSORS = 1 << 14
_MAX_ENTRIES = 1 << 16
_MAX_NESTING = 4
_MAX_NAME = 1024
_DEFAULT_ALIGNMENT = 32
_STRING, _ARRAY = 8, 9
#: Scalar types of values, by their code, as struct formats.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
#: Types of tensors that are read, by their code: dtype and name.
_TENSORS = {0: (np.float32, "F32"), 1: (np.float16, "F16"), 28: (np.float64, "F64"), 30: (np.uint16, "BF16")}

Value = int | float | bool | str | None


@dataclass(frozen=True, slots=True, eq=False)
class GgufFile:
    """Content of a GGUF file.

    Attributes:
        values: Scalars and strings by key; None for an array.
        kinds: Code of each value's type, such as 4 (uint32) or 5 (int32).
        tensors: float32 arrays in the order of the file, by name.
    """

    values: dict[str, Value]
    kinds: dict[str, int]
    tensors: dict[str, np.ndarray]


def read_gguf(path: Path, architecture: str) -> GgufFile:
    """Read a GGUF file of this architecture.

    Raises:
        ProbeError: The file is of another architecture, exceeds 64 MiB, declares more than it holds, has a tensor twice or one
            of another type than F32, F16, BF16 and F64, or is otherwise malformed.
        OSError: The file cannot be read.
    """
    with os.fdopen(open_regular(path, ProbeError), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        cursor = _GgufCursor(file.read(MAX_FILE_BYTES))
    if cursor.take(4) != b"GGUF":
        raise ProbeError("not a GGUF file")
    version = cursor.number("I")
    if version not in (2, 3):
        raise ProbeError(f"GGUF version {version} (or another byte order): versions 2 and 3, little-endian, are read")
    n_tensors, n_entries = cursor.number("Q"), cursor.number("Q")
    if n_tensors > _MAX_TENSORS or n_entries > _MAX_ENTRIES:
        raise ProbeError(f"it declares {n_tensors} tensors and {n_entries} values, more than a control vector has")
    values, kinds = _entries(cursor, n_entries, architecture)
    if size > MAX_FILE_BYTES:
        raise ProbeError(f"the file is larger than {MAX_FILE_BYTES >> 20} MiB")
    alignment = values.get("general.alignment", _DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or not 0 < alignment <= 1 << 20 or alignment & (alignment - 1):
        raise ProbeError(f"general.alignment must be a power of two, found {alignment!r}")
    return GgufFile(values, kinds, _tensors(cursor, n_tensors, alignment))


def _entries(cursor: _GgufCursor, count: int, architecture: str) -> tuple[dict[str, Value], dict[str, int]]:
    """Return the values and the codes of their types. Stops with an error at once at a model's architecture."""
    values: dict[str, Value] = {}
    kinds: dict[str, int] = {}
    for _ in range(count):
        key, kind = cursor.text(_MAX_NAME), cursor.number("I")
        if key in values:
            raise ProbeError(f"the value {key!r} occurs twice")
        kinds[key], values[key] = kind, cursor.value(kind)
        if key == "general.architecture" and values[key] != architecture:
            raise ProbeError(
                f"a GGUF file of architecture {str(values[key])[:50]!r}, a model; expected architecture {architecture!r}"
            )
    if "general.architecture" not in values:
        raise ProbeError(f"a GGUF file that names no architecture; expected {architecture!r}")
    return values, kinds


def _tensors(cursor: _GgufCursor, count: int, alignment: int) -> dict[str, np.ndarray]:
    described = [_Described.read(cursor) for _ in range(count)]
    start = -(-cursor.at // alignment) * alignment
    found: dict[str, np.ndarray] = {}
    if sum(math.prod(one.shape) for one in described) * 2 > len(cursor.raw):  # tensors may not share their data
        raise ProbeError(f"its tensors declare more numbers than {len(cursor.raw)} bytes hold")
    for one in described:
        if one.name in found:
            raise ProbeError(f"the tensor {one.name!r} occurs twice")
        found[one.name] = one.data(cursor.raw, start)
    return found


@dataclass(frozen=True, slots=True)
class _Described:
    """A tensor's description: its shape (outermost first), type and offset in the data."""

    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int

    @classmethod
    def read(cls, cursor: _GgufCursor) -> _Described:
        name, n_dims = cursor.text(_MAX_NAME), cursor.number("I")
        if n_dims > 4:
            raise ProbeError(f"tensor {name!r} has {n_dims} dimensions, more than 4")
        shape = tuple(cursor.number("Q") for _ in range(n_dims))
        return cls(name, shape[::-1], cursor.number("I"), cursor.number("Q"))

    def data(self, raw: bytes, start: int) -> np.ndarray:
        """Return the numbers as float32. Raises ProbeError if they are not all in the file, or not finite."""
        if self.kind not in _TENSORS:
            known = ", ".join(name for _, name in _TENSORS.values())
            raise ProbeError(f"tensor {self.name!r} has type {self.kind}; expected one of {known}, not quantised")
        dtype, name = _TENSORS[self.kind]
        count = math.prod(self.shape)  # of Python's integers: it does not overflow
        first = start + self.offset
        if first + count * np.dtype(dtype).itemsize > len(raw):
            raise ProbeError(f"tensor {self.name!r} declares {list(self.shape)} numbers; the file ends before")
        flat = np.frombuffer(raw, np.dtype(dtype).newbyteorder("<"), count, first)
        if name == "BF16":
            flat = (flat.astype(np.uint32) << 16).view(np.float32)
        with np.errstate(over="ignore"):
            numbers = flat.astype(np.float32).reshape(self.shape)
        if not np.isfinite(numbers).all():
            raise ProbeError(f"tensor {self.name!r} holds NaN or infinity")
        return numbers


class _GgufCursor:
    """Place in the bytes of a file. Reading beyond the end is a ProbeError."""

    def __init__(self, raw: bytes) -> None:
        self.raw, self.at = raw, 0

    def take(self, size: int) -> bytes:
        """Return the next bytes."""
        if size > len(self.raw) - self.at:
            raise ProbeError(f"the file ends at byte {len(self.raw)}; {size} more were declared at {self.at}")
        found = self.raw[self.at : self.at + size]
        self.at += size
        return found

    def number(self, form: str) -> int:
        """Return the next integer of a struct format."""
        return int(struct.unpack(f"<{form}", self.take(struct.calcsize(f"<{form}")))[0])

    def text(self, most: int = 1 << 20) -> str:
        """Return the next string, of at most this many bytes."""
        size = self.number("Q")
        if size > min(most, len(self.raw) - self.at):
            raise ProbeError(
                f"a string at byte {self.at} declares {size} bytes; at most {most}, and those of the file, are read"
            )
        try:
            return self.take(size).decode()
        except UnicodeDecodeError as error:
            raise ProbeError(f"a string is not UTF-8: {error}") from error

    def value(self, kind: int, nesting: int = 0) -> Value:
        """Return the next value of this type; None for an array, which is skipped."""
        if kind == _STRING:
            return self.text()
        if kind == _ARRAY:
            self._skip_array(nesting)
            return None
        if kind not in _SCALARS:
            raise ProbeError(f"a value has the unknown type {kind}")
        form = f"<{_SCALARS[kind]}"
        found: Value = struct.unpack(form, self.take(struct.calcsize(form)))[0]
        return found

    def _skip_array(self, nesting: int) -> None:
        kind, count = self.number("I"), self.number("Q")
        if nesting >= _MAX_NESTING:
            raise ProbeError(f"arrays are nested more than {_MAX_NESTING} deep")
        if kind in _SCALARS:
            self.take(count * struct.calcsize(f"<{_SCALARS[kind]}"))
            return
        if count * 8 > len(self.raw) - self.at:  # a string or an array takes 8 bytes at least
            raise ProbeError(f"an array declares {count} values; the file ends before")
        for _ in range(count):
            self.value(kind, nesting + 1)
