"""Comparison of typed dictionaries with what they describe: pydantic models, structs, signatures."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import NotRequired, get_origin, get_type_hints

from pydantic import BaseModel


def keys_of(kind: type) -> dict[str, bool]:
    """The keys of a TypedDict, and whether each is required."""
    hints = get_type_hints(kind, include_extras=True)
    return {name: bool(vars(kind)["__total__"]) and get_origin(hint) is not NotRequired for name, hint in hints.items()}


def fields_of(model: type[BaseModel]) -> dict[str, bool]:
    """The fields of a pydantic model, and whether each is required."""
    return {name: field.is_required() for name, field in model.model_fields.items()}


def keywords_of(function: Callable[..., object]) -> dict[str, object]:
    """The keyword-only parameters of a function, with their annotations as they are written."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.annotation for p in parameters if p.kind is p.KEYWORD_ONLY}


def written_hints(kind: type) -> dict[str, object]:
    """The keys of a TypedDict with their annotations as they are written."""
    return {name: getattr(hint, "__forward_arg__", hint) for name, hint in vars(kind)["__annotations__"].items()}
