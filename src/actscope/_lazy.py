"""Lazy imports: a package's names import their module on first use, so that importing the package stays cheap."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import reduce
from importlib import import_module
from typing import Any

from actscope.errors import MissingExtra
from actscope.extras import extra_of


def attach(package: str, homes: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Make the module-level `__getattr__` and `__dir__` (PEP 562) of a package whose names load on first use.

    Args:
        package: The package's `__name__`.
        homes: The location of each public name: "module:attribute", "module:Class.method", or "module" for a module.

    Returns:
        The package's `__getattr__` and `__dir__`. `__getattr__` raises MissingExtra, with the exact install line, if an
        optional dependency is not installed, and AttributeError for an unknown name.
    """

    def load(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}; it has {', '.join(sorted(homes))}")
        module, _, path = homes[name].partition(":")
        try:
            home = import_module(module)
        except ModuleNotFoundError as error:
            extra = extra_of(error.name or "")
            if extra is None:
                raise
            raise MissingExtra(extra, str(error.name).partition(".")[0]) from error
        found = reduce(getattr, path.split("."), home) if path else home
        setattr(sys.modules[package], name, found)
        return found

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *homes})

    return load, names
