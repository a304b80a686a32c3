"""Checks of `actscope doctor MODEL`: what its points are, and which are refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from actscope.cli.common.findings import Finding
from actscope.errors import ActscopeError, SiteError
from actscope.sites import Site

if TYPE_CHECKING:
    from torch import nn

    from actscope.engines.hf.loading import LoadedModel

_POINTS = ("attn_out", "mlp_out")


def check(model: str, *, trust_remote_code: bool = False) -> Iterator[Finding]:
    """Load a model, which runs it once over a few random tokens, and say what its points are."""
    from transformers.utils import logging

    from actscope.engines.hf.loading import load

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        loaded = load(model, dtype="float32", trust_remote_code=trust_remote_code)
    except ActscopeError as error:
        yield Finding("model", False, str(error), "name a hub id, a local directory or actscope/builtin")
        return
    yield Finding("model", True, f"{loaded.name}: {type(loaded.model).__name__}, {loaded.n_layers} blocks")
    yield from points_of(loaded)


def points_of(loaded: LoadedModel) -> Iterator[Finding]:
    """For each point and each module that it is read from, or reason for which it is refused, one finding."""
    from actscope.taps.text_model import blocks

    layers = blocks(loaded.model)
    for point in _POINTS:
        read: dict[str, list[int]] = {}
        refused: dict[str, list[int]] = {}
        for layer, block in enumerate(layers):
            try:
                read.setdefault(_path(loaded.model, block, layer, point), []).append(layer)
            except SiteError as error:
                refused.setdefault(str(error).partition(": ")[2], []).append(layer)
        for path, where in read.items():
            yield Finding(point, True, f"layers {_ranges(where)}: the output of {path}")
        for why, where in refused.items():
            yield Finding(point, False, f"layers {_ranges(where)}: refused", why)


def _path(model: nn.Module, block: nn.Module, layer: int, point: str) -> str:
    """Return the path, below its block, of the module that is read for a point. Raises SiteError if the point is refused."""
    from actscope.taps.anatomy import locate

    module = locate(model, Site(layer, point)).module
    path: str = next(path for path, one in block.named_modules() if one is module)
    return path


def _ranges(layers: list[int]) -> str:
    """Return ascending layer numbers as text: 0-3, 5."""
    text: list[str] = []
    for layer in layers:
        if text and int(text[-1].rpartition("-")[2]) == layer - 1:
            text[-1] = f"{text[-1].partition('-')[0]}-{layer}"
        else:
            text.append(str(layer))
    return ", ".join(text)
