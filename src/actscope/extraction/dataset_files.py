"""Checks of the files of a dataset before the package `datasets` opens them.

`datasets` follows the names in a saved dataset wherever they point, and pyarrow's JSON reader ends the process with a
segmentation fault when a block of lines begins with `null` (seen with pyarrow 26.0).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import IO, TypeVar

import msgspec

from actscope.errors import SettingsError
from actscope.runtime.decoding import as_own_error, decode_json
from actscope.runtime.regular_files import read_regular

#: Files that make a directory a dataset of `Dataset.save_to_disk` or `DatasetDict.save_to_disk`.
STATE, SPLITS = "state.json", "dataset_dict.json"
#: Bytes of such a file. A state of 10,000 shards has about 1 MB.
_MOST_BYTES = 64 << 20
_PIECE = 4 << 20
_BOM = b"\xef\xbb\xbf"
#: A line that begins with null. Both line ends count: pyarrow ends its blocks at either.
_NULL_LINE = re.compile(rb"[\r\n][ \t]*null")
#: Compressions that `datasets` recognises by the first bytes, whatever the name says, and their names in fsspec.
_COMPRESSIONS = {b"\x1f\x8b": "gzip", b"BZh": "bz2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstd"}

T = TypeVar("T")


class _Shard(msgspec.Struct):
    filename: str


class _State(msgspec.Struct):
    """`state.json`: what is checked of it."""

    data_files: list[_Shard] = msgspec.field(name="_data_files")


class _Splits(msgspec.Struct):
    """`dataset_dict.json`."""

    splits: list[str]


def check_saved(folder: Path) -> None:
    """Raise SettingsError unless the files of a saved dataset have their form and name only files below `folder`."""
    if not (folder / SPLITS).is_file():
        _check_state(folder)
        return
    for split in _decoded(folder / SPLITS, _Splits).splits:
        _check_name(folder / SPLITS, split)
        if (folder / split / STATE).is_file():  # `datasets` names one that is absent
            _check_state(folder / split)


def _check_state(folder: Path) -> None:
    for shard in _decoded(folder / STATE, _State).data_files:
        _check_name(folder / STATE, shard.filename)


def _decoded(path: Path, kind: type[T]) -> T:
    what = f"{path}: expected what `save_to_disk` of datasets writes; save the dataset again"
    return decode_json(read_regular(path, _MOST_BYTES, SettingsError), kind, SettingsError, what)


def _check_name(path: Path, name: str) -> None:
    """Refuse a name that leaves the folder, or that fsspec would read as the address of something else."""
    parts = PurePosixPath(name).parts
    if not parts or parts[0] == "/" or ".." in parts or any(c in name for c in ":\\\0"):
        raise SettingsError(f"{path}: expected names of files below its folder, found {name[:200]!r}: save it again")


def check_json(files: Sequence[Path]) -> None:
    """Raise SettingsError for a JSON file with a record that is null, which would end the process when it is read."""
    for file in files:
        with as_own_error(SettingsError, str(file), StopIteration), _opened(file) as stream:
            _check_records(file, stream)


def _opened(file: Path) -> IO[bytes]:
    import fsspec

    with file.open("rb") as raw:
        head = raw.read(max(map(len, _COMPRESSIONS)))
    compression = next((name for magic, name in _COMPRESSIONS.items() if head.startswith(magic)), None)
    opened: IO[bytes] = fsspec.open(str(file.absolute()), "rb", compression=compression).open()
    return opened


def _check_records(file: Path, stream: IO[bytes]) -> None:
    piece = stream.read(_PIECE).removeprefix(_BOM)
    if not piece.strip():
        raise SettingsError(f"{file}: there is no text in it")
    if piece.startswith(b"["):  # `datasets` reads such a file as a whole, too
        _check_list(file, piece + stream.read())
        return
    begun = b"\n"  # the line end before the next piece, and up to 4 bytes of the line that the piece continues
    while piece:
        joined = begun + piece
        if _NULL_LINE.search(joined):
            raise _null(file)
        line = joined[max(joined.rfind(b"\n"), joined.rfind(b"\r")) :]
        begun, piece = b"\n" + line.lstrip()[:4], stream.read(_PIECE)


def _check_list(file: Path, data: bytes) -> None:
    firsts = {bytes(one)[:1] for one in decode_json(data, list[msgspec.Raw], SettingsError, str(file))}
    if {b"n", b"{"} <= firsts:
        raise _null(file)


def _null(file: Path) -> SettingsError:
    return SettingsError(f"{file}: expected an object in each record, found null; leave such records out")
