"""Reads models of scikit-learn from `.skops` files: by skops, which builds only types it trusts, and after our own checks."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

from actscope.errors import MissingExtra, ProbeError
from actscope.probes.checkpoint import check_npy
from actscope.runtime.decoding import as_own_error, decode_json
from actscope.runtime.regular_files import read_regular

MAX_FILE_BYTES = 64 << 20
_MAX_UNPACKED = 256 << 20
_MAX_SCHEMA = 16 << 20
_MAX_NODES = 200_000
#: Roots of the modules whose types are built. skops trusts a subset of these itself.
_ROOTS = ("builtins", "collections", "numpy", "scipy", "sklearn")
#: Kinds of nodes that call something while they are loaded. A linear model has none.
_CALLS = ("ConstructorFromReduceNode", "FunctionNode", "MethodNode", "OperatorFuncNode", "PartialNode")


def load_skops(path: Path) -> object:
    """Load the object of a `.skops` file.

    Raises:
        ProbeError: The file is malformed, exceeds 64 MiB or unpacks to more than 256 MiB, or has types that neither we nor skops
            trust. The message names them.
        MissingExtra: skops is not installed.
    """
    try:
        import skops.io
    except ImportError as error:
        raise MissingExtra("probes", "skops") from error
    try:
        _check(path)
        unknown = skops.io.get_untrusted_types(file=path)
        if unknown:
            raise ProbeError(f"it has types that are not known as safe: {', '.join(map(str, unknown))[:500]}")
        return skops.io.load(path, trusted=[])
    except ProbeError as error:
        raise ProbeError(f"{path}: {error}") from error
    except OSError as error:
        raise ProbeError(f"{path}: cannot be read: {error.strerror or error}") from error
    except Exception as error:  # skops raises whatever its nodes run into
        raise ProbeError(
            f"{path}: not a model that skops can load: {type(error).__name__}: {str(error)[:300]}"
        ) from error


def _check(path: Path) -> None:
    """Raise ProbeError for a file that is too large, before anything is built of it, or has types of other packages."""
    with as_own_error(ProbeError, "not a file of skops"):
        raw = io.BytesIO(read_regular(path, MAX_FILE_BYTES, ProbeError))
        with zipfile.ZipFile(raw) as archive:
            entries = archive.infolist()
            sizes = {entry.filename: entry.file_size for entry in entries}
            if sum(entry.file_size for entry in entries) > _MAX_UNPACKED or sizes.get("schema.json", 0) > _MAX_SCHEMA:
                raise ProbeError(f"it unpacks to more than {_MAX_UNPACKED >> 20} MiB")
            for name in sizes:
                if name.endswith(".npy"):
                    check_npy(archive, name, sizes)
            schema = decode_json(archive.read("schema.json"), object, ProbeError, "not a file of skops")
    _check_types(schema)


def _check_types(schema: object) -> None:
    named = set()
    for number, node in enumerate(_nodes(schema)):
        if number > _MAX_NODES:
            raise ProbeError(f"its schema has more than {_MAX_NODES} nodes")
        loader, module = node.get("__loader__"), node.get("__module__")
        if isinstance(module, str) and module.partition(".")[0] not in _ROOTS:
            named.add(f"{module}.{node.get('__class__')}")
        if loader in _CALLS:
            named.add(f"{module}.{node.get('__class__')} ({loader})")
    if named:
        raise ProbeError(f"it has types that a linear model has not: {', '.join(sorted(named))[:500]}")


def _nodes(schema: object) -> Iterator[dict[str, object]]:
    """Iterate over all objects of a schema."""
    waiting = [schema]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            yield one
            waiting += one.values()
        elif isinstance(one, list):
            waiting += one
