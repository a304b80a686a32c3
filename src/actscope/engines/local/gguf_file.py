"""The metadata and the table of tensors of a GGUF file, checked before anything is allocated for them.

GGUF is llama.cpp's format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. A file is untrusted: every count and length
is compared with a limit and with the size of the file.

    magic "GGUF" | version u32 | tensors u64 | keys u64
    keys x (name, type u32, value)
    tensors x (name, dimensions u32, dimensions x size u64, type u32, offset u64)
    padding | data of the tensors, each at its offset from here
"""

from __future__ import annotations

import mmap
import re
import struct
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import prod
from pathlib import Path

from actscope.errors import EngineError, MissingExtra

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_KEYS, MAX_TENSORS, MAX_DIMENSIONS = 10_000, 100_000, 4
MAX_STRING_BYTES = 16 << 20
#: Elements of all arrays together. The largest vocabularies have 262,144 tokens and half a million merges.
MAX_ELEMENTS = 8_000_000
#: Blocks of a model, and experts of a block. Each becomes many objects in memory before a weight is read.
MAX_BLOCKS, MAX_EXPERTS = 1024, 4096
#: The tensor of Llama 3.1 and later that scales rotary frequencies, one number for each pair of dimensions of a head.
ROTARY_DIVISORS = "rope_freqs.weight"
MAX_DIVISORS = 4096

Value = int | float | bool | str | Sequence["Value"]

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_FLOAT32 = 0  # the type of a tensor
_PART = re.compile(r"-\d{5}-of-\d{5}$")


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One entry of the table: name, sizes (fastest first), type of ggml, offset from the start of the data."""

    name: str
    sizes: tuple[int, ...]
    type: int
    offset: int

    @property
    def n_elements(self) -> int:
        """Number of weights."""
        return prod(self.sizes)


@dataclass(frozen=True, slots=True)
class GgufModelFile:
    """A checked GGUF file.

    Attributes:
        path: The file.
        metadata: Its keys and values.
        tensors: Its table of tensors.
        rotary_divisors: What the model's rotary frequencies are divided by (`rope_freqs.weight`); empty without that tensor.
    """

    path: Path
    metadata: dict[str, Value]
    tensors: tuple[GgufTensor, ...]
    rotary_divisors: tuple[float, ...] = ()

    @property
    def architecture(self) -> str:
        """The architecture in llama.cpp's words, such as "llama" or "qwen3"."""
        return str(self.metadata["general.architecture"])

    @property
    def n_elements(self) -> int:
        """Number of weights of all tensors."""
        return sum(tensor.n_elements for tensor in self.tensors)

    def number(self, key: str) -> int | None:
        """Return an integer of the metadata; None if it is absent. Raises EngineError if it is something else."""
        value = self.metadata.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise EngineError(f"{self.path}: {key!r}: expected a whole number, found {str(value)[:40]!r}")
        return value

    def strings(self, key: str) -> list[str]:
        """Return an array of strings of the metadata; empty if it is absent. Raises EngineError if it is something else."""
        value = self.metadata.get(key, [])
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            raise EngineError(f"{self.path}: {key!r}: expected an array of strings, found {str(value)[:40]!r}")
        return [str(one) for one in value]


def is_gguf(model: str) -> bool:
    """Return whether a model's name is that of a GGUF file: by its suffix, or by its first bytes (files without suffix)."""
    path = Path(model)
    if path.suffix.lower() == ".gguf":
        return not path.is_dir()
    try:
        with path.open("rb") as file:
            return path.is_file() and file.read(4) == MAGIC
    except OSError:
        return False


def read_gguf(path: Path) -> GgufModelFile:
    """Read and check the head of a GGUF file. No tensor is read.

    Raises:
        EngineError: The file is absent, no GGUF file, damaged, one part of several, or beyond a limit.
        MissingExtra: The package `gguf`, which knows the types of tensors, is not installed.
    """
    if not path.is_file():
        raise EngineError(f"{path}: no such file; expected a GGUF file")
    if _PART.search(path.stem):
        raise _one_of_several(path)
    if path.stat().st_size < 24:
        raise EngineError(f"{path}: expected a GGUF file, found {path.stat().st_size} bytes; download it again")
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Walk(path, data).file()
    except OSError as error:
        raise EngineError(f"{path}: cannot be read: {error.strerror or error}") from error


def _one_of_several(path: Path) -> EngineError:
    return EngineError(
        f"{path}: one part of a model in several files, which transformers does not read: merge them with llama.cpp's "
        "`llama-gguf-split --merge FIRST-PART.gguf WHOLE.gguf` and give the whole file"
    )


class _Walk:
    """One pass over the head of a file. Every read is checked against the end of the file."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self._path = path
        self._data = data
        self._at = 0
        self._elements = 0

    def file(self) -> GgufModelFile:
        if (magic := self._bytes(4)) != MAGIC:
            raise self._wrong("the bytes 'GGUF'", repr(magic))
        version = self._number("<I")
        if version not in VERSIONS:
            raise self._wrong(f"version {' or '.join(map(str, VERSIONS))}", f"{version}; convert the model again")
        n_tensors, n_keys = self._count("tensors", MAX_TENSORS), self._count("keys", MAX_KEYS)
        metadata = self._metadata(n_keys)
        tensors = tuple(self._tensor() for _ in range(n_tensors))
        found = GgufModelFile(self._path, metadata, tensors)
        self._check_names(found)
        self._check_sizes(found)
        start = self._check_data(found)
        return replace(found, rotary_divisors=self._rotary_divisors(found, start))

    def _metadata(self, n: int) -> dict[str, Value]:
        metadata: dict[str, Value] = {}
        for _ in range(n):
            key = self._string()
            if key in metadata:
                raise self._wrong("each key once", f"{key[:80]!r} twice")
            metadata[key] = self._value(self._number("<I"))
        return metadata

    def _value(self, kind: int, depth: int = 0) -> Value:
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY and depth < 2:
            element, n = self._number("<I"), self._count("elements", MAX_ELEMENTS)
            self._elements += n
            if self._elements > MAX_ELEMENTS:
                raise self._wrong(f"at most {MAX_ELEMENTS:,} elements in all arrays", f"{self._elements:,}")
            if element in _SCALARS:
                form = f"<{n}{_SCALARS[element][1]}"
                return list(struct.unpack(form, self._bytes(struct.calcsize(form))))
            return [self._value(element, depth + 1) for _ in range(n)]
        if kind not in _SCALARS:
            raise self._wrong("the type of a value", str(kind))
        scalar: int | float | bool = struct.unpack(_SCALARS[kind], self._bytes(struct.calcsize(_SCALARS[kind])))[0]
        return scalar

    def _tensor(self) -> GgufTensor:
        name = self._string()
        n = self._number("<I")
        if not 1 <= n <= MAX_DIMENSIONS:
            raise self._wrong(f"1 to {MAX_DIMENSIONS} dimensions of tensor {name[:80]!r}", str(n))
        sizes = tuple(self._number("<Q") for _ in range(n))
        return GgufTensor(name, sizes, self._number("<I"), self._number("<Q"))

    def _check_names(self, found: GgufModelFile) -> None:
        if not isinstance(found.metadata.get("general.architecture"), str) or not found.architecture:
            raise self._wrong("'general.architecture' in the metadata", "none; it is no language model")
        twice = [name for name, n in Counter(tensor.name for tensor in found.tensors).items() if n > 1]
        if twice:
            raise self._wrong("each tensor once", f"{twice[0][:80]!r} twice")
        if (found.number("split.count") or 0) > 1:
            raise _one_of_several(self._path)  # a part that was renamed

    def _check_sizes(self, found: GgufModelFile) -> None:
        """Compare what the metadata says of the model's size with limits, and with the tensors."""
        blocks = found.number(f"{found.architecture}.block_count") or 0
        there = {tensor.name.split(".")[1] for tensor in found.tensors if tensor.name.startswith("blk.")}
        if not 1 <= blocks <= MAX_BLOCKS or blocks > len(there):
            raise self._wrong(
                f"1 to {MAX_BLOCKS} blocks with tensors", f"{blocks} in the metadata, {len(there)} in the table"
            )
        experts = found.number(f"{found.architecture}.expert_count") or 0
        if not 0 <= experts <= MAX_EXPERTS:
            raise self._wrong(f"at most {MAX_EXPERTS} experts", str(experts))

    def _check_data(self, found: GgufModelFile) -> int:
        """Compare every tensor's place with the end of the file. Return where the data of the tensors begins."""
        block_of = _block_sizes()
        alignment = found.number("general.alignment") or 32
        if not 1 <= alignment <= 1 << 20:
            raise self._wrong("an alignment of 1 byte to 1 MiB", str(alignment))
        start = -(-self._at // alignment) * alignment
        spans: list[tuple[int, int, str]] = []
        for tensor in found.tensors:
            if tensor.type not in block_of:
                raise self._wrong(
                    f"a known type of tensor {tensor.name[:80]!r}", f"{tensor.type}; update the package gguf"
                )
            elements, size = block_of[tensor.type]
            if tensor.n_elements == 0 or tensor.sizes[0] % elements:
                raise self._wrong(f"rows of {elements} weights in {tensor.name[:80]!r}", str(list(tensor.sizes)))
            end = start + tensor.offset + tensor.n_elements // elements * size
            if end > len(self._data):
                raise self._wrong(
                    f"tensor {tensor.name[:80]!r} to end before {end:,}",
                    f"a file of {len(self._data):,} bytes",
                )
            spans.append((start + tensor.offset, end, tensor.name[:80]))
        self._check_apart(sorted(spans))
        return start

    def _check_apart(self, spans: Sequence[tuple[int, int, str]]) -> None:
        """Refuse tensors that share bytes: a small file could hold any number of weights. `spans` are sorted by begin."""
        for (_, end, one), (begin, _, other) in pairwise(spans):
            if begin < end:
                raise self._wrong(
                    f"each tensor's data apart from the others', {other!r} at {end:,} or later",
                    f"it at {begin:,} in {one!r}",
                )

    def _rotary_divisors(self, found: GgufModelFile, start: int) -> tuple[float, ...]:
        tensor = next((one for one in found.tensors if one.name == ROTARY_DIVISORS), None)
        if tensor is None:
            return ()
        if tensor.type != _FLOAT32 or tensor.n_elements > MAX_DIVISORS:
            raise self._wrong(
                f"at most {MAX_DIVISORS} float32 in {ROTARY_DIVISORS!r}", f"{tensor.n_elements} of type {tensor.type}"
            )
        return struct.unpack_from(f"<{tensor.n_elements}f", self._data, start + tensor.offset)

    def _count(self, what: str, most: int) -> int:
        n = self._number("<Q")
        if n > most:
            raise self._wrong(f"at most {most:,} {what}", f"{n:,}")
        return n

    def _number(self, form: str) -> int:
        return int(struct.unpack(form, self._bytes(struct.calcsize(form)))[0])

    def _string(self) -> str:
        length = self._count("bytes of a string", MAX_STRING_BYTES)
        raw = self._bytes(length)
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            raise self._wrong("text in UTF-8", f"{raw[:40]!r}") from error

    def _bytes(self, n: int) -> bytes:
        if self._at + n > len(self._data):
            raise self._wrong(f"{n:,} more bytes", f"the end of the file at {len(self._data):,}; download it again")
        self._at += n
        return self._data[self._at - n : self._at]

    def _wrong(self, expected: str, found: str) -> EngineError:
        return EngineError(f"{self._path}, byte {self._at:,}: expected {expected}, found {found}")


def _block_sizes() -> dict[int, tuple[int, int]]:
    """Return (weights, bytes) of one block of each type of tensor."""
    try:
        from gguf.constants import GGML_QUANT_SIZES
    except ModuleNotFoundError as error:
        raise MissingExtra("gguf", error.name or "gguf") from error
    return {int(kind): (int(elements), int(size)) for kind, (elements, size) in GGML_QUANT_SIZES.items()}
