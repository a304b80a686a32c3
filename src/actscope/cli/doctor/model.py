"""Checks of `actscope doctor MODEL`: what its points are, and which are refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from actscope.cli.common.findings import Finding
from actscope.errors import ActscopeError, SiteError
from actscope.sites import INSTEAD, POINTS, Site

if TYPE_CHECKING:
    from torch import nn

    from actscope.engines.hf.loading import LoadedModel


def check(model: str, *, trust_remote_code: bool = False) -> Iterator[Finding]:
    """Load a model, which runs it once over a few random tokens, and say what its points are."""
    from transformers.utils import logging

    from actscope.engines.hf.loading import load

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        loaded = load(model, dtype="float32", trust_remote_code=trust_remote_code)
    except ActscopeError as error:
        yield Finding(
            "model",
            False,
            str(error),
            "name a Hugging Face id, a directory, a GGUF file or actscope/builtin",
        )
        return
    yield Finding("model", True, f"{loaded.name}: {type(loaded.model).__name__}, {loaded.n_layers} blocks")
    yield from points_of(loaded)


def points_of(loaded: LoadedModel) -> Iterator[Finding]:
    """For each point and each module that it is read from, or reason for which it is refused, one finding."""
    from actscope.taps.text_model import blocks

    layers = blocks(loaded.model)
    for point in POINTS:
        read: dict[str, list[int]] = {}
        refused: dict[str, list[int]] = {}
        for layer, block in enumerate(layers):
            try:
                read.setdefault(_place(loaded.model, block, Site(layer, point)), []).append(layer)
            except SiteError as error:
                if not _has(loaded.model, layer, INSTEAD.get(point)):
                    refused.setdefault(str(error).partition(": ")[2], []).append(layer)
        for place, where in read.items():
            yield Finding(point, True, f"layers {_ranges(where)}: {place}")
        if point == "mixer_out":  # a block without a mixer is no fault: its attn_out is refused already
            continue
        for why, where in refused.items():
            yield Finding(point, False, f"layers {_ranges(where)}: refused", why)
    yield _final_norm(loaded.model)


def _has(model: nn.Module, layer: int, point: str | None) -> bool:
    """Return whether a block has the point that it may have instead of another."""
    from actscope.taps.anatomy import locate

    try:
        return point is not None and locate(model, Site(layer, point)) is not None
    except SiteError:
        return False


def _final_norm(model: nn.Module) -> Finding:
    from actscope.taps.anatomy import locate

    try:
        place = locate(model, Site(None, "final_norm"))
    except SiteError as error:
        return Finding("final_norm", False, "refused", str(error).partition(": ")[2])
    path = next(path for path, one in model.named_modules() if one is place.module)
    return Finding("final_norm", True, f"the output of {path}")


def _place(model: nn.Module, block: nn.Module, site: Site) -> str:
    """Return in words where a point is read, below its block. Raises SiteError if the point is refused."""
    from actscope.taps.anatomy import locate

    place = locate(model, site)
    path = next(path for path, one in block.named_modules() if one is place.module)
    factor = "" if place.scale == 1 else f"{place.scale:g} x "
    return f"{factor}the {place.side} of {path or 'the block'}"


def _ranges(layers: list[int]) -> str:
    """Return ascending layer numbers as text: 0-3, 5."""
    text: list[str] = []
    for layer in layers:
        if text and int(text[-1].rpartition("-")[2]) == layer - 1:
            text[-1] = f"{text[-1].partition('-')[0]}-{layer}"
        else:
            text.append(str(layer))
    return ", ".join(text)
