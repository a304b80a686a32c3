"""Fields of a settings class: the name, type, default and docstring of each, from which flags and tables are made."""

from __future__ import annotations

import ast
import inspect
import sys
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any, get_type_hints


@dataclass(frozen=True, slots=True)
class SettingsField:
    """One field of a settings class."""

    name: str
    type: Any
    """The annotation, without the constraints of `Annotated`."""
    default: object
    """The default value, or `inspect.Parameter.empty` where the class computes it or requires a value."""
    doc: str
    """The string below the field, on one line. Empty if there is none."""


@cache
def fields_of(settings: type) -> tuple[SettingsField, ...]:
    """Return the fields of a dataclass or `msgspec.Struct`: its own first, then those of its base classes."""
    parameters, types = inspect.signature(settings).parameters, get_type_hints(settings)
    docs: dict[str, str] = {}
    for base in settings.__mro__:
        for name in vars(base).get("__annotations__", {}):
            if (
                name in parameters
            ):  # a field that overrides one of a base class keeps its docstring, and takes that one's place
                docs[name] = docs.pop(name, "") or _docstrings(base.__module__).get((base.__name__, name), "")
    return tuple(SettingsField(name, types[name], _default(parameters[name]), doc) for name, doc in docs.items())


def _default(parameter: inspect.Parameter) -> object:
    """Return the default, or `empty` for the placeholder of a default factory."""
    return inspect.Parameter.empty if repr(parameter.default) == "<factory>" else parameter.default


@cache
def _docstrings(module: str) -> dict[tuple[str, str], str]:
    """Return the string below each field by class and field. Only the source has them; without it there are none."""
    try:
        tree = ast.parse(inspect.getsource(sys.modules[module]))
    except OSError:
        return {}
    return {
        (node.name, field.target.id): " ".join(str(below.value.value).split())
        for node in tree.body
        if isinstance(node, ast.ClassDef)
        for field, below in pairwise(node.body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
    }
