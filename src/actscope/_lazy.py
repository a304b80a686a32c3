"""Names of a package that load their module on first use, so that importing the package stays light."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import reduce
from importlib import import_module
from typing import Any

from actscope.errors import MissingExtra

#: Packages that a module of ours may lack, and the extra that installs them.
_EXTRAS = {
    "crc32c": "record",
    "fastapi": "gateway",
    "lz4": "record",
    "mcap": "record",
    "obstore": "harvest",
    "torch": "hf",
    "transformers": "hf",
    "uvicorn": "gateway",
    "zstandard": "record",
}


def attach(package: str, homes: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Make `__getattr__` and `__dir__` for a package whose names load on first use.

    Args:
        package: The package's `__name__`.
        homes: For each public name, where it is: "module:attribute", "module:Class.method", or "module" itself.

    Returns:
        The package's `__getattr__` and `__dir__`. The former raises MissingExtra, with the exact install line, where an
        optional dependency is not installed, and AttributeError for an unknown name.
    """

    def load(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}; it has {', '.join(sorted(homes))}")
        module, _, path = homes[name].partition(":")
        try:
            home = import_module(module)
        except ModuleNotFoundError as error:
            missing = (error.name or "").partition(".")[0]
            if missing not in _EXTRAS:
                raise
            raise MissingExtra(_EXTRAS[missing], missing) from error
        found = reduce(getattr, path.split("."), home) if path else home
        setattr(sys.modules[package], name, found)
        return found

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *homes})

    return load, names
