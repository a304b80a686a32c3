"""Lazy imports: a package's names import their module on first use, so that importing the package stays cheap."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import reduce
from importlib import import_module
from typing import Any

from actscope.errors import MissingExtra
from actscope.extras import extra_of
from actscope.near_miss import hint


def missing_extra(error: ModuleNotFoundError) -> ImportError:
    """Return the error, with the install line, for a package that is not installed; `error` itself for one of no extra."""
    extra = extra_of(error.name or "")
    return error if extra is None else MissingExtra(extra, str(error.name).partition(".")[0])


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
            near = "" if name.startswith("__") else hint(name, homes)
            raise AttributeError(
                f"module {package!r} has no attribute {name!r}; it has {', '.join(sorted(homes))}{near}"
            )
        module, _, path = homes[name].partition(":")
        try:
            home = import_module(module)
        except ModuleNotFoundError as error:
            named = missing_extra(error)
            if named is error:
                raise
            raise named from error
        found = reduce(getattr, path.split("."), home) if path else home
        setattr(sys.modules[package], name, found)
        return found

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *homes})

    return load, names
