"""Texts in files and on the Hugging Face hub: a column of a table that the package `datasets` memory-maps."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from glob import glob
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from actscope.errors import ActscopeError, MissingExtra, SettingsError
from actscope.extraction.dataset_files import SPLITS, STATE, check_json, check_saved
from actscope.extraction.quiet import quiet
from actscope.runtime.decoding import MALFORMED, reason_of

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

#: The loader of `datasets` for a file, by its name's suffix. A suffix of compression may follow.
_READERS = {
    ".txt": "text",
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
_COMPRESSED = (".gz", ".zst", ".xz", ".bz2")
_AT_ONCE = 10_000
_GLOB = re.compile(r"[*?\[]")


class TextColumn:
    """A dataset of texts in one column of memory-mapped files. A null reads as an empty text."""

    def __init__(self, name: str, dataset: Dataset, column: str) -> None:
        self.name = name
        self._column = column
        self._dataset = dataset

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the texts alone, in hex: independent of the files' names, their format and their division.

        The first access reads the whole column, at about 1 GB/s. BLAKE2b was a third as fast as SHA-256, for which CPUs have
        instructions. Raises SettingsError for a file that is damaged.
        """
        texts, lengths = sha256(), sha256()
        with _as_settings_error(self.name):
            for values in self._columns():
                texts.update(_joined(values))
                lengths.update(_lengths(values))
        return sha256(texts.digest() + lengths.digest()).hexdigest()[:32]

    def __len__(self) -> int:
        return len(self._dataset)

    def read(self, numbers: Sequence[int]) -> list[str]:
        """Read the texts with these numbers from the mapped files. Raises SettingsError for a file that is damaged."""
        if any(not -len(self) <= number < len(self) for number in numbers):
            raise IndexError(f"expected numbers of {len(self)} texts, found {list(numbers)[:10]}")
        with _as_settings_error(self.name):
            found = self._dataset[[int(number) for number in numbers]][self._column] if len(numbers) else []
        return [text or "" for text in found]

    def _columns(self) -> Iterator[pa.LargeStringArray]:
        """Yield the column in chunks: pyarrow arrays of large_string without nulls."""
        import pyarrow as pa
        import pyarrow.compute as pc

        for part in self._dataset.with_format("arrow").iter(batch_size=_AT_ONCE):
            for chunk in part.column(self._column).chunks:
                yield pc.fill_null(chunk.cast(pa.large_string()), "")


def _joined(values: pa.LargeStringArray) -> memoryview:
    """Return the concatenated UTF-8 bytes of a large_string array."""
    _, offsets, data = values.buffers()
    ends = memoryview(offsets).cast("q")[values.offset : values.offset + len(values) + 1]
    return memoryview(data or b"")[ends[0] : ends[-1]]


def _lengths(values: pa.LargeStringArray) -> bytes:
    import pyarrow.compute as pc

    found: bytes = pc.binary_length(values).to_numpy(zero_copy_only=False).astype("<i8").tobytes()
    return found


def open_table(spec: str, *, split: str, column: str, n: int | None) -> TextColumn:
    """Open a column of files or of a dataset of the hub; see `open_texts`."""
    try:
        import datasets  # noqa: F401  # the first use, so that what is missing is said before anything is read
    except ModuleNotFoundError as error:
        raise MissingExtra("feed", "datasets") from error
    with quiet(), _as_settings_error(spec):
        found = _load(spec, split)
    _check_column(spec, found, column)
    if not len(found):
        raise SettingsError(f"texts {spec!r}: there is no text in it")
    chosen = found.select_columns(column)
    return TextColumn(spec, chosen if n is None else chosen.select(range(min(n, len(chosen)))), column)


@contextmanager
def _as_settings_error(spec: str) -> Iterator[None]:
    """Turn what `datasets`, pyarrow and the decompressors raise for a file that is absent or damaged into SettingsError."""
    from datasets.exceptions import DatasetsError

    try:
        yield
    except ActscopeError:
        raise
    except (OSError, StopIteration, DatasetsError, *MALFORMED) as error:
        raise SettingsError(f"texts {spec!r}: {_reason(error)}") from error


def _load(spec: str, split: str) -> Dataset:
    from datasets import load_dataset, load_dataset_builder

    try:
        path = Path(spec).expanduser()
    except RuntimeError as error:
        raise SettingsError(
            f"texts {spec!r}: there is no home directory for ~: set HOME, or give the whole path"
        ) from error
    if path.is_dir() and any((path / name).is_file() for name in (STATE, SPLITS)):
        return _saved(spec, path, split)
    files = _files(spec, path)
    if files:
        reader, names = _reader(spec, files), [str(file) for file in files]
        if reader == "json" and not Path(load_dataset_builder(reader, data_files=names).cache_dir).exists():
            check_json(files)  # not again for files that `datasets` has in its cache
        return load_dataset(reader, data_files=names, split=split)
    name, _, config = spec.partition(":")
    return load_dataset(name, config or None, split=split)


def _reason(error: BaseException) -> str:
    """Return the root cause, which `datasets` wraps in "an error occurred while generating the dataset"."""
    if type(error).__name__ == "SchemaInferenceError":
        return "there is no text in it"
    wraps = type(error).__name__ == "DatasetGenerationError"
    if wraps and error.__cause__ is not None:
        return _reason(error.__cause__)
    return str(error) if isinstance(error, OSError) and str(error) else reason_of(error)


def _saved(spec: str, path: Path, split: str) -> Dataset:
    from datasets import DatasetDict, load_from_disk

    check_saved(path)
    found = load_from_disk(str(path))
    splits = found if isinstance(found, DatasetDict) else {str(found.split or "train"): found}
    if split not in splits:
        raise SettingsError(f"texts {spec!r}: no split {split!r}: expected one of {', '.join(splits)}")
    return splits[split]


def _files(spec: str, path: Path) -> list[Path]:
    """Return the files that `spec` names, sorted; none if it is not a path. Raises SettingsError for a path without files."""
    if path.is_file():
        return [path]
    if path.is_dir():
        found = sorted(file for file in path.rglob("*") if file.is_file() and _ending(file) in _READERS)
    elif _GLOB.search(spec):
        found = sorted(Path(file) for file in glob(str(path), recursive=True) if Path(file).is_file())
    elif spec.startswith((".", "/", "~")) or _ending(path) in _READERS:
        raise SettingsError(f"texts {spec!r}: there is no such file")
    else:
        return []
    if not found:
        raise SettingsError(f"texts {spec!r}: no files there; expected some that end in {', '.join(_READERS)}")
    return found


def _reader(spec: str, files: Sequence[Path]) -> str:
    unknown = next((file for file in files if _ending(file) not in _READERS), None)
    if unknown is not None:
        raise SettingsError(f"texts {spec!r}: {unknown.name}: expected a name that ends in {', '.join(_READERS)}")
    readers = {_READERS[_ending(file)] for file in files}
    if len(readers) > 1:
        raise SettingsError(
            f"texts {spec!r}: files of several kinds ({', '.join(sorted(readers))}); name one with a glob"
        )
    return readers.pop()


def _ending(file: Path) -> str:
    """Return the suffix of the file's name that gives its format, without a suffix of compression."""
    return (file.with_suffix("") if file.suffix in _COMPRESSED else file).suffix.lower()


def _check_column(spec: str, found: Dataset, column: str) -> None:
    if column not in found.column_names:
        raise SettingsError(f"texts {spec!r}: no column {column!r}: its columns are {', '.join(found.column_names)}")
    kind = getattr(found.features[column], "dtype", type(found.features[column]).__name__)
    if kind not in ("string", "large_string"):
        raise SettingsError(f"texts {spec!r}: column {column!r} holds {kind}, expected strings")
