"""Reads the source of a module's `forward`: what it calls after it has run a part.

Which norm a model applies to its last block's output is not said by names: a norm beside the blocks can also be that of the
embeddings (LFM2's last norm is called `embedding_norm`, NeoMME's `embedding_norm` comes first).
"""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
from collections.abc import Callable

from torch import nn


def calls_after(kind: type[nn.Module], path: str) -> list[str] | None:
    """Return the attributes of `self` that `forward` calls after it has run what lies at `path`, in the order of the source.

    Args:
        kind: Class of the module.
        path: Path of a list over which it loops, or that a part loops over which it calls.

    Returns:
        Names of attributes; None if the source cannot be read or does not mention the part.
    """
    forward = _forward(kind)
    if forward is None:
        return None
    ends = _ends(forward, path)
    return [name for line, name in _calls(forward) if line > max(ends)] if ends else None


def calls(kind: type[nn.Module]) -> list[str]:
    """Return the attributes of `self` that `forward` calls, in the order of the source; none if it cannot be read."""
    forward = _forward(kind)
    return [] if forward is None else [name for _, name in _calls(forward)]


def times_called(kind: type[nn.Module], name: str) -> int:
    """Return in how many places `forward` calls `self.<name>`; 0 if the source cannot be read."""
    return calls(kind).count(name)


def ends_with(kind: type[nn.Module], name: str) -> bool:
    """Return whether `self.<name>` is the last that `forward` calls, dropout aside, and nothing is added to its output."""
    forward = _forward(kind)
    called = [one for one in _calls(forward) if "drop" not in one[1]] if forward is not None else []
    if forward is None or not called or called[-1][1] != name:
        return False
    return not any(_is_sum(node) and getattr(node, "lineno", 0) > called[-1][0] for node in ast.walk(forward))


def is_sliced(kind: type[nn.Module], name: str) -> bool:
    """Return whether `forward` loops over `self.<name>[: ....num_hidden_layers]`, and so runs no more than the config says."""
    forward = _forward(kind)
    return forward is not None and any(
        isinstance(node, ast.Subscript)
        and _is_own(node.value, name)
        and isinstance(node.slice, ast.Slice)
        and node.slice.lower is None
        and isinstance(node.slice.upper, ast.Attribute)
        and node.slice.upper.attr == "num_hidden_layers"
        for node in ast.walk(forward)
    )


def _forward(kind: type[nn.Module]) -> ast.FunctionDef | None:
    return _parsed(inspect.unwrap(kind.forward))


@functools.cache
def _parsed(forward: Callable[..., object]) -> ast.FunctionDef | None:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(forward)))
    except (OSError, TypeError, SyntaxError, ValueError):
        return None
    found = tree.body[0] if tree.body else None
    return found if isinstance(found, ast.FunctionDef) else None


def _ends(forward: ast.FunctionDef, path: str) -> list[int]:
    """Return the last lines of the loops that mention `self.<path>`, else of the calls of the first part of the path."""
    loops = [
        node.end_lineno or node.lineno
        for node in ast.walk(forward)
        if isinstance(node, ast.For | ast.While) and any(_is_own(part, path) for part in ast.walk(node))
    ]
    return loops or [
        node.end_lineno or node.lineno
        for node in ast.walk(forward)
        if isinstance(node, ast.Call) and _is_own(node.func, path.partition(".")[0])
    ]


def _calls(forward: ast.FunctionDef) -> list[tuple[int, str]]:
    """Return line and name of each call of an attribute of `self`."""
    return sorted(
        (node.lineno, node.func.attr)
        for node in ast.walk(forward)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and _is_own(node.func, node.func.attr)
    )


def _is_sum(node: ast.AST) -> bool:
    """Return whether a node is an addition, other than of outputs that are collected in a tuple or list."""
    if not (isinstance(node, ast.BinOp | ast.AugAssign) and isinstance(node.op, ast.Add)):
        return False
    return not any(isinstance(part, ast.Tuple | ast.List) for part in ast.iter_child_nodes(node))


def _is_own(node: ast.AST, path: str) -> bool:
    """Return whether a node is `self.<path>`."""
    for name in reversed(path.split(".")):
        if not isinstance(node, ast.Attribute) or node.attr != name:
            return False
        node = node.value
    return isinstance(node, ast.Name) and node.id == "self"
