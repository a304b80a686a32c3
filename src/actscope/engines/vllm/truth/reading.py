"""Which of the tensors that a module takes or returns make up the row of a site."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor, nn

#: A module's argument, by its position or its name; or an item of its output, by its index (0 for an output that is one tensor).
Key = int | str
Tensors = dict[Key, Tensor]


@dataclass(frozen=True, slots=True)
class Reading:
    """A row is the tensor at `parts[0]`, or the sum of the tensors at both `parts`."""

    parts: tuple[Key, ...]

    def of(self, tensors: Mapping[Key, Tensor]) -> tuple[Tensor, Tensor | None] | None:
        """Return (hidden, residual or None), each [n, d], or None if a tensor is absent."""
        rows = [_flat(tensors[key]) for key in self.parts if key in tensors]
        if len(rows) != len(self.parts):
            return None
        return rows[0], rows[1] if len(rows) > 1 else None

    def __str__(self) -> str:
        return " + ".join(str(key) for key in self.parts)


def arguments(args: Sequence[object], kwargs: Mapping[str, object]) -> Tensors:
    """Return the tensors that a module is called with, by position or name."""
    found: Tensors = {i: value for i, value in enumerate(args) if isinstance(value, Tensor)}
    found.update({name: value for name, value in kwargs.items() if isinstance(value, Tensor)})
    return found


def results(output: object, given: Mapping[Key, Tensor], out: Sequence[Key] = ()) -> Tensors:
    """Return the tensors of a module's output by index.

    Args:
        output: What the module returned.
        given: What it was called with (see `arguments`).
        out: Keys under which it may take the tensor that it writes its output to (see `output_argument`).
    """
    if isinstance(output, Tensor):
        return {0: output}
    if isinstance(output, tuple | list):
        return {i: item for i, item in enumerate(output) if isinstance(item, Tensor)}
    written = next((given[key] for key in out if key in given), None) if output is None else None
    return {} if written is None else {0: written}


def output_argument(module: nn.Module) -> tuple[Key, ...]:
    """Return the keys of the argument `output`, into which some of vLLM's mixers write instead of returning anything."""
    names = list(inspect.signature(module.forward).parameters)
    return ("output", names.index("output")) if "output" in names else ()


def streams(tensors: Mapping[Key, Tensor], n: int, d: int) -> Tensors:
    """Return those of the tensors that hold one vector of width `d` for each of `n` tokens: [n, d] or [1, n, d]."""
    return {
        key: tensor
        for key, tensor in tensors.items()
        if tensor.is_floating_point() and tuple(tensor.shape) in ((n, d), (1, n, d))
    }


def candidates(tensors: Mapping[Key, Tensor]) -> Iterator[tuple[Reading, Tensor]]:
    """Yield each reading of the tensors, and its rows [n, d]: every tensor alone, and every sum of two."""
    for key in tensors:
        yield Reading((key,)), _flat(tensors[key])
    for first, second in combinations(tensors, 2):
        rows = (_flat(tensors[first]).float() + _flat(tensors[second]).float()).to(tensors[first].dtype)
        yield Reading((first, second)), rows


def distance(found: Tensor, right: Tensor) -> float:
    """Return the length of `found - right` relative to that of `right`; infinity if it is not finite."""
    off, size = (found.double() - right.double()).norm(), right.double().norm()
    ratio = float(off / size) if float(size) else float(off)
    return ratio if ratio == ratio else float("inf")


def tolerance(dtype: torch.dtype) -> float:
    """Return the `distance` up to which two ways to compute a row in `dtype` are taken for the same."""
    return max(1e-4, 2 * torch.finfo(dtype).eps)


def _flat(tensor: Tensor) -> Tensor:
    return tensor[0] if tensor.dim() == 3 else tensor
